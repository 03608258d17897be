"""The job that all stages of `afina optimize` share, and how a finished stage is read from the run folder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from afina.data import ImageData
from afina.graph.network import Network
from afina.jobs.common.subject import context_of
from afina.progress import Progress
from afina.runtimes import Runtime
from afina.store.result import from_plain, to_plain
from afina.store.run import Run
from afina.techniques.context import Context

T = TypeVar("T")
CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Job:
    """One run of `afina optimize`: where it writes, what it works on, how it measures.

    Attributes:
        run: The run folder.
        data: Images.
        runtime: The runtime that will run the artifact.
        threads: Threads that the runtime gets.
        batch: Images per call when latency is measured.
        seed: Every random choice comes from it.
        progress: What the user sees.
    """

    run: Run
    data: ImageData
    runtime: Runtime
    threads: int
    batch: int
    seed: int
    progress: Progress

    def context(self, network: Network, images: int | None = None) -> Context:
        """What a technique may use: a stream of training images, the seed, the progress."""
        return context_of(self.data, network, images or CALIBRATION_IMAGES, self.seed, self.progress)

    def stage(self, name: str, kind: type[T], build: Callable[[], T], files: Iterable[str] = ()) -> T:
        """The value of a finished stage, or `build()` of it, kept with the files that it wrote."""
        finished = self.run.done(name)
        if finished is not None:
            return from_plain(kind, finished["value"])
        plain = to_plain(build())
        self.run.finish(name, {"value": plain}, files=files)
        # Read back, so that a value is the same whether it was built now or in an earlier session.
        return from_plain(kind, plain)

    def network_file(self, name: str) -> str:
        """Where the network of that name is kept, relative to the run folder."""
        return f"work/{name}.pt2"

    def keep_network(self, name: str, network: Network) -> str:
        """Save a network in the run folder; gives the file's name relative to it."""
        network.save(self.run.path(self.network_file(name)))
        return self.network_file(name)

    def load_network(self, name: str) -> Network:
        """A network saved by `keep_network`."""
        return Network.load(self.run.path(self.network_file(name)))

    def keep_arrays(self, file: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Save arrays by name in the run folder, whole or not at all."""
        with self.run.file(file) as partial, Path(partial).open("wb") as stream:
            np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
        return file

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """The arrays that `keep_arrays` saved."""
        with np.load(self.run.path(file)) as stored:
            return {name: stored[name] for name in stored.files}
