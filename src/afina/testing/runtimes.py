"""What every runtime promises, as checks that raise `AssertionError` with a sentence; no test runner is needed.

In the tests of a package that adds a runtime:

    with tempfile.TemporaryDirectory() as folder:
        check_runtime(MyRuntime(), network, images, Path(folder))
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from afina.errors import InputError
from afina.graph.network import Network
from afina.runtimes.base import Runtime


def check_runtime(runtime: Runtime, network: Network, images: Tensor, folder: Path, tolerance: float = 1e-4) -> None:
    """Check all that a runtime promises.

    Args:
        runtime: The runtime; its library is installed.
        network: A float network that it can export.
        images: Preprocessed images, float32 `[N, C, H, W]`, at least three.
        folder: An empty folder to write to.
        tolerance: The largest difference between outputs of the file and of the network.

    Raises:
        AssertionError: a promise is not kept; it says which.
    """
    check_export(runtime, network, folder)
    check_answers(runtime, network, images, folder, tolerance)
    check_metadata(runtime, network, folder)
    check_files_that_cannot_be_read(runtime, folder)


def check_export(runtime: Runtime, network: Network, folder: Path) -> None:
    """A file is written whole, with nothing left beside it; another ending is refused, and nothing is written."""
    path = runtime.export(network, folder / "whole" / f"model{runtime.suffix}")
    files = {file.name for file in runtime.files(path)}
    beside = {entry.name for entry in path.parent.iterdir()}
    _promise(runtime, beside == files, f"writes its own files and no others (there are {', '.join(sorted(beside))})")
    wrong = folder / "refused" / "model.other"
    _refuses(runtime, lambda: runtime.export(network, wrong), "refuses a file of another ending")
    _promise(runtime, not wrong.parent.exists(), "writes nothing where it refuses")


def check_answers(runtime: Runtime, network: Network, images: Tensor, folder: Path, tolerance: float) -> None:
    """The file answers as the network: for one image and for several, with one thread and with two."""
    path = runtime.export(network, folder / f"answers{runtime.suffix}")
    with network.inference():
        expected = {name: value.numpy() for name, value in network(images).items()}
    for threads in (1, 2):
        session = runtime.load(path, threads=threads)
        for count in (1, 3):
            outputs = session(images[:count].numpy())
            _promise(runtime, list(outputs) == list(expected), "gives the outputs by their names, in the same order")
            for name, wanted in expected.items():
                same = outputs[name].shape == wanted[:count].shape
                _promise(runtime, same, f"gives {name} in the network's shape for {count} images")
                near = bool(np.allclose(outputs[name], wanted[:count], atol=tolerance))
                _promise(runtime, near, f"answers as the network for {count} images with {threads} threads")


def check_metadata(runtime: Runtime, network: Network, folder: Path) -> None:
    """The file says how its images are prepared, and what it is for."""
    path = runtime.export(network, folder / f"metadata{runtime.suffix}")
    metadata = runtime.metadata(path)
    _promise(runtime, metadata == (network.input, network.task), "writes the input and the task into the file")


def check_files_that_cannot_be_read(runtime: Runtime, folder: Path) -> None:
    """A file that is missing or broken is an `InputError`, whether it is loaded or asked for its metadata."""
    missing, broken = folder / f"missing{runtime.suffix}", folder / f"broken{runtime.suffix}"
    for file in runtime.files(broken):
        file.write_bytes(b"not a model")
    for path, fault in ((missing, "is missing"), (broken, "is broken")):
        _refuses(runtime, lambda path=path: runtime.load(path, threads=1), f"refuses to load a file that {fault}")
        _refuses(runtime, lambda path=path: runtime.metadata(path), f"refuses the metadata of a file that {fault}")


def _refuses(runtime: Runtime, call: object, promise: str) -> None:
    assert callable(call)
    try:
        call()
    except InputError:
        return
    except Exception as error:
        raise AssertionError(
            f"{runtime.name} does not keep its promise: it {promise}, with an InputError and not {error!r}."
        ) from error
    raise AssertionError(f"{runtime.name} does not keep its promise: it {promise}.")


def _promise(runtime: Runtime, holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(f"{runtime.name} does not keep its promise: it {promise}.")
