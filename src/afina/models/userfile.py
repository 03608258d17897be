"""A model that a function in the user's own Python file builds: `path/file.py:builder`."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from afina.errors import InputError, did_you_mean
from afina.userfile import importable, load_function, reason_in

_WIDTHS = ("classes", "num_classes")


def build_from_file(
    path: Path, builder: str, outputs: int | None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module that the function `builder` in the file at `path` builds.

    The file is imported under a private name, with its own folder importable, so it may use files beside it.
    The builder is called without arguments, or with `classes=` (or `num_classes=`) where it has such a parameter and
    `outputs` is known; and with `options`, for which it must have parameters.

    Args:
        path: The Python file.
        builder: Name of a function in it.
        outputs: Width that the last layer should have; None leaves it to the function.
        options: Further arguments of the function.

    Raises:
        InputError: the file or the builder is missing, fails, or does not give an `nn.Module`.
    """
    with importable(path.parent):
        function = load_function(path, builder)
        arguments = {key: outputs for key in _takes(function)[:1] if outputs is not None}
        check_options(builder, function, options or {}, known=tuple(arguments))
        arguments.update(options or {})
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is the command's own, with --json above all
                built = function(**arguments)
        except (Exception, SystemExit) as error:
            shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
            raise InputError(
                f"{builder}({shown}) in {path} fails.", reason_in(error, path), "Correct it, then try again."
            ) from error
    if not isinstance(built, nn.Module):
        raise InputError(
            f"{builder} in {path} returns a {type(built).__name__}, not a torch.nn.Module.",
            fix="Name a function that builds and returns the model.",
        )
    return built


def check_options(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], known: tuple[str, ...] = ()
) -> None:
    """Check that a function that builds a model takes these options; `known` arguments are passed in any case.

    Raises:
        InputError: it does not take one of them.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.name not in known]
    for key in options:
        if key not in names:
            raise InputError(f"{name} takes no argument {key!r}.", fix=did_you_mean(key, names))


def check_required(name: str, function: Callable[..., Any], available: Container[str]) -> None:
    """Check that every argument of a function that has no default is among the `available` names.

    Raises:
        InputError: one is not; it is named.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for p in parameters:
        if p.kind in named and p.default is inspect.Parameter.empty and p.name not in available:
            raise InputError(
                f"{name} needs {p.name!r}, and the space has no such parameter.",
                fix="Add it to the space, or give it a default in the function.",
            )


def _takes(function: Callable[..., Any]) -> list[str]:
    """The parameters of the function that stand for the number of outputs, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in _WIDTHS if name in parameters]
