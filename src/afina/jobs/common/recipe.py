"""Recipes: ordered steps as plain data, read, checked and written.

A step is the name of a command with options, named as in Python: `{"prune": {"macs": "50%"}}`; or, to do again exactly
what a record says was done, the configuration of its technique: `{"prune": {"config": record.step.config}}`. Techniques
of other packages have no command: their configuration is what a step says of them. Which orders are legal follows from
the traits that each technique requires of the network and removes (`afina.techniques.TRAITS`).
"""

from collections.abc import Mapping, Sequence
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
from afina.techniques import FLOAT_WEIGHTS, TECHNIQUES, TRAITS
from afina.types import Step

RECIPE_FILE = "recipe.yaml"
EXACT = "config"
_EXAMPLE = "Write, for example:\nsteps:\n  - prune: {macs: 50%, finetune: 1}\n  - quantize: {weight_type: int8}"

# Steps that are commands. Options such as the data or the seed belong to the recipe as a whole, not to a step. Every
# other technique in the table of techniques is a step with its configuration as options.
STEPS: Mapping[str, type] = {
    "prune": PruneOptions,
    "factorize": FactorizeOptions,
    "sparsify": SparsifyOptions,
    "distill": DistillOptions,
    "quantize": QuantizeOptions,
}
# For each step, the names of options in earlier versions, and their names now.
_RENAMED = {"quantize": {"weights": "weight_type", "activations": "activation_type"}}


def exact_step(step: Step) -> Step | None:
    """The step in the form of `afina.techniques.replay`; None where it has options of a command instead."""
    if step.technique not in STEPS:
        return step
    return Step(step.technique, step.config[EXACT]) if EXACT in step.config else None


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
    """Raise `InputError` where a step requires a trait of the network that one before it has removed."""
    gone: dict[str, tuple[int, str]] = {}
    for number, step in enumerate(steps, 1):
        requires, removes = _traits(step.technique)
        for trait in requires:
            if trait in gone:
                before, culprit = gone[trait]
                raise InputError(
                    f"Step {number} ({step.technique}) requires {trait}, which step {before} ({culprit}) takes away.",
                    why=TRAITS[trait],
                    fix=f"Put {step.technique} before {culprit}."
                    + (" Training with simulated integers is `quantize: {qat: N}`." if trait == FLOAT_WEIGHTS else ""),
                )
        for trait in removes:
            gone.setdefault(trait, (number, step.technique))


def _traits(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The traits that a step requires, and those that it removes. A distillation is no technique; it trains weights."""
    if name not in TECHNIQUES:
        return (FLOAT_WEIGHTS,), ()
    technique = TECHNIQUES.get(name)
    return technique.requires, technique.removes


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
    names = dict.fromkeys([*STEPS, *TECHNIQUES.names()])
    if name not in names:
        raise InputError(f"Step {number}: there is no step {name!r}.", fix=did_you_mean(str(name), names))
    if not isinstance(options or {}, Mapping):
        raise InputError(f"Step {number} ({name}): its options are {options!r}.", fix=_EXAMPLE)
    where, options = f"Step {number} ({name})", options or {}
    if name not in STEPS or EXACT in options:
        return _exact(where, str(name), options)
    keys = recipe_keys(STEPS[name])
    _check_keys(where, options, keys, _RENAMED.get(name, {}))
    return Step(name, {key: _value(where, keys[key], value) for key, value in options.items()})


def _exact(where: str, name: str, options: Mapping[str, Any]) -> Step:
    """A step with the whole configuration of its technique, checked."""
    if name in STEPS and (len(options) > 1 or name not in TECHNIQUES or not isinstance(options[EXACT], Mapping)):
        raise InputError(
            f"{where}: `config` is the whole configuration of a technique, and nothing beside it.",
            fix="Give the config of `Record.step`, or the options of the command.",
        )
    try:
        TECHNIQUES.get(name).read(options[EXACT] if name in STEPS else options)
    except InputError as error:
        raise InputError(f"{where}: {error.what}", error.why, error.fix) from error
    return Step(name, dict(options))


def _value(where: str, declared: Declared, value: Any) -> Any:
    """An option's value, of the type that the option has."""
    try:
        return TypeAdapter[Any](declared.type).validate_python(value)
    except ValidationError as error:
        why = "; or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
        raise InputError(f"{where}: {declared.name} is {value!r}.", why=f"{why}.") from error


def _check_keys(where: str, content: Mapping[str, Any], allowed: Any, renamed: Mapping[str, str] | None = None) -> None:
    for key in content:
        if key in (renamed or {}):
            raise InputError(f"{where}: {key} has another name now.", fix=f"Write {(renamed or {})[key]} instead.")
        if key not in allowed:
            raise InputError(f"{where} has no option {key!r}.", fix=did_you_mean(str(key), allowed))
