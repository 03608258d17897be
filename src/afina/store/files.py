"""Files written whole or not at all, and what a failure to write one means for the run."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from afina.errors import AfinaError, StorageError

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
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if said or shutil.disk_usage(path.parent).free < _FULL_BELOW:
            raise _full(path, error) from error
        raise


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when the process or the machine dies in the middle."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
            sync(path.parent)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for left in folder.rglob(f"{PARTIAL}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


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
