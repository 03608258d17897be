"""The kinds of parameters: numbers, whole numbers, choices and fixed values, each with its condition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import BaseTrial
from pydantic import ConfigDict, with_config

Plain = str | int | float | bool | None
When = Mapping[str, Plain | list[Plain]]
_CLOSED = ConfigDict(extra="forbid")


@with_config(_CLOSED)
@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`.

    Attributes:
        low: Lowest value.
        high: Highest value, included.
        log: Whether the scale is logarithmic.
        step: Distance between the values; None for all between.
        when: Where it is active: values of other parameters, each one value or a list of them.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When | None = None
    type: Literal["float"] = "float"

    def suggest(self, name: str, trial: BaseTrial) -> float:
        """The value for a trial of Optuna."""
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[float]:
        """The lowest and the highest value."""
        return [self.low, self.high]

    def count(self, points: int) -> int:
        """The number of values that `grid` gives."""
        if self.step is not None:
            return int((self.high - self.low) / self.step + 1e-9) + 1
        return 1 if self.low == self.high else points

    def grid(self, points: int) -> list[float]:
        """`points` values, evenly spread on the parameter's scale; every one where it has a step.

        Example:
            >>> Float(1.0, 2.0).grid(3)
            [1.0, 1.5, 2.0]
        """
        if self.step is not None:
            return [self.low + i * self.step for i in range(self.count(points))]
        if points == 1 or self.low == self.high:
            return [self.low]
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [ends[0] + (ends[1] - ends[0]) * i / (points - 1) for i in range(1, points - 1)]
        return [self.low, *(math.exp(x) if self.log else x for x in inner), self.high]


@with_config(_CLOSED)
@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included; the rest as for `Float`."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When | None = None
    type: Literal["int"] = "int"

    def suggest(self, name: str, trial: BaseTrial) -> int:
        """The value for a trial of Optuna."""
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[int]:
        """The lowest and the highest value."""
        return [self.low, self.high]

    def count(self, points: int) -> int:
        """The number of values that `grid` gives; on a logarithmic scale it may give fewer."""
        return min(points, (self.high - self.low) // self.step + 1)

    def grid(self, points: int) -> list[int]:
        """Every value where there are at most `points`; else so many, evenly spread on the parameter's scale.

        Example:
            >>> Int(1, 8).grid(4)
            [1, 3, 6, 8]
        """
        if self.count(points + 1) <= points:
            return list(range(self.low, self.high + 1, self.step))
        spread = Float(self.low, self.high, self.log).grid(points)
        return sorted({self.low + math.ceil((x - self.low) / self.step - 0.5) * self.step for x in spread})


@with_config(_CLOSED)
@dataclass(frozen=True)
class Categorical:
    """One of several values without an order."""

    choices: list[Plain]
    when: When | None = None
    type: Literal["categorical"] = "categorical"

    def suggest(self, name: str, trial: BaseTrial) -> Plain:
        """The value for a trial of Optuna."""
        return trial.suggest_categorical(name, self.choices)

    def ends(self) -> list[Plain]:
        """Every choice."""
        return list(self.choices)

    def count(self, points: int) -> int:
        """The number of choices."""
        return len(self.choices)

    def grid(self, points: int) -> list[Plain]:
        """Every choice."""
        return list(self.choices)


@with_config(_CLOSED)
@dataclass(frozen=True)
class Fixed:
    """A value that is not varied."""

    value: Plain
    when: When | None = None
    type: Literal["fixed"] = "fixed"

    def ends(self) -> list[Plain]:
        """The value alone."""
        return [self.value]

    def count(self, points: int) -> int:
        """The number of values: 1."""
        return 1

    def grid(self, points: int) -> list[Plain]:
        """The value alone."""
        return [self.value]


Parameter = Float | Int | Categorical | Fixed
KINDS: dict[str, type] = {"float": Float, "int": Int, "categorical": Categorical, "fixed": Fixed}


def is_active(when: When | None, values: Mapping[str, Any]) -> bool:
    """Whether a condition holds for the values of a trial so far; a parameter that is not active meets none.

    Example:
        >>> is_active({"optimizer": ["sgd", "adam"]}, {"optimizer": "sgd"}), is_active({"optimizer": "sgd"}, {})
        (True, False)
    """
    for parent, allowed in (when or {}).items():
        if parent not in values:
            return False
        if values[parent] not in (allowed if isinstance(allowed, list | tuple) else [allowed]):
            return False
    return True
