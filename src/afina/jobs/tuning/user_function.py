"""A Python function as what is searched: of its parameters by name and, where it has such an argument, of the trial."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.errors import InputError
from afina.search import Space
from afina.userfile import check_options, check_required, load_function

VALUE = "value"
_TRIAL = "trial"


@dataclass(frozen=True)
class Function:
    """A function that a search calls.

    Attributes:
        name: The name in titles; two runs with the same name search the same function.
        call: The function itself.
        takes_trial: Whether it has an argument `trial`, for reports, early stopping and constraints.
    """

    name: str
    call: Callable[..., Any]
    takes_trial: bool

    def __call__(self, params: dict[str, Any], trial: Any) -> Any:
        """The value of the function, or its values."""
        return self.call(**params, **({_TRIAL: trial} if self.takes_trial else {}))


def function_of(objective: str | Callable[..., Any], space: Space) -> Function:
    """The function, or that of `path/file.py:function`, checked against the space.

    Raises:
        InputError: there is none, it does not take a parameter of the space, or it needs one that is not there.

    Example:
        >>> from afina.search import make_space
        >>> space = make_space({"x": {"type": "float", "low": 0, "high": 1}})
        >>> function = function_of(lambda x, trial: x + trial, space)
        >>> function.takes_trial, function({"x": 1}, trial=2)
        (True, 3)
    """
    call, name = _load(objective)
    _check_named(name, call)
    takes_trial = _TRIAL not in space.parameters and _has_trial(call)
    check_options(name, call, space.parameters)
    check_required(name, call, {*space.parameters, *([_TRIAL] if takes_trial else [])})
    return Function(name, call, takes_trial)


def check_names(also: Sequence[str]) -> None:
    """Raise `InputError` where two of the values that a function gives have the same name."""
    for name in also:
        if [VALUE, *also].count(name) > 1:
            raise InputError(f"--also {name} names two of the values.", fix="Give each a name of its own.")


def _load(objective: str | Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    if callable(objective):
        return objective, re.sub(r"\W+", "", getattr(objective, "__name__", "function"))
    path, _, name = str(objective).rpartition(":")
    if not path.endswith(".py"):
        raise InputError(f"--objective {objective} is not a function.", fix="Write it as path/file.py:function.")
    return load_function(Path(path), name), f"{Path(path).stem}-{name}"


def _check_named(name: str, call: Callable[..., Any]) -> None:
    for parameter in _parameters(call).values():
        if parameter.kind == parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise InputError(
                f"{name} takes {parameter.name!r} by its place only.",
                why="Parameters are given by their names.",
                fix="Take the `/` out of its arguments.",
            )


def _has_trial(call: Callable[..., Any]) -> bool:
    argument = _parameters(call).get(_TRIAL)
    return argument is not None and argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function; none where Python cannot read its signature, as of some built-in ones."""
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}
