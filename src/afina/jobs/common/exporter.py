"""Networks as exported files: what they weigh, how long they take, how good their answers are."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import numpy as np
from torch import Tensor

from afina.capacity import available_cores
from afina.data import ImageData
from afina.devices import measure_latency
from afina.graph.network import Network
from afina.jobs.options.shared import RuntimeOptions
from afina.progress import Progress
from afina.runtimes import Runtime, check_parity, get_runtime, measure_quality, outputs_of_file
from afina.tasks import get_task
from afina.training import predict
from afina.types import Measurement


@dataclass(frozen=True)
class Answers:
    """The outputs of a file on the images of a split.

    Attributes:
        quality: The task's metric, or the agreement with a reference where there are no labels.
        outputs: The outputs `[N, ...]`, by name.
        size: Bytes of the file.
    """

    quality: Measurement
    outputs: Mapping[str, np.ndarray]
    size: float

    def agreement(self, network: Network, data: ImageData) -> tuple[float, str]:
        """How far the file and its network agree in their predictions, and that in words."""
        task = get_task(network.task)
        evidence = task.agreement_evidence(self.outputs, predict(network, data))
        return task.agreement_value(evidence), task.agreement_words(evidence, list(self.outputs))


@dataclass(frozen=True)
class Exporter:
    """Exports networks for one runtime, into folders that are gone afterwards.

    Attributes:
        runtime: The runtime that runs the files.
        threads: Threads that the runtime gets.
        batch: Images per call when time is measured.
    """

    runtime: Runtime
    threads: int
    batch: int = 1

    @classmethod
    def of(cls, options: RuntimeOptions) -> Self:
        """The exporter that a command's options describe. Raises `InputError` for an unknown runtime."""
        return cls(get_runtime(options.runtime), options.threads or available_cores(), options.batch)

    @contextmanager
    def file(self, network: Network) -> Iterator[Path]:
        """The network's file, for the length of a `with` block."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.runtime.export(network, Path(folder) / f"model{self.runtime.suffix}")

    def bytes(self, path: Path) -> float:
        """Bytes on disk of all that belongs to a file."""
        return float(sum(part.stat().st_size for part in self.runtime.files(path)))

    def size(self, network: Network) -> float:
        """Bytes of the network's file."""
        with self.file(network) as path:
            return self.bytes(path)

    def time(self, network: Network) -> float:
        """Seconds for one batch."""
        return self.latencies({"network": network})["network"].value

    def latencies(self, networks: Mapping[str, Network]) -> dict[str, Measurement]:
        """The latency of each network's file, by name, measured in turns: seconds for one batch."""
        with self.shelf() as shelf:
            for name, network in networks.items():
                shelf.add(name, network)
            return shelf.latencies(networks)

    @contextmanager
    def shelf(self) -> Iterator["Shelf"]:
        """Files that are timed more than once, for the length of a `with` block."""
        with tempfile.TemporaryDirectory() as folder:
            yield Shelf(self, Path(folder))

    def judge(
        self,
        network: Network,
        data: ImageData,
        progress: Progress,
        reference: Mapping[str, np.ndarray] | None = None,
        split: str = "validation",
    ) -> Answers:
        """What the network's file answers on the images of a split.

        Args:
            network: Float or quantized.
            data: The images.
            progress: What the user sees.
            reference: The original's outputs by name, where the data has no labels.
            split: `validation`, or `test` for what no choice follows from.

        Raises:
            ParityError: the file does not answer as the network.
        """
        with self.file(network) as path:
            return self.judge_file(path, network, data, progress, reference, split)

    def judge_file(
        self,
        path: Path,
        network: Network,
        data: ImageData,
        progress: Progress,
        reference: Mapping[str, np.ndarray] | None = None,
        split: str = "validation",
    ) -> Answers:
        """As `judge`, for a file that was exported from `network` before."""
        task = get_task(network.task)
        check_parity(network, path, data, threads=self.threads)
        outputs = outputs_of_file(path, data, network.input, threads=self.threads, split=split, progress=progress)
        against = outputs if reference is None and not data.labelled else reference
        quality = measure_quality(
            outputs, data, task, network.input, reference=against, runtime=self.runtime, split=split
        )
        return Answers(quality, outputs, self.bytes(path))


class Shelf:
    """Files of networks of one input shape, each exported once, however often it is timed.

    Args:
        exporter: Exports and times the files.
        folder: The folder of the files.
    """

    def __init__(self, exporter: Exporter, folder: Path) -> None:
        self._exporter, self._folder, self._numbers = exporter, folder, count()
        self._files: dict[str, Path] = {}
        self._shape = (0, 0, 0)

    @property
    def names(self) -> list[str]:
        """The names of the networks whose files it holds."""
        return list(self._files)

    def add(self, name: str, network: Network) -> None:
        """Export a network under a name; the network itself need not be kept."""
        path = self._folder / f"{next(self._numbers)}{self._exporter.runtime.suffix}"
        self._files[name], self._shape = self._exporter.runtime.export(network, path), network.input.shape

    def check(self, name: str, network: Network, images: Tensor) -> None:
        """Raises `ParityError` where a file does not answer as the network it was made from."""
        check_parity(network, self._files[name], images, threads=self._exporter.threads)

    def keep(self, names: Collection[str]) -> None:
        """Remove all files but those of `names`."""
        for name in self._files.keys() - set(names):
            for part in self._exporter.runtime.files(self._files.pop(name)):
                part.unlink()

    def latencies(self, names: Iterable[str]) -> dict[str, Measurement]:
        """The latency of each file, by name, measured in turns: seconds for one batch."""
        files = {name: self._files[name] for name in names}
        return measure_latency(files, self._shape, threads=self._exporter.threads, batch=self._exporter.batch)
