"""A model that a function in the user's own Python file builds: `path/file.py:builder`."""

import ast
import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from afina.errors import InputError
from afina.userfile import check_options, folder_to_import, importable, load_function, reason_in

_WIDTHS = ("classes", "num_classes")


def call_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name of a builder and its arguments, from `builder` or `builder(width=0.5, classes=10)`.

    Raises:
        InputError: it is no such text, or an argument has no name or is no plain value.

    Example:
        >>> call_of("build(width=0.5, name='small')"), call_of("build")
        (('build', {'width': 0.5, 'name': 'small'}), ('build', {}))
    """
    if "(" not in text:
        return text, {}
    try:
        call = ast.parse(text, mode="eval").body
        named = isinstance(call, ast.Call) and all(keyword.arg is not None for keyword in call.keywords)
        if isinstance(call, ast.Call) and named and isinstance(call.func, ast.Name) and not call.args:
            return call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, TypeError, ValueError):
        pass
    raise InputError(
        f"{text} is no builder with arguments.",
        fix="Write plain values with their names, as in file.py:build(width=0.5, num_classes=10).",
    )


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
    with importable(folder_to_import(path)):
        function = load_function(path, builder)
        given = options or {}
        arguments = {key: outputs for key in _takes(function)[:1] if outputs is not None and key not in given}
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


def _takes(function: Callable[..., Any]) -> list[str]:
    """The parameters of the function that stand for the number of outputs, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in _WIDTHS if name in parameters]
