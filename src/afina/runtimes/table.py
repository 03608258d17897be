"""The table of runtimes, and how one is looked up: by name, by format, or by the ending of a file.

Other packages add runtimes by entry points of the group `afina.runtimes`, which name a subclass of `Runtime`.
"""

from pathlib import Path
from typing import Any

from afina.errors import InputError, did_you_mean
from afina.extensions import BrokenContract, Table, concrete_class
from afina.runtimes.base import Runtime
from afina.runtimes.onnx_runtime import ONNXRuntime
from afina.runtimes.openvino_runtime import OpenVINORuntime
from afina.runtimes.policy import IntegerPolicy
from afina.runtimes.pt2 import TorchRuntime
from afina.types import InputSpec, TaskSpec

_ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "format": str,
    "suffix": str,
    "package": str,
    "extra": (str, type(None)),
    "usage": str,
    "integers": IntegerPolicy,
}


def _accept(value: Any) -> Runtime:
    """The runtime that another package's entry point names. Raises `BrokenContract`."""
    kind: Any = concrete_class(value, Runtime, _ATTRIBUTES)
    runtime: Runtime = kind()
    if not runtime.suffix.startswith(".") or runtime.suffix != runtime.suffix.lower():
        raise BrokenContract(f"its attribute `suffix` is {runtime.suffix!r}, not a dot and small letters")
    try:
        runtime.usage.format(file="model")
    except (KeyError, IndexError, ValueError) as error:
        reason = f"its attribute `usage` has braces other than {{file}} that are not doubled ({error})"
        raise BrokenContract(reason) from error
    return runtime


RUNTIMES: Table[Runtime] = Table(
    "runtime",
    "afina.runtimes",
    {runtime.name: runtime for runtime in (ONNXRuntime(), OpenVINORuntime(), TorchRuntime())},
    accept=_accept,
)


def get_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        InputError: it is not known, not installed, or its package is broken.

    Example:
        >>> get_runtime("onnxruntime").suffix
        '.onnx'
    """
    runtime = RUNTIMES.get(name)
    runtime.require()
    return runtime


def runtime_of_format(name: str) -> Runtime:
    """The runtime whose files are of that format (`onnx`, `openvino`, `pt2`): what `afina export --to` names.

    Raises:
        InputError: no runtime has files of that format, or it is not installed.

    Example:
        >>> runtime_of_format("onnx").name
        'onnxruntime'
    """
    runtime = _first("format", name)
    if runtime is None:
        raise InputError(f"{name!r} is not a format.", why=_broken(), fix=did_you_mean(name, formats()))
    runtime.require()
    return runtime


def formats() -> tuple[str, ...]:
    """The formats that files can be exported to, those of built-in runtimes first."""
    return tuple(dict.fromkeys(runtime.format for runtime in RUNTIMES.loaded().values()))


def runtime_of(path: str | Path) -> Runtime:
    """The runtime that runs this file, by its ending.

    Raises:
        InputError: no runtime has files with that ending, or it is not installed.

    Example:
        >>> runtime_of("model.onnx").name
        'onnxruntime'
    """
    runtime = _first("suffix", Path(path).suffix.lower())
    if runtime is None:
        endings = ", ".join(sorted({runtime.suffix for runtime in RUNTIMES.loaded().values()}))
        raise InputError(
            f"No runtime is known for {path}.", why=_broken(), fix=f"Give a file that ends in one of: {endings}."
        )
    runtime.require()
    return runtime


def read_metadata(path: str | Path) -> tuple[InputSpec, TaskSpec] | None:
    """What a file says about its input and its task; None where Afina did not write it.

    Raises:
        InputError: the file is missing, broken, or of a kind that is not known.
    """
    return runtime_of(path).metadata(Path(path))


def _first(attribute: str, value: str) -> Runtime | None:
    """The first runtime with that value; those of other packages are imported only where no built-in one has it."""
    for name in RUNTIMES:
        try:
            runtime = RUNTIMES.get(name)
        except InputError:  # a broken package must not take other runtimes with it
            continue
        if getattr(runtime, attribute) == value:
            return runtime
    return None


def _broken() -> str:
    """Which runtimes of other packages could not be loaded, and why; empty where all could."""
    return " ".join(f"{error.what} {error.why}" for error in RUNTIMES.problems().values())
