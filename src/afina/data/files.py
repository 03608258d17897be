"""Files of a folder or inside a zip, read by name; the zip is never extracted."""

import hashlib
import os
import posixpath
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from afina.data.decode import open_image
from afina.data.listing import ImageSource
from afina.errors import InputError, did_you_mean

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".gif", ".tif", ".tiff"),
        *(".tga", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# Formats in which an edit changes only the bytes of the pixels that it touches.
_UNCOMPRESSED = frozenset((".bmp", ".gif", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"))
_BLOCK = 16 * 1024  # bytes of each of the three blocks of a large file that are hashed
_CHUNK = 2**20
_LARGEST = 2**30  # bytes of one image file: beyond it, a zip entry is taken for a bomb


class Files(Protocol):
    """Names are relative, with `/` between the parts."""

    label: str

    @property
    def names(self) -> tuple[str, ...]:
        """All files, sorted, without hidden ones and system litter."""

    @property
    def empty_folders(self) -> tuple[str, ...]:
        """Folders with no file below them, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes:
        """Its content."""

    def signature(self, name: str) -> str:
        """A short text that changes when the content of the file does; the same for a copy elsewhere."""


class FileSource(ImageSource):
    """Images among `files`; keys are their names."""

    parallel, prepared, identified = True, False, True

    def __init__(self, files: Files) -> None:
        self.files = files

    def image(self, key: str) -> Any:
        return open_image(self.files.read(key))


class FolderFiles:
    """Files below a folder; symbolic links are followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name

    @cached_property
    def names(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(self._walk(self.root, "", frozenset())))
        except OSError as error:
            raise InputError(f"{self.root} cannot be read.", why=str(error), fix="Check its permissions.") from error

    @property
    def empty_folders(self) -> tuple[str, ...]:
        folders = (Path(folder).relative_to(self.root).as_posix() for folder, _, _ in os.walk(self.root))
        return _without_files(folders, self.names)

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def signature(self, name: str) -> str:
        return file_signature(self.root / name)

    def _walk(self, folder: Path, prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:  # a link to a folder that holds it
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_junk(entry.name):
                    continue
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/", above | {real})
                elif entry.is_file():
                    yield prefix + entry.name


class ZipFiles:
    """Files below `prefix` inside a zip. Safe with threads, and with processes: each opens the zip itself.

    Raises:
        InputError: the zip is broken or encrypted.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self.label = path.name + (f"/{prefix.rstrip('/')}" if prefix else "")
        self._lock = threading.Lock()
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._entries = self._list()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    @property
    def empty_folders(self) -> tuple[str, ...]:
        folders = (_tidy(entry.filename) for entry in self._archive().infolist() if entry.is_dir())
        below = (name[len(self.prefix) :] for name in folders if name.startswith(self.prefix))
        return _without_files(below, self.names)

    def has(self, name: str) -> bool:
        return posixpath.normpath(name) in self._entries

    def read(self, name: str) -> bytes:
        entry = self._entries[posixpath.normpath(name)]
        if entry.file_size > _LARGEST:
            raise ValueError("the file is too large to be an image")
        return self._archive().read(entry)

    def signature(self, name: str) -> str:
        entry = self._entries[posixpath.normpath(name)]
        return f"{entry.file_size}:{entry.CRC:08x}"

    def below(self, folder: str) -> "ZipFiles":
        """Only what is below that folder of the zip."""
        return ZipFiles(self.path, f"{folder.strip('/')}/" if folder.strip("/") else "")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _archive(self) -> zipfile.ZipFile:
        # An open file that a fork shares would have one position for both processes.
        with self._lock:
            if self._open is None or self._open[0] != os.getpid():
                self._open = (os.getpid(), zipfile.ZipFile(self.path))
            return self._open[1]

    def _list(self) -> dict[str, zipfile.ZipInfo]:
        try:
            entries = self._archive().infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"{self.path} is not a zip that can be read.",
                why=str(error),
                fix="Copy or download it again.",
            ) from error
        if any(entry.flag_bits & 0x1 for entry in entries):
            raise InputError(
                f"{self.path} is encrypted.", fix="Give a zip without a password, or the extracted folder."
            )
        tidied = ((_tidy(entry.filename), entry) for entry in entries if not entry.is_dir())
        return {
            name[len(self.prefix) :]: entry
            for name, entry in tidied
            if name.startswith(self.prefix) and not any(_is_junk(part) for part in name.split("/"))
        }


def _without_files(folders: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the folders that no file is in, or in a folder of which."""
    holding = {above.as_posix() for name in names for above in PurePosixPath(name).parents}
    tidied = {folder.strip("/") for folder in folders} - {"", "."}
    junk = {folder for folder in tidied if any(_is_junk(part) for part in folder.split("/"))}
    return tuple(sorted(tidied - holding - junk))


def find_files(path: Path) -> tuple[Files, str]:
    """The files at `path`, which may lead into a zip, and the table that it names ("" where it names none).

    Raises:
        InputError: there is nothing there, or it is not a folder, a zip or a CSV table.
    """
    if path.is_dir():
        return FolderFiles(path), ""
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return FolderFiles(path.parent), path.name
        if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            return ZipFiles(path), ""
        raise InputError(
            f"{path} is not data that Afina reads.",
            fix="Give a folder with train/CLASS/IMAGE, a .zip of one, a CSV table with the columns "
            "image,target, or the word digits.",
        )
    above = next(parent for parent in path.parents if parent.exists())
    if above.is_file():
        return _inside_zip(above, path.relative_to(above).as_posix())
    missing = path.relative_to(above).parts[0]
    entries = [entry.name for entry in above.iterdir()] if os.access(above, os.R_OK) else []
    siblings = [name for name in entries if not _is_junk(name)]
    raise InputError(
        f"{path} does not exist.",
        why="" if above / missing == path else f"There is no {missing} in {above}.",
        fix=did_you_mean(missing, siblings if path.parts[:-1] else [*siblings, "digits"]),
    )


def file_signature(path: Path) -> str:
    """Size and hash of a file: the same for a copy elsewhere, another one after an edit.

    Small files and uncompressed pictures are hashed as a whole. Of larger compressed ones (JPEG, PNG, WebP, ...) three
    blocks are: the first, the middle and the last 16 KiB, so that many images do not take long. What this does not
    notice: a change of a large compressed file that keeps its size and those three blocks. An edit of a PNG does not
    keep them (its checksum is at the end), that of a JPEG or WebP hardly ever. The modification time is not looked at,
    since a copy or a checkout of the same images has another one.

    Returns:
        `SIZE:HASH`; `SIZE:unreadable` where the file may not be read, which the pass over all images reports.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.png"
        ...     _ = path.write_bytes(b"abc")
        ...     file_signature(path)
        '3:cf4ab791c62b8d2b2109c90275287816'
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    whole = size <= 3 * _BLOCK or path.suffix.lower() in _UNCOMPRESSED
    try:
        with path.open("rb", buffering=0 if not whole else -1) as file:
            if whole:
                while block := file.read(_CHUNK):
                    digest.update(block)
            else:
                for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
    except OSError:
        return f"{size}:unreadable"
    return f"{size}:{digest.hexdigest()}"


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name alone."""
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def _inside_zip(archive: Path, inner: str) -> tuple[Files, str]:
    if archive.suffix.lower() != ".zip" and not zipfile.is_zipfile(archive):
        raise InputError(f"{archive} is a file, not a folder.", fix="Give a path that ends at it, or a folder.")
    files = ZipFiles(archive)
    if files.has(inner):
        if not inner.lower().endswith(".csv"):
            raise InputError(f"{inner} in {archive} is not a CSV table.", fix="Give the zip alone, or a .csv in it.")
        return files, posixpath.normpath(inner)
    if any(name.startswith(f"{inner}/") for name in files.names):
        return files.below(inner), ""
    candidates = [name for name in files.names if not is_image(name)] + [n.split("/")[0] for n in files.names]
    raise InputError(f"There is no {inner} in {archive}.", fix=did_you_mean(inner, candidates))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _tidy(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")
