"""Statistics that one command leaves for the next: what was measured of a network on its images is read, not measured.

They stand in a folder for caches, `AFINA_CACHE` or `~/.cache/afina`, under a name made of the network's fingerprint and
what tells the images apart; other weights or images have another name. Only what took long is kept. Nothing depends on
it: what is not there, or broken, is measured.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from afina.errors import StorageError
from afina.graph.network import Network
from afina.graph.statistics import Moments, Reader
from afina.progress import Progress
from afina.store.files import write

# Changes with the meaning of what is kept.
_FORMAT = 2
# What takes less long to measure is not kept; of one network at most the first number of bytes, of all the second.
_WORTH_SECONDS = 2.0
_MOST_BYTES, _MOST_IN_ALL = 2e9, 5e9
_VARIABLE = "AFINA_CACHE"

Measure = Callable[[Mapping[str, Reader]], dict[str, Moments]]


class KeptStatistics:
    """Statistics of networks on some images, in a folder.

    Args:
        folder: The folder; it is made when something is kept.
        images: What tells the images apart.
        progress: Says what is taken from an earlier command, and why nothing is kept.

    Example:
        >>> import tempfile
        >>> kept = KeptStatistics(Path(tempfile.gettempdir()) / "statistics", "400 photographs", Progress())
        >>> kept.folder.name
        'statistics'
    """

    def __init__(self, folder: Path, images: str, progress: Progress) -> None:
        self.folder, self._images, self._progress = folder, images, progress
        self._said = set[str]()

    @classmethod
    def of(cls, images: str, progress: Progress) -> "KeptStatistics | None":
        """Those of some images in the user's folder; None where the variable `AFINA_CACHE` is `off`."""
        given = os.environ.get(_VARIABLE, "")
        if given == "off":
            return None
        try:
            base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afina"
        except RuntimeError:  # a user without a home
            return None
        return cls(base / "statistics", images, progress)

    def knows(self, network: Network) -> bool:
        """Whether an earlier command left anything of a network on these images."""
        return self._folder_of(network).is_dir()

    def moments(self, network: Network, readers: Mapping[str, Reader], measure: Measure) -> dict[str, Moments]:
        """The moments of some layers, by the weight's name: kept ones, and those of the others measured.

        Args:
            network: The network.
            readers: Its layers, by the weight's name.
            measure: Gives the moments of some of them.
        """
        folder, found = self._folder_of(network), dict[str, Moments]()
        for name in readers if folder.is_dir() else ():
            moments = self._read(folder / _file_of(name), _moments_in)
            if moments is not None:
                found[name] = Moments(moments.xx.to(network.device), rows=moments.rows)
        missing = {name: reader for name, reader in readers.items() if name not in found}
        self._tell(found)
        if missing:
            start = time.monotonic()
            measured = measure(missing)
            size = sum(moments.xx.numel() * moments.xx.element_size() for moments in measured.values())
            if time.monotonic() - start > _WORTH_SECONDS and size < _MOST_BYTES:
                self._keep(folder, {_file_of(name): partial(_packed, moments) for name, moments in measured.items()})
            found |= measured
        return {name: found[name] for name in readers}

    def values(self, network: Network, what: str, measure: Callable[[], Any]) -> Any:
        """A value that JSON can hold, kept or measured.

        Args:
            network: The network.
            what: What it is, with all that it depends on but network and images.
            measure: Gives it.
        """
        folder = self._folder_of(network)
        path = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        found = self._read(path, lambda path: json.loads(path.read_text()))
        self._tell(found)
        if found is not None:
            return found
        start = time.monotonic()
        measured = measure()
        if time.monotonic() - start > _WORTH_SECONDS:
            self._keep(folder, {path.name: lambda: json.dumps(measured).encode()})
        return measured

    def _folder_of(self, network: Network) -> Path:
        facts = f"{_FORMAT} {torch.__version__} {network.fingerprint()} {self._images}"
        return self.folder / hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _read(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What a file holds; None where there is none, or it cannot be read, which is told."""
        if not path.is_file():
            return None
        try:
            found = read(path)
            with contextlib.suppress(OSError):
                os.utime(path.parent)  # what was used last goes last
            return found
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            self._say_once(f"Statistics of an earlier command cannot be read and are made anew ({error}).")
            return None

    def _keep(self, folder: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
        """Write files; where that fails work goes on without, and it is told."""
        try:
            for name, content in files.items():
                write(folder / name, content())
            self._make_room(folder)
        except (OSError, StorageError) as error:
            reason = error.why if isinstance(error, StorageError) else error
            self._say_once(f"Statistics are not kept for the next command: {folder} cannot be written ({reason}).")

    def _make_room(self, last: Path) -> None:
        """Remove what was not used for longest, where all networks together take too much."""
        sizes = {folder: sum(f.stat().st_size for f in folder.iterdir()) for folder in self.folder.iterdir()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
            if total <= _MOST_IN_ALL or folder == last:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]

    def _tell(self, found: object) -> None:
        if found:
            self._say_once(f"Statistics of an earlier command are used ({self.folder}; {_VARIABLE}=off for none).")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress.say(text)


def _file_of(weight: str) -> str:
    return f"{hashlib.sha256(weight.encode()).hexdigest()[:16]}.safetensors"


def _packed(moments: Moments) -> bytes:
    content: bytes = save({"xx": moments.xx.contiguous().cpu(), "rows": torch.tensor([moments.rows])})
    return content


def _moments_in(path: Path) -> Moments:
    tensors = load_file(path)
    return Moments(tensors["xx"], rows=int(tensors["rows"][0]))
