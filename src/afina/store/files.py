"""Files written whole or not at all, and what a failure to write one means for the run.

A file appears under its name in one step: its content is first written to a file beside it, whose name begins with
`PARTIAL` and is unlike that of any other writer, then flushed to the disk, and only then renamed. A process that dies
on the way leaves the old file and a partial one, which `sweep` removes; two processes that write the same file at once
leave the whole content of one of them. Permissions are those that the user's umask gives to any new file.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from afina.errors import AfinaError, InputError, StorageError

PARTIAL = ".partial-"
# Below this much free space, an error of a library that was writing a file is put down to the full disk.
_FULL_BELOW = 2**20


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a `StorageError` that says what it means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path, error) from error
        raise StorageError(
            f"{path} cannot be written.",
            why=error.strerror or str(error),
            fix="Choose another folder with --out.",
        ) from error


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Recognise a full disk in what a writer raised; anything else passes as it is.

    Not every library says ENOSPC (`torch.save` raises a RuntimeError), so the free space is looked at too.
    """
    try:
        yield
    except AfinaError:
        raise
    except Exception as error:
        says_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if says_full or shutil.disk_usage(path.parent).free < _FULL_BELOW:
            raise _full(path, error) from error
        raise


def check_target(path: Path, option: str, suffix: str = "", *, makes_folder: bool = False) -> None:
    """Check that a file can be written, before the work begins that it will be the result of.

    Args:
        path: The file that will be written.
        option: The option that names it, for the text of an error: `--out`.
        suffix: The suffix that its name must have; empty for any.
        makes_folder: Whether its folder is made where it does not exist.

    Raises:
        InputError: the path has another suffix or is a folder, or no file can be written there.
    """
    if suffix and path.suffix != suffix:
        better = f"Write {option} {path.with_suffix(suffix)}" if path.name else "Give a file."
        raise InputError(f"{option} {path} does not end in {suffix}.", fix=better)
    folder = path.parent
    try:
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder.", fix="Give a file.")
        while makes_folder and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{option} {path}: there is no folder {folder}.", fix="Make it first, or give another.")
        # Tried, since permissions alone do not tell: a file system may be read-only, or not take files at all.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path} cannot be written.", why=error.strerror or str(error), fix="Give another folder."
        ) from error


def check_folder(folder: Path, option: str) -> None:
    """Check that a folder can be made and written into, before the work begins whose results it will hold.

    Args:
        folder: The folder, which need not exist yet.
        option: The option that names it, for the text of an error: `--out`.

    Raises:
        InputError: the path or a part of it is a file, or no file can be written there.
    """
    nearest = folder.expanduser().absolute()
    try:
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise InputError(f"{option} {folder}: {nearest} is a file, not a folder.", fix="Give another folder.")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {folder} cannot be written.", why=error.strerror or str(error), fix="Give another folder."
        ) from error


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when the process or the machine dies in the middle.

    The folders above it are made where they are missing.

    Raises:
        StorageError: it cannot be written, or the disk is full; what was there before is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder) / "new" / "greeting.txt", b"hello")
        ...     (Path(folder) / "new" / "greeting.txt").read_text()
        'hello'
    """
    with storing(path), _replacing(path) as file:
        file.write(data)


def copy(source: Path, target: Path) -> None:
    """Copy a file of any size whole or not at all, as `write` does; several processes may copy to one target.

    Raises:
        FileNotFoundError: there is no file `source`.
        StorageError: `target` cannot be written, or the disk is full; what was there before is as it was.
    """
    with source.open("rb") as content, storing(target), _replacing(target) as file:
        shutil.copyfileobj(content, file)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well, and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for partial in folder.rglob(f"{PARTIAL}*"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _full(path: Path, error: Exception) -> StorageError:
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    reason = "The disk quota is used up" if quota else "No space is left on the device"
    return StorageError(
        f"The disk is full: {path} could not be written.",
        why=f"{reason}. What was finished before is kept.",
        fix="Free some space and run the same command again: it resumes after the last finished stage.",
    )
