"""torch itself: `.pt2` files, the saved network, so that it can be measured beside the others."""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afina.runtimes.base import Runtime, Session
from afina.runtimes.policy import IntegerPolicy
from afina.types import InputSpec, TaskSpec
from afina.types.metadata import parse_values

if TYPE_CHECKING:
    from afina.graph import Network


class TorchRuntime(Runtime):
    """The saved network, run by torch operator by operator.

    It is what training and compression work on, and needs no conversion. The drawback: it is the slowest and largest
    way to deploy, and an int8 network is computed in float between its quantizations.
    """

    name = "pt2"
    extra = None
    format = "pt2"
    suffix = ".pt2"
    package = "torch"
    usage = """\
import torch
from afina.graph import Network
model = Network.load("{file}")
outputs = {{name: value.detach().numpy() for name, value in model(torch.from_numpy(x)).items()}}
"""

    def start(self) -> None:
        import torch.export.pt2_archive  # noqa: F401 (what reading a file needs beside torch itself)

        import afina.graph  # noqa: F401

    def policy(self) -> IntegerPolicy:
        return self.integers  # quantized layers are computed in float: nothing saturates

    def _write(self, network: "Network", path: Path) -> None:
        network.save(path)

    def _open(self, path: Path, threads: int) -> Session:
        import torch

        from afina.graph import Network

        network = Network.load(path)

        def session(images: np.ndarray) -> dict[str, np.ndarray]:
            with _threads(threads), torch.inference_mode():
                return {name: value.numpy() for name, value in network(torch.from_numpy(images)).items()}

        return session

    def _metadata(self, path: Path) -> tuple[InputSpec, TaskSpec] | None:
        # Read from the archive directly: torch takes seconds to import, and is not needed for two texts.
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/afina.json")), None)
            about = json.loads(archive.read(name)) if name else {}
        return parse_values(about.get("input"), about.get("task"))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch computes with so many threads, which is a setting of the whole process: others get theirs back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
