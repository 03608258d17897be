"""Parameters from plain data, checked: each error says which parameter, what is allowed and what was given."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from afina.errors import InputError, did_you_mean
from afina.search.parameters import KINDS, Categorical, Fixed, Float, Int, Parameter, Plain


def read_parameter(name: str, value: Any) -> Parameter:
    """The parameter that plain data describes: a list is a choice, a mapping has a type, all else is a fixed value.

    Raises:
        InputError: it is contradictory; the text says which parameter, what is allowed and what was given.

    Example:
        >>> read_parameter("optimizer", ["sgd", "adam"])
        Categorical(choices=['sgd', 'adam'], when=None, type='categorical')
    """
    if isinstance(value, list | tuple):
        return _checked(name, Categorical(list(value)))
    if not isinstance(value, Mapping):
        return _checked(name, Fixed(value))
    options = dict(value)
    kind = options.pop("type", None)
    if kind not in KINDS:
        problem = "has no type." if kind is None else f"has the type {kind!r}, which there is not."
        raise InputError(f"The parameter {name!r} {problem}", fix=did_you_mean(str(kind), KINDS))
    allowed = [f.name for f in fields(KINDS[kind]) if f.name != "type"]
    for key in options:
        if key not in allowed:
            raise InputError(f"The parameter {name!r} has no option {key!r}.", fix=did_you_mean(str(key), allowed))
    required = {"float": ("low", "high"), "int": ("low", "high"), "categorical": ("choices",), "fixed": ("value",)}
    for key in required[kind]:
        if key not in options:
            raise InputError(f"The parameter {name!r} of type {kind} needs {key!r}.")
    if kind == "categorical" and not isinstance(options["choices"], list | tuple):
        raise InputError(f"The choices of {name!r} must be a list, got {options['choices']!r}.")
    return _checked(name, KINDS[kind](**options))


def _checked(name: str, p: Parameter) -> Parameter:
    """The parameter, with its ends put on its steps; raises `InputError` where its values contradict each other."""
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
    """The parameter; raises `InputError` where it has no choices, or one of them twice."""
    if not p.choices:
        raise InputError(f"The parameter {name!r} has no choices.")
    for i, choice in enumerate(p.choices):
        if not isinstance(choice, Plain):
            raise InputError(f"A choice of {name!r} must be plain (text, number, true, false), got {choice!r}.")
        if any(type(choice) is type(other) and choice == other for other in p.choices[:i]):
            raise InputError(f"The parameter {name!r} has the choice {choice!r} twice.")
    return p


def check_condition(name: str, when: Any, parameters: Mapping[str, Parameter]) -> None:
    """Raise `InputError` where a condition names a parameter that there is not, or a value that it cannot have."""
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
    """Whether a parameter can have this value."""
    if isinstance(p, Categorical):
        return any(type(value) is type(c) and value == c for c in p.choices)
    if isinstance(p, Fixed):
        return bool(value == p.value)
    return _is_number(value, whole=isinstance(p, Int)) and p.low <= value <= p.high


def order_by_conditions(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters, each after those that it depends on, and otherwise in their order."""
    ordered: dict[str, Parameter] = {}
    while len(ordered) < len(parameters):
        ready = [n for n, p in parameters.items() if n not in ordered and set(p.when or ()) <= ordered.keys()]
        if not ready:
            left = sorted(set(parameters) - set(ordered))
            raise InputError(f"These parameters depend on each other in a circle: {', '.join(left)}.")
        ordered[ready[0]] = parameters[ready[0]]
    return ordered


def _is_number(value: Any, *, whole: bool) -> bool:
    """Whether a value is a number, or a whole one; true and false are none."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)
