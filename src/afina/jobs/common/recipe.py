"""Recipes: ordered steps as plain data, read, checked and written.

A step is the name of a command and its options, as in Python: `{"prune": {"macs": "50%"}}`. Which orders are legal
follows from what each step requires of the network and what it takes away: `float-weights` (nothing is in integers yet)
and `dense-weights` (zeros that were made would not be filled again).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from afina.errors import InputError, did_you_mean
from afina.jobs.options.declaration import Declared, recipe_keys
from afina.jobs.options.distill import DistillOptions
from afina.jobs.options.factorize import FactorizeOptions
from afina.jobs.options.prune import PruneOptions
from afina.jobs.options.quantize import QuantizeOptions
from afina.jobs.options.sparsify import SparsifyOptions
from afina.store.result import to_plain
from afina.types import Step

RECIPE_FILE = "recipe.yaml"
FLOAT, DENSE = "float-weights", "dense-weights"
_MEANING = {
    FLOAT: "Weights in integers cannot be changed any more; training with simulated integers is `quantize: {qat: N}`.",
    DENSE: "It solves for new weights, which would fill the zeros.",
}
_EXAMPLE = "Write, for example:\nsteps:\n  - prune: {macs: 50%, finetune: 1}\n  - quantize: {weight_type: int8}"


@dataclass(frozen=True)
class StepKind:
    """One kind of step.

    Attributes:
        options: The options of the command; those that a recipe as a whole says are no options of a step.
        requires: Traits of the network that it needs.
        takes_away: Traits that the network has no more after it.
        renamed: What options of a step were called in earlier versions, and are called now.
    """

    options: type
    requires: tuple[str, ...]
    takes_away: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None


STEPS = {
    "prune": StepKind(PruneOptions, (FLOAT, DENSE)),
    "factorize": StepKind(FactorizeOptions, (FLOAT, DENSE)),
    "sparsify": StepKind(SparsifyOptions, (FLOAT,), takes_away=(DENSE,)),
    "distill": StepKind(DistillOptions, (FLOAT,)),
    "quantize": StepKind(
        QuantizeOptions,
        (FLOAT,),
        takes_away=(FLOAT,),
        renamed={"weights": "weight_type", "activations": "activation_type"},
    ),
}


def read_recipe(source: str | Path | Mapping[str, Any] | Sequence[Any]) -> tuple[Step, ...]:
    """The steps of a YAML or JSON file, or of what such a file holds; checked.

    Raises:
        InputError: the file cannot be read, a step or an option is not known, or the order is not legal.

    Example:
        >>> read_recipe([{"prune": {"macs": "50%"}}, {"quantize": {"weight_type": "int4"}}])[1].config
        {'weight_type': 'int4'}
    """
    content = _content(Path(source)) if isinstance(source, (str, Path)) else source
    if isinstance(content, Mapping):
        _check_keys("The recipe", content, ("steps",))
        content = content.get("steps")
    if not isinstance(content, (list, tuple)) or not content:
        raise InputError("A recipe is a list of steps.", fix=_EXAMPLE)
    steps = tuple(_step(number, entry) for number, entry in enumerate(content, 1))
    check_order(steps)
    return steps


def recipe_text(steps: Sequence[Step]) -> str:
    """Steps as YAML, which `read_recipe` takes."""
    return yaml.safe_dump({"steps": [{step.technique: to_plain(step.config)} for step in steps]}, sort_keys=False)


def check_order(steps: Sequence[Step]) -> None:
    """Raise `InputError` where a step requires what one before it has taken away."""
    gone: dict[str, tuple[int, str]] = {}
    for number, step in enumerate(steps, 1):
        for trait in STEPS[step.technique].requires:
            if trait in gone:
                before, culprit = gone[trait]
                raise InputError(
                    f"Step {number} ({step.technique}) requires {trait}, which step {before} ({culprit}) takes away.",
                    why=_MEANING[trait],
                    fix=f"Put {step.technique} before {culprit}.",
                )
        for trait in STEPS[step.technique].takes_away:
            gone.setdefault(trait, (number, step.technique))


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The recipe {path} cannot be read.", why=str(error).splitlines()[0], fix=_EXAMPLE) from error


def _step(number: int, entry: Any) -> Step:
    if isinstance(entry, Step):
        entry = {entry.technique: dict(entry.config)}
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise InputError(f"Step {number} of the recipe is not one step with its options: {entry!r}.", fix=_EXAMPLE)
    (name, options), *_ = entry.items()
    if name not in STEPS:
        raise InputError(f"Step {number}: there is no step {name!r}.", fix=did_you_mean(str(name), STEPS))
    if not isinstance(options or {}, Mapping):
        raise InputError(f"Step {number} ({name}): its options are {options!r}.", fix=_EXAMPLE)
    where, kind = f"Step {number} ({name})", STEPS[name]
    keys = recipe_keys(kind.options)
    _check_keys(where, options or {}, keys, kind.renamed or {})
    return Step(name, {key: _value(where, keys[key], value) for key, value in (options or {}).items()})


def _value(where: str, declared: Declared, value: Any) -> Any:
    """An option's value, of the type that the option has."""
    try:
        return TypeAdapter[Any](declared.type).validate_python(value)
    except ValidationError as error:
        why = "; or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
        raise InputError(f"{where}: {declared.name} is {value!r}.", why=f"{why}.") from error


def _check_keys(where: str, content: Mapping[str, Any], known: Any, renamed: Mapping[str, str] | None = None) -> None:
    for key in content:
        if key in (renamed or {}):
            raise InputError(f"{where}: {key} has another name now.", fix=f"Write {(renamed or {})[key]} instead.")
        if key not in known:
            raise InputError(f"{where} has no option {key!r}.", fix=did_you_mean(str(key), known))
