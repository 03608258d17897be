"""What a runtime is: something that a network can be exported to, and that loads and runs the exported file."""

import importlib.metadata
import importlib.util
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from afina.errors import AfinaError, InputError
from afina.runtimes.cpu import int8_weight_bits
from afina.runtimes.policy import IntegerPolicy
from afina.store.files import PARTIAL, full_disk, storing
from afina.types import InputSpec, TaskSpec

if TYPE_CHECKING:
    from afina.graph import Network


class Session(Protocol):
    """A loaded file, ready to run."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch of preprocessed images.

        Args:
            images: float32 `[N, C, H, W]`, scaled and normalized as the file's metadata says.

        Returns:
            The file's outputs `[N, ...]` by name, in the order in which the file has them.
        """


class Runtime(ABC):
    """One way to deploy: a file format and the library that runs it.

    A subclass says what is different: how a file is written (`_write`), opened (`_open`), and how its metadata are
    read (`_metadata`). The library is imported inside methods only, so that a missing one is not an error until
    it is needed.

    Attributes:
        name: The runtime's name in the table and on the command line.
        extra: The extra of this package that installs the library; None where it is always there.
        format: The name of its files' format in `afina export --to`.
        suffix: The ending of its files, with the dot, in small letters.
        package: The library's distribution, which is also what it is imported as.
        usage: Python code that loads a file and runs it, for people who deploy it: `{file}` stands for its path (other
            braces are doubled). It reads the batch `x` (float32 `[N, C, H, W]`), and leaves the outputs (`[N, ...]`) in
            `outputs`, by name.
        integers: Where the runtime likes integers, and how; `policy` completes it for this machine.
        stored_bits: For each number of bits that weights may have, how many bits of the file one weight takes.
        activation_bits: The numbers of bits that activations may have: the runtime computes with them, or dequantizes
            them and computes in float.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None]
    format: ClassVar[str]
    suffix: ClassVar[str]
    package: ClassVar[str]
    usage: ClassVar[str]
    integers: ClassVar[IntegerPolicy] = IntegerPolicy()
    stored_bits: ClassVar[Mapping[int, int]] = {8: 8}
    activation_bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8, 16)

    def available(self) -> bool:
        """Whether the library is installed."""
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        """The library's version, or an empty text where it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def policy(self) -> IntegerPolicy:
        """How a network is quantized for this runtime on this machine: `integers`, with the bits of int8 weights.

        A runtime whose products cannot saturate (it computes in float, or adds in 32 bits everywhere) returns
        `integers` as it is.
        """
        return replace(self.integers, int8_weight_bits=int8_weight_bits())

    def computes_bf16(self) -> bool:
        """Whether this runtime computes in bfloat16 on this machine where a file asks for it."""
        return False

    def check_integers(self, activations: str) -> None:
        """Raise `InputError` where the runtime cannot run activations of a type: `none` (float), `int8`, ..."""
        if activations != "none" and int(activations.removeprefix("int")) not in self.activation_bits:
            known = ", ".join(f"int{bits}" for bits in self.activation_bits)
            raise InputError(
                f"{self.name} cannot run activations in {activations}.",
                why=f"It runs {known}, and none (float).",
                fix="Choose one of these, or another runtime.",
            )

    def usage_of(self, file: str) -> str:
        """The lines of `usage` for the file of that name."""
        return self.usage.format(file=file)

    def start(self) -> None:
        """Import the library and load its kernels, so that times and memory measured after this are those of a file."""
        importlib.import_module(self.package)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that belong to the artifact at `path`: its size is their sum."""
        return (path,)

    def export(self, network: "Network", path: Path) -> Path:
        """Write the network in inference form to `path`: whole, or not at all.

        Args:
            network: Float or quantized.
            path: Must end in `suffix`.

        Raises:
            InputError: `path` has another ending, or the library is not installed.
            Unsupported: the network holds something that the format has no form for.
            StorageError: the disk is full, or the folder cannot be written.
        """
        self.require()
        path = Path(path)
        if path.suffix != self.suffix:
            raise InputError(f"{path} does not end in {self.suffix}.", fix=f"{self.name} writes {self.suffix} files.")
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with storing(path), full_disk(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as folder:
            partial = Path(folder) / path.name
            self._write(network, partial)
            # The file that names the artifact goes last: where it is, the others are.
            for file in reversed(self.files(partial)):
                _flush(file)
                os.replace(file, path.parent / file.name)
        return path

    def load(self, path: Path, *, threads: int) -> Session:
        """The file, ready to run with `threads` threads.

        Raises:
            InputError: a file is missing or cannot be read as what its name says, or the library is not installed.
        """
        self.require()
        self._check_files(Path(path))
        try:
            return self._open(Path(path), threads)
        except AfinaError:
            raise
        except Exception as error:
            raise self._unreadable(path, str(error)) from error

    def metadata(self, path: Path) -> tuple[InputSpec, TaskSpec] | None:
        """What the file says about its input and its task; None where it was not written by this library.

        Raises:
            InputError: a file is missing or cannot be read as what its name says.
        """
        self._check_files(Path(path))
        try:
            return self._metadata(Path(path))
        except AfinaError:
            raise
        except Exception as error:
            raise self._unreadable(path, str(error)) from error

    def require(self) -> None:
        """Raise `InputError`, naming the extra to install, where the library is not there."""
        if not self.available():
            target = f"afina[{self.extra}]" if self.extra else self.package
            raise InputError(f"{self.name} is not installed.", fix=f'Install it: pip install "{target}"')

    @abstractmethod
    def _write(self, network: "Network", path: Path) -> None:
        """Write the artifact at `path`, in a folder of its own; an unfinished one is thrown away."""

    @abstractmethod
    def _open(self, path: Path, threads: int) -> Session:
        """Load the file; any exception is taken to mean that it cannot be read."""

    @abstractmethod
    def _metadata(self, path: Path) -> tuple[InputSpec, TaskSpec] | None:
        """Read the metadata; any exception is taken to mean that the file cannot be read."""

    def _check_files(self, path: Path) -> None:
        for file in self.files(path):
            if not file.is_file():
                belongs = "" if file == path else f"{path.name} needs it beside itself."
                raise InputError(f"There is no file {file}.", why=belongs, fix="Check the path.")

    def _unreadable(self, path: Path, reason: str) -> InputError:
        first = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason given")
        return InputError(
            f"{path} cannot be read by {self.name}.",
            why=f"It says: {first[:300]}",
            fix=f"Check that the file is whole and is a {self.suffix} file, or export it again.",
        )


def in_fixed_batches(
    run: Callable[[np.ndarray], dict[str, np.ndarray]], images: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """Run images through a file that takes exactly `size` at a time: the last batch is filled up, and cut again.

    Args:
        run: Runs a batch of exactly `size` images.
        images: `[N, C, H, W]`, one or more.
        size: Images in one batch of the file.

    Returns:
        The outputs for the N images, by name.

    Example:
        >>> sums = in_fixed_batches(lambda batch: {"sum": batch.sum(axis=1)}, np.arange(10).reshape(5, 2), size=2)
        >>> sums["sum"].tolist()
        [1, 5, 9, 13, 17]
    """
    missing = -len(images) % size
    filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
    parts = [run(filled[start : start + size]) for start in range(0, len(filled), size)]
    return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
