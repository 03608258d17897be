"""Parts in the user's own Python files: functions that build models, objectives of searches, tasks.

The file is the user's own code: it is imported, under a private name and with its own folder importable, so that it may
use files beside it.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from afina.errors import InputError, check_file, did_you_mean

_PRIVATE = "_afina_user_"
_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>\w*)")


def reference(text: str) -> tuple[Path, str] | None:
    """The file and the name in `path/file.py:name`; None where the text is no such reference.

    Example:
        >>> reference("tasks/points.py:Points")
        (PosixPath('tasks/points.py'), 'Points')
        >>> reference("classification") is None
        True
    """
    match = _REFERENCE.fullmatch(text)
    return (Path(match["path"]).expanduser(), match["name"]) if match else None


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of the Python file at `path`.

    Raises:
        InputError: the file or the function is missing, or the import fails.
    """
    value: Callable[..., Any] = _attribute(path, name, "function", callable)
    return value


def load_class(path: Path, name: str) -> type:
    """The class `name` of the Python file at `path`.

    Raises:
        InputError: the file or the class is missing, or the import fails.
    """
    value: type = _attribute(path, name, "class", lambda value: isinstance(value, type))
    return value


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


def _attribute(path: Path, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
    check_file(path)
    with importable(folder_to_import(path)):
        module = _imported(path)
    value = getattr(module, name, None)
    if name and value is not None and fits(value):
        return value
    here = [
        key
        for key, other in vars(module).items()
        if fits(other) and not key.startswith("_") and getattr(other, "__module__", "") == module.__name__
    ]
    wrong = f"{name} in {path} is not a {what}." if value is not None else f"{path} has no {what} {name!r}."
    raise InputError(
        wrong if name else f"{path} needs the name of a {what}.",
        fix=did_you_mean(name, here) or f"Write a {what} in {path.name}, and name it after a colon.",
    )


def folder_to_import(path: Path) -> Path:
    """The folder that has to be importable for a file: its own, or that of the package that it is a part of."""
    folder = path.resolve().parent
    if not _imports_siblings(path):
        return folder
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _imports_siblings(path: Path) -> bool:
    """Whether a file of a package imports other parts of it as `from .layers import Block` does."""
    if not (path.resolve().parent / "__init__.py").is_file():
        return False
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(tree))


def _imported(path: Path) -> ModuleType:
    if _imports_siblings(path):
        return _imported_in_package(path)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"{_PRIVATE}{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.", fix="Give path/file.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = reason_in(error, path)
        raise InputError(f"{path} cannot be imported.", reason, "Correct it, then try again.") from error
    return module


def _imported_in_package(path: Path) -> ModuleType:
    """The file as a module of its package, whose folder is importable."""
    parts = path.resolve().with_suffix("").relative_to(folder_to_import(path)).parts
    # Another package of that name may have been imported: it steps aside.
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == parts[0]}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(".".join(parts))
    except (Exception, SystemExit) as error:
        reason = reason_in(error, path)
        raise InputError(f"{path} cannot be imported.", reason, "Correct it, then try again.") from error
    finally:
        if others:
            for name in [name for name in sys.modules if name.partition(".")[0] == parts[0]]:
                del sys.modules[name]
            sys.modules.update(others)


def reason_of(error: BaseException) -> str:
    """The error in one line, with the innermost line of a user's file that it came from."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if any(getattr(m, "__file__", "") == frame.filename for n, m in sys.modules.items() if n.startswith(_PRIVATE)):
            return reason_in(error, Path(frame.filename))
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")


def reason_in(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of the user's file that it came from."""
    text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{text} (line {error.lineno})" if error.lineno else text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    lines = lines or [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"{text} ({path.name}, line {lines[-1]})" if lines else text


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
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
            if str(here) == entry and not name.startswith(_PRIVATE):
                del sys.modules[name]
