"""Where a study is kept: a journal in the run folder, or a database of Optuna's by its URL."""

import json
import os
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from afina.errors import StorageError
from afina.store.files import storing

JOURNAL = "study.journal"
_GRPC = "grpc"
# Seconds for a proxy to answer.
_PATIENCE = 5.0
# Packages that are named otherwise than the module which a database's URL makes SQLAlchemy import.
_PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}

# The journal's operation that sets the state of a trial.
_SET_STATE = 6
# How every line of a journal begins.
_BEGIN = b'{"op_code":'


class _Journal(JournalFileBackend):
    """Optuna's journal file, which waits for the disk only when the state of a trial changes.

    What a killed process wrote is kept in any case; when the machine itself dies, no finished trial is lost. Waiting
    for every parameter took most of the time of short trials.
    """

    def __init__(self, path: Path) -> None:
        self._journal_path, self._journal_lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self._journal_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations to the end of the file."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._journal_lock.acquire()
        try:
            with self._journal_path.open("ab") as file:
                file.write(text.encode())
                if any(log["op_code"] == _SET_STATE for log in logs):
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._journal_lock.release()


def open_storage(where: str | Path) -> BaseStorage:
    """The storage at `where`: a folder (its journal is made where it is missing), or a URL.

    A URL is that of a database, as in `postgresql://USER@HOST/NAME`, or `grpc://HOST:PORT` of a proxy of Optuna's
    (`optuna.storages.run_grpc_proxy_server`). The journal may be shared by several processes of one machine. A line
    that a killed process left half-written at its end is taken away.

    Raises:
        StorageError: the folder cannot be written, has a file of that name which is no journal, or the database cannot
            be reached.
    """
    if is_url(where):
        return _reached(str(where))
    path = Path(where) / JOURNAL
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _check(path)
        lock = JournalFileOpenLock(str(path))
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    try:
        return JournalStorage(_Journal(path))
    except (ValueError, KeyError, TypeError) as error:
        raise _no_journal(path, str(error)) from error


def is_url(where: str | Path) -> bool:
    """Whether it is the URL of a storage, not a folder."""
    return "://" in str(where)


def _reached(url: str) -> BaseStorage:
    """The storage at a URL."""
    try:
        return _proxy(url) if urlsplit(url).scheme == _GRPC else optuna.storages.get_storage(url)
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or "its driver"
        package = "'afina[grpc]'" if urlsplit(url).scheme == _GRPC else _PACKAGES.get(missing, missing)
        raise _unreachable(url, f"{missing} is not installed.", f"pip install {package}") from error
    except Exception as error:
        kinds = "Known are postgresql://, mysql+pymysql://, sqlite:/// and grpc://. "
        unknown = type(error).__name__ == "NoSuchModuleError"
        raise _unreachable(
            url,
            f"{type(error).__name__}: {error}".splitlines()[0],
            (kinds if unknown else "")
            + "Check the address and that the server runs, or leave it out: a file in the run folder is used.",
        ) from error


def _proxy(url: str) -> BaseStorage:
    import grpc  # noqa: F401  # Optuna would import it only at the first call

    place = urlsplit(url)
    if place.hostname is None or place.port is None:
        raise ValueError("it has no host or no port")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = GrpcStorageProxy(host=place.hostname, port=place.port)
    storage.wait_server_ready(timeout=_PATIENCE)
    return storage


def _unreachable(url: str, why: str, fix: str) -> StorageError:
    return StorageError(f"The storage {without_password(url)} cannot be reached.", why=why, fix=fix)


def _check(path: Path) -> None:
    """Raise `StorageError` where a file is no journal, before anything is cut off from it."""
    with path.open("rb") as file:
        begin = file.read(len(_BEGIN))
    if not _BEGIN.startswith(begin):
        raise _no_journal(path, "It does not begin with an operation of a journal.")


def _no_journal(path: Path, why: str) -> StorageError:
    return StorageError(
        f"{path} is not a journal of a study.", why=why, fix="Choose another folder, or move the file away."
    )


def _mend(path: Path) -> None:
    """Cut off what follows the last whole line of a journal: a line that a killed process did not finish."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            block = file.read(end - start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def without_password(where: str | Path) -> str:
    """A folder or URL without user, password and query, as it may be shown."""
    scheme, between, rest = str(where).rpartition("://")
    return f"{scheme}{between}{rest.rpartition('@')[2].partition('?')[0] if between else rest}"
