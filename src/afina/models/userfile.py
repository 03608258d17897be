"""A model that a function in the user's own Python file builds: `path/file.py:builder`."""

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from afina.errors import InputError, check_file, did_you_mean

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
    with _importable(path.parent):
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
                f"{builder}({shown}) in {path} fails.", _reason(error, path), "Correct it, then try again."
            ) from error
    if not isinstance(built, nn.Module):
        raise InputError(
            f"{builder} in {path} returns a {type(built).__name__}, not a torch.nn.Module.",
            fix="Name a function that builds and returns the model.",
        )
    return built


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file at `path`.

    Raises:
        InputError: the file or the function is missing, or the import fails.
    """
    check_file(path)
    with _importable(path.parent):
        return _builder(_imported(path), path, name)


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


def _imported(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_afina_user_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.", fix="Give file.py:builder.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be imported.", _reason(error, path), "Correct it, then try again.") from error
    return module


def _builder(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(module, name, None)
    if callable(function):
        return function
    functions = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    what = f"{name} in {path} is not a function." if function is not None else f"{path} has no function {name!r}."
    raise InputError(what if name else f"{path} needs the name of a function.", fix=f"{_offer(path, name, functions)}")


def _offer(path: Path, name: str, functions: list[str]) -> str:
    return (
        did_you_mean(name, functions)
        or f"Write a function in {path.name} that returns the model, and name it after a colon."
    )


def _takes(function: Callable[..., Any]) -> list[str]:
    """The parameters of the function that stand for the number of outputs, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in _WIDTHS if name in parameters]


def _reason(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of the user's file that it came from."""
    text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{text} (line {error.lineno})" if error.lineno else text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    lines = lines or [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"{text} ({path.name}, line {lines[-1]})" if lines else text


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder first on the import path; what was imported from it is forgotten afterwards.

    Two folders may each have a `layers.py`: the builder of the second must not import the first one's.
    """
    entry, before = str(folder.resolve()), set(sys.modules)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
        for name in set(sys.modules) - before:
            top = sys.modules.get(name.partition(".")[0])
            file = Path(getattr(top, "__file__", None) or "/")
            here = file.parent.parent if file.name == "__init__.py" else file.parent
            if str(here) == entry and not name.startswith("_afina_user_"):
                del sys.modules[name]
