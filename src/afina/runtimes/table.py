"""The table of runtimes, and how one is found: by name, or by the ending of a file."""

from pathlib import Path

from afina.errors import InputError, did_you_mean
from afina.runtimes.base import Runtime
from afina.runtimes.onnx_runtime import ONNXRuntime
from afina.runtimes.openvino_runtime import OpenVINORuntime
from afina.runtimes.pt2 import TorchRuntime
from afina.types import InputSpec, TaskSpec

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (ONNXRuntime(), OpenVINORuntime(), TorchRuntime())}


def get_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises `InputError` where it is not known, or not installed."""
    if name not in RUNTIMES:
        raise InputError(f"There is no runtime {name!r}.", fix=did_you_mean(name, RUNTIMES))
    RUNTIMES[name].require()
    return RUNTIMES[name]


def runtime_of(path: str | Path) -> Runtime:
    """The runtime that runs this file, by its ending. Raises `InputError` where none does, or it is not installed."""
    suffix = Path(path).suffix.lower()
    for runtime in RUNTIMES.values():
        if runtime.suffix == suffix:
            runtime.require()
            return runtime
    endings = ", ".join(sorted(runtime.suffix for runtime in RUNTIMES.values()))
    raise InputError(f"No runtime is known for {path}.", fix=f"Give a file that ends in one of: {endings}.")


def read_metadata(path: str | Path) -> tuple[InputSpec, TaskSpec] | None:
    """What a file says about its input and task; None where it says nothing.

    Raises:
        InputError: the file is missing, broken, or of a kind that is not known.
    """
    return runtime_of(path).metadata(Path(path))
