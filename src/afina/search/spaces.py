"""`Space`: what may be varied, as plain data that a YAML file can hold.

    learning_rate: {type: float, low: 1e-4, high: 0.3, log: true}
    model.depth: {type: int, low: 2, high: 8}
    optimizer: [sgd, adamw]
    momentum: {type: float, low: 0.5, high: 0.99, when: {optimizer: sgd}}
    epochs: 20

A list is short for a choice, and a plain value for a fixed one.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from optuna.trial import BaseTrial
from pydantic import ConfigDict, Field, TypeAdapter, with_config

from afina.errors import InputError, did_you_mean

Plain = str | int | float | bool | None
When = Mapping[str, Plain | list[Plain]]
# Above this, a grid is refused.
MOST_COMBINATIONS = 1_000_000
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
        """Its value in a trial of Optuna."""
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[float]:
        """Its lowest and its highest value."""
        return [self.low, self.high]

    def count(self, points: int) -> int:
        """How many values `grid` gives."""
        if self.step is not None:
            return int((self.high - self.low) / self.step + 1e-9) + 1
        return 1 if self.low == self.high else points

    def grid(self, points: int) -> list[float]:
        """`points` values, evenly spread on the parameter's scale; every one where it has a step."""
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
        """Its value in a trial of Optuna."""
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[int]:
        """Its lowest and its highest value."""
        return [self.low, self.high]

    def count(self, points: int) -> int:
        """How many values `grid` gives; on a logarithmic scale at most so many."""
        return min(points, (self.high - self.low) // self.step + 1)

    def grid(self, points: int) -> list[int]:
        """Every value where there are at most `points`; else so many, evenly spread on the parameter's scale."""
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
        """Its value in a trial of Optuna."""
        return trial.suggest_categorical(name, self.choices)

    def ends(self) -> list[Plain]:
        """Every choice."""
        return list(self.choices)

    def count(self, points: int) -> int:
        """How many choices there are."""
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
        """The value."""
        return [self.value]

    def count(self, points: int) -> int:
        """One."""
        return 1

    def grid(self, points: int) -> list[Plain]:
        """The value."""
        return [self.value]


Parameter = Float | Int | Categorical | Fixed
_KINDS: dict[str, type] = {"float": Float, "int": Int, "categorical": Categorical, "fixed": Fixed}


@dataclass(frozen=True)
class Space:
    """Parameters by name, each after those that it depends on; made by `make_space` or `read_space`."""

    parameters: Mapping[str, Parameter]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values of the parameters that are active in this trial, fixed ones too."""
        return self._values(lambda name, p: p.suggest(name, trial))

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a trial with these parameters had, fixed ones too."""
        return self._values(lambda name, p: params[name])

    def _values(self, pick: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, p in self.parameters.items():
            if _active(p.when, values):
                values[name] = p.value if isinstance(p, Fixed) else pick(name, p)
        return values

    def size(self, points: int) -> int:
        """Combinations of a grid with `points` values of each continuous parameter, conditions not counted."""
        return math.prod(p.count(points) for p in self.parameters.values())

    def combinations(self, points: int) -> list[dict[str, Any]]:
        """Every combination once, of the parameters that are varied; where one is not active it is not varied.

        Raises:
            InputError: there are more than a million.
        """
        found: list[dict[str, Any]] = []
        most = self.size(points)
        conditional = any(p.when is not None for p in self.parameters.values())
        # With conditions there may be fewer combinations, but as many as one parameter has values.
        least = max(p.count(points) for p in self.parameters.values()) if conditional else most
        if least > MOST_COMBINATIONS:
            raise self._too_many(most)
        for values in self._walk(list(self.parameters), {}, points):
            found.append({k: v for k, v in values.items() if not isinstance(self.parameters[k], Fixed)})
            if len(found) > MOST_COMBINATIONS:
                raise self._too_many(most)
        return found

    def _too_many(self, most: int) -> InputError:
        return InputError(
            f"The grid has up to {most:,} combinations, and {MOST_COMBINATIONS:,} are the most.",
            fix="Give fewer values, or use the random sampler: it needs no grid.",
        )

    def _walk(self, names: list[str], values: dict[str, Any], points: int) -> Iterator[dict[str, Any]]:
        if not names:
            yield values
            return
        p = self.parameters[names[0]]
        if not _active(p.when, values):
            yield from self._walk(names[1:], values, points)
            return
        for value in p.grid(points):
            yield from self._walk(names[1:], {**values, names[0]: value}, points)

    def to_plain(self) -> dict[str, Any]:
        """As `make_space` reads it, in full."""
        return {
            name: {k: v for k, v in asdict(p).items() if v is not None or k == "value"}
            for name, p in self.parameters.items()
        }


def read_space(path: str | Path) -> Space:
    """The space in a YAML or JSON file.

    Raises:
        InputError: the file is missing, is not YAML, or does not hold a space.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=NumberLoader)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.", fix="Give the file of a search space.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML.", why=str(error)) from None
    return make_space(data)


def make_space(data: Any) -> Space:
    """The space of plain data: a mapping from names to parameters.

    Raises:
        InputError: it is empty or contradictory; it says which parameter, what is allowed and what was given.
    """
    if not isinstance(data, Mapping):
        raise InputError(
            "A search space must be a mapping from names to parameters.", why=f"This is {type(data).__name__}."
        )
    parameters = {str(name): _parameter(str(name), value) for name, value in data.items()}
    if all(isinstance(p, Fixed) for p in parameters.values()):
        raise InputError(
            "The search space is empty." if not parameters else "The search space has fixed values only.",
            fix="Give at least one that varies, such as `learning_rate: {type: float, low: 1e-4, high: 0.1}`.",
        )
    for name, p in parameters.items():
        _check_when(name, p.when, parameters)
    return Space(_sorted(parameters))


def space_schema() -> dict[str, Any]:
    """The JSON schema of a search space (draft 2020-12)."""
    full = Annotated[Float | Int | Categorical | Fixed, Field(discriminator="type")]
    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, full | list[Plain] | Plain])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Afina search space"}
    schema = adapter.json_schema()
    for definition in schema["$defs"].values():
        definition["required"] = ["type", *definition.get("required", [])]
    return {**schema, **head}


def _parameter(name: str, value: Any) -> Parameter:
    if isinstance(value, list | tuple):
        return _checked(name, Categorical(list(value)))
    if not isinstance(value, Mapping):
        return _checked(name, Fixed(value))
    given = dict(value)
    kind = given.pop("type", None)
    if kind not in _KINDS:
        problem = "has no type." if kind is None else f"has the type {kind!r}, which there is not."
        raise InputError(f"The parameter {name!r} {problem}", fix=did_you_mean(str(kind), _KINDS))
    known = [f.name for f in fields(_KINDS[kind]) if f.name != "type"]
    for key in given:
        if key not in known:
            raise InputError(f"The parameter {name!r} has no option {key!r}.", fix=did_you_mean(str(key), known))
    required = {"float": ("low", "high"), "int": ("low", "high"), "categorical": ("choices",), "fixed": ("value",)}
    for key in required[kind]:
        if key not in given:
            raise InputError(f"The parameter {name!r} of type {kind} needs {key!r}.")
    if kind == "categorical" and not isinstance(given["choices"], list | tuple):
        raise InputError(f"The choices of {name!r} must be a list, got {given['choices']!r}.")
    return _checked(name, _KINDS[kind](**given))


def _checked(name: str, p: Parameter) -> Parameter:
    """The parameter itself, if its values make sense."""
    if isinstance(p, Categorical):
        return _checked_choices(name, p)
    if isinstance(p, Fixed):
        if not isinstance(p.value, Plain):
            raise InputError(f"The value of {name!r} must be plain (text, number, true, false), got {p.value!r}.")
        return p
    what = "a whole number" if isinstance(p, Int) else "a finite number"
    for key in ("low", "high", "step"):
        value = getattr(p, key)
        optional = key == "step" and isinstance(p, Float) and value is None
        if not optional and not _is_number(value, whole=isinstance(p, Int)):
            raise InputError(f"The parameter {name!r}: {key} must be {what}, got {value!r}.")
    if not isinstance(p.log, bool):
        raise InputError(f"The parameter {name!r}: log must be true or false, got {p.log!r}.")
    if p.low > p.high:
        raise InputError(f"The parameter {name!r} has no values: low is {p.low}, and high is {p.high}.")
    if p.step is not None and p.step <= 0:
        raise InputError(f"The parameter {name!r}: step must be above 0, got {p.step}.")
    if p.log and p.low <= 0:
        raise InputError(
            f"The parameter {name!r} has a logarithmic scale that reaches {p.low}.",
            why="A logarithm needs numbers above 0.",
            fix="Give a low above 0, or leave out `log: true`.",
        )
    if p.log and p.step is not None and p.step != 1:
        raise InputError(f"The parameter {name!r} has both log and step.", fix="Leave out one of them.")
    if isinstance(p, Int):
        return Int(p.low, p.high - (p.high - p.low) % p.step, p.log, p.step, p.when)
    steps = None if p.step is None else math.floor((p.high - p.low) / p.step + 1e-9)
    high = float(p.high) if steps is None or p.step is None else p.low + steps * p.step
    return Float(float(p.low), high, p.log, p.step, p.when)


def _checked_choices(name: str, p: Categorical) -> Categorical:
    if not p.choices:
        raise InputError(f"The parameter {name!r} has no choices.")
    for i, choice in enumerate(p.choices):
        if not isinstance(choice, Plain):
            raise InputError(f"A choice of {name!r} must be plain (text, number, true, false), got {choice!r}.")
        if any(type(choice) is type(other) and choice == other for other in p.choices[:i]):
            raise InputError(f"The parameter {name!r} has the choice {choice!r} twice.")
    return p


def _check_when(name: str, when: Any, parameters: Mapping[str, Parameter]) -> None:
    """Whether a condition names other parameters, and values that they can have."""
    if when is None:
        return
    if not isinstance(when, Mapping) or not when:
        raise InputError(f"The parameter {name!r}: when must be a mapping such as `optimizer: sgd`, got {when!r}.")
    for parent, values in when.items():
        if parent not in parameters or parent == name:
            raise InputError(
                f"The parameter {name!r} depends on {parent!r}, which there is not."
                if parent != name
                else f"The parameter {name!r} depends on itself.",
                fix=did_you_mean(str(parent), [n for n in parameters if n != name]),
            )
        for value in values if isinstance(values, list | tuple) else [values]:
            if not _possible(value, parameters[parent]):
                choices = getattr(parameters[parent], "choices", [])
                raise InputError(
                    f"The parameter {name!r} is for {parent}: {value!r}, which {parent} never is.",
                    fix=did_you_mean(str(value), [str(c) for c in choices]) if choices else "",
                )


def _possible(value: Any, p: Parameter) -> bool:
    if isinstance(p, Categorical):
        return any(type(value) is type(c) and value == c for c in p.choices)
    if isinstance(p, Fixed):
        return bool(value == p.value)
    return _is_number(value, whole=isinstance(p, Int)) and p.low <= value <= p.high


def _sorted(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Each parameter after those that it depends on, else in the order given."""
    ordered: dict[str, Parameter] = {}
    while len(ordered) < len(parameters):
        ready = [n for n, p in parameters.items() if n not in ordered and set(p.when or ()) <= ordered.keys()]
        if not ready:
            left = sorted(set(parameters) - set(ordered))
            raise InputError(f"These parameters depend on each other in a circle: {', '.join(left)}.")
        ordered[ready[0]] = parameters[ready[0]]
    return ordered


def _active(when: When | None, values: Mapping[str, Any]) -> bool:
    for parent, wanted in (when or {}).items():
        if parent not in values:
            return False
        if values[parent] not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
            return False
    return True


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)


class NumberLoader(yaml.SafeLoader):
    """YAML that reads `1e-4` as the number it is (YAML 1.1 takes it for text without a point), and no name twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; `yaml.YAMLError` where a name is in it twice: the first value would be lost."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key, _ in node.value if names.count(key.value) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[-1].value} is there twice", twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
