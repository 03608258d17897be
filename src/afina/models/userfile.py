"""A model that a function in the user's own Python file builds: `path/file.py:builder`."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from afina.errors import InputError
from afina.userfile import check_options, importable, load_function, reason_in

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


def _takes(function: Callable[..., Any]) -> list[str]:
    """The parameters of the function that stand for the number of outputs, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in _WIDTHS if name in parameters]
