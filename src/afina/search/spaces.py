"""`Space`: what may be varied, as plain data that a YAML file can hold.

    learning_rate: {type: float, low: 1e-4, high: 0.3, log: true}
    model.depth: {type: int, low: 2, high: 8}
    optimizer: [sgd, adamw]
    momentum: {type: float, low: 0.5, high: 0.99, when: {optimizer: sgd}}
    epochs: 20

A list is short for a choice, and a plain value for a fixed one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from optuna.trial import BaseTrial
from pydantic import Field, TypeAdapter

from afina.errors import InputError
from afina.search.parameter_checks import check_condition, order_by_conditions, read_parameter
from afina.search.parameters import Categorical, Fixed, Float, Int, Parameter, Plain, is_active
from afina.search.yaml_loader import NumberLoader

__all__ = ["MOST_COMBINATIONS", "NumberLoader", "Space", "make_space", "read_space", "space_schema"]

# Above this, a grid is refused.
MOST_COMBINATIONS = 1_000_000


@dataclass(frozen=True)
class Space:
    """Parameters by name, each after those that it depends on; made by `make_space` or `read_space`.

    Attributes:
        parameters: The parameters.

    Example:
        >>> space = make_space({"optimizer": ["sgd", "adam"], "momentum": {"type": "float", "low": 0, "high": 1,
        ...     "when": {"optimizer": "sgd"}}})
        >>> space.combinations(points=2)
        [{'optimizer': 'sgd', 'momentum': 0.0}, {'optimizer': 'sgd', 'momentum': 1.0}, {'optimizer': 'adam'}]
    """

    parameters: Mapping[str, Parameter]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values of the parameters that are active in this trial, fixed ones too."""
        return self._values(lambda name, p: p.suggest(name, trial))

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a trial with these parameters had, fixed ones too."""
        return self._values(lambda name, p: params[name])

    def _values(self, pick: Callable[[str, Float | Int | Categorical], Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, p in self.parameters.items():
            if is_active(p.when, values):
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
        combinations: list[dict[str, Any]] = []
        most = self.size(points)
        conditional = any(p.when is not None for p in self.parameters.values())
        # With conditions there may be fewer combinations, but as many as one parameter has values.
        least = max(p.count(points) for p in self.parameters.values()) if conditional else most
        if least > MOST_COMBINATIONS:
            raise self._too_many(most)
        for values in self._walk(list(self.parameters), {}, points):
            combinations.append({k: v for k, v in values.items() if not isinstance(self.parameters[k], Fixed)})
            if len(combinations) > MOST_COMBINATIONS:
                raise self._too_many(most)
        return combinations

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
        if not is_active(p.when, values):
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

    Example:
        >>> make_space({"depth": {"type": "int", "low": 2, "high": 8}, "epochs": 20}).size(points=3)
        3
    """
    if not isinstance(data, Mapping):
        raise InputError(
            "A search space must be a mapping from names to parameters.", why=f"This is {type(data).__name__}."
        )
    parameters = {str(name): read_parameter(str(name), value) for name, value in data.items()}
    if all(isinstance(p, Fixed) for p in parameters.values()):
        raise InputError(
            "The search space is empty." if not parameters else "The search space has fixed values only.",
            fix="Give at least one that varies, such as `learning_rate: {type: float, low: 1e-4, high: 0.1}`.",
        )
    for name, p in parameters.items():
        check_condition(name, p.when, parameters)
    return Space(order_by_conditions(parameters))


def space_schema() -> dict[str, Any]:
    """The JSON schema of a search space (draft 2020-12)."""
    full = Annotated[Float | Int | Categorical | Fixed, Field(discriminator="type")]
    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, full | list[Plain] | Plain])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Afina search space"}
    schema = adapter.json_schema()
    for definition in schema["$defs"].values():
        definition["required"] = ["type", *definition.get("required", [])]
    return {**schema, **head}
