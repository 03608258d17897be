"""Where a study is kept: a journal in the run folder, or a database of Optuna's by its URL."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from afina.errors import StorageError
from afina.store import storing

JOURNAL = "study.journal"


# The journal's operation that sets the state of a trial.
_SET_STATE = 6


class _Journal(JournalFileBackend):
    """Optuna's journal file, which waits for the disk only when the state of a trial changes.

    What a killed process wrote is kept in any case; when the machine itself dies, no finished trial is lost. Waiting
    for every parameter took most of the time of short trials.
    """

    def __init__(self, path: Path) -> None:
        self._own_path, self._own_lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations to the end of the file."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()
        try:
            with self._own_path.open("ab") as file:
                file.write(text.encode())
                if any(log["op_code"] == _SET_STATE for log in logs):
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._own_lock.release()


def open_storage(where: str | Path) -> BaseStorage:
    """The storage at `where`: a folder (its journal is made where it is missing), or a URL such as `postgresql://...`.

    The journal may be shared by several processes of one machine. A line that a killed process left half-written
    at its end is taken away.

    Raises:
        StorageError: the folder cannot be written, or the database cannot be reached.
    """
    if "://" in str(where):
        try:
            return optuna.storages.get_storage(str(where))
        except Exception as error:
            raise StorageError(
                f"The storage {_without_password(str(where))} cannot be reached.",
                why=f"{type(error).__name__}: {error}".splitlines()[0],
                fix="Check the address and that the server runs, or leave it out: a file in the run folder is used.",
            ) from error
    path = Path(where) / JOURNAL
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        lock = JournalFileOpenLock(str(path))
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    try:
        return JournalStorage(_Journal(path))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is not a journal of a study.", why=str(error), fix="Choose another folder, or move the file away."
        ) from error


def _mend(path: Path) -> None:
    """Cut the file after its last whole line."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            block = file.read(end - start)
            found = block.rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
