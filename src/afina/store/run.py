"""`Run`: the run folder, its lock, its stages and its log.

A folder holds `config.yaml` (the options, the command and the version), one record in `stages/` for each
stage that is finished, the files that the stages wrote, `log.txt`, and at the end `result.json`. The story of a run:

1. `Run.open` locks the folder and writes `config.yaml`; or finds one there, and takes up that run if all options are
   the same. A run with other options, or one of an earlier version that had other options, is refused by name.
2. For each stage, `done` gives what was recorded when it finished, if every file of it is still whole (size and
   checksum). Otherwise the stage is worked through, and `finish` records it in one atomic step. A process that is
   killed therefore loses the stage that it was in, and nothing else.
3. `result` writes `result.json` last: where it is, the rest is there.
"""

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import yaml

from afina.errors import InputError, first_lines
from afina.store.files import PARTIAL, checksum, full_disk, storing, sweep, sync, write
from afina.store.result import CONFIG_FILE, RESULT_FILE, to_plain
from afina.types import Result

LOG_FILE = "log.txt"
_FORMAT = "afina/run/1"
_FORMATS = "afina/run/"
_STAGES = "stages"
_LOCK = ".lock"
_VOLATILE = "_volatile"
# Keys of a configuration that hold the options of the command line, under the names that they have there.
_GROUPS = frozenset(("budget",))
# Keys that are no options, in the words of the command line.
_NO_OPTIONS = {"model": "MODEL", "recipe": "RECIPE", "fingerprint": "the content of --data"}
_MOST_SHOWN = 8
_MISSING = object()
# Folders that this process holds: a POSIX record lock does not stop the process that has it already.
_HELD: set[Path] = set()


class Run:
    """One run folder, locked for this process; made by `Run.open`, and used in a `with` block.

    Attributes:
        folder: The run folder, absolute.
        resumed: Whether the folder held a run of the same configuration before.
    """

    def __init__(self, folder: Path, lock: int, resumed: bool) -> None:
        self.folder, self.resumed, self._lock = folder, resumed, lock

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, argv: str) -> "Run":
        """Create the run folder, or take up the run that it holds.

        Args:
            path: The folder; created with its parents where it is missing.
            config: The resolved configuration, plain values. `config["_volatile"]` lists keys that may differ
                between the first run and a resumed one (such as `quiet`).
            argv: The command, as the user would type it again.

        Raises:
            InputError: the folder holds something else, a run with another configuration (the options that differ
                are named as on the command line), a run of an earlier version, or a run that another process works on.
            StorageError: the folder cannot be written, or the disk is full.

        Example:
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with Run.open(folder, {"model": "resnet18", "seed": 0}, argv="afina optimize resnet18") as run:
            ...         run.finish("train", {"epochs": 3})
            ...     with Run.open(folder, {"model": "resnet18", "seed": 0}, argv="afina optimize resnet18") as run:
            ...         print(run.resumed, run.done("train"), run.done("export"))
            True {'epochs': 3} None
        """
        folder = Path(path).expanduser().resolve()
        _make_folder(folder)
        lock = _acquire(folder)
        try:
            resumed = (folder / CONFIG_FILE).exists()
            if resumed:
                _check_same(folder, config)
            else:
                about = {
                    "format": _FORMAT,
                    "version": _version(),
                    "command": argv,
                    "config": _plain_config(config),
                }
                text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
                write(folder / CONFIG_FILE, text.encode())
            sweep(folder)
        except BaseException:
            _release(folder, lock)
            raise
        return cls(folder, lock, resumed)

    def close(self) -> None:
        """Release the folder to other processes; more than once does no harm."""
        if self._lock >= 0:
            _release(self.folder, self._lock)
            self._lock = -1

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, name: str) -> Path:
        """The path of the file `name` (relative, `/` between folders) in the run folder; its folder is created.

        Raises:
            ValueError: the name leads out of the run folder.
        """
        path = Path(os.path.normpath(self.folder / name))
        if self.folder not in path.parents:
            raise ValueError(f"{name!r} is not a name inside the run folder")
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, stage: str) -> dict[str, Any] | None:
        """The value that `finish` recorded for `stage`; None where it is not finished or a file of it is not whole."""
        record = _read_record(self._record(stage))
        if record is None or record["stage"] != stage:
            return None
        if all(self._is_whole(name, about) for name, about in record["files"].items()):
            return cast(dict[str, Any], record["value"])
        return None

    def finish(self, stage: str, value: Mapping[str, Any], files: Iterable[str] = ()) -> None:
        """Record that `stage` is finished, with its outcome, in one atomic step.

        Args:
            stage: Name of the stage, any text.
            value: Plain values (see `to_plain` for dataclasses); `done` gives them back.
            files: Names in the run folder of the files that the stage wrote. They must be whole by now; their
                sizes and checksums are recorded, and `done` checks them.
        """
        about = {}
        for name in files:
            path = self.path(name)
            with storing(path):
                sync(path)
                about[name] = {"size": path.stat().st_size, "sha256": checksum(path)}
        record = {"stage": stage, "time": _now(), "value": to_plain(dict(value)), "files": about}
        write(self._record(stage), json.dumps(record, indent=1, allow_nan=False).encode())

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write the file `name` to; it is moved into place when the block ends well.

        The path has the same file name and lies in a folder of its own, so a writer may put other files
        beside it (`.bin` beside `.xml`): they move too, before it. When the block fails, nothing is moved.
        """
        target = self.path(name)
        with storing(target):
            scratch = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.folder))
        try:
            with full_disk(target):
                yield scratch / target.name
            with storing(target):
                for part in sorted(scratch.iterdir(), key=lambda part: part.name == target.name):
                    sync(part)
                    os.replace(part, target.parent / part.name)
                sync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def log(self, text: str) -> None:
        """Append `text` to `log.txt`, each line with the time."""
        now = _now()
        lines = "".join(f"{now} {line}\n" for line in text.splitlines() or [""])
        path = self.folder / LOG_FILE
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def result(self, result: Result) -> Path:
        """Write `result.json`; returns its path."""
        text = json.dumps(to_plain(result), indent=2, ensure_ascii=False, allow_nan=False)
        write(self.folder / RESULT_FILE, text.encode())
        return self.folder / RESULT_FILE

    def _record(self, stage: str) -> Path:
        return self.path(f"{_STAGES}/{quote(stage, safe=' ')}.json")

    def _is_whole(self, name: str, about: Mapping[str, Any]) -> bool:
        path = self.folder / name
        try:
            return bool(path.stat().st_size == about["size"] and checksum(path) == about["sha256"])
        except OSError:
            return False


def read_config(path: str | Path) -> tuple[dict[str, Any], str]:
    """The resolved configuration of the run in folder `path`, and its command.

    Raises:
        InputError: there is none, it cannot be read, or it was not written by Afina, or by a version whose run
            folders this one cannot take up.
    """
    about = _read_about(Path(path))
    return about["config"], str(about.get("command", ""))


def option_name(key: str) -> str:
    """How a key of a configuration is spelled on the command line; inner keys are joined to outer ones with a dot.

    Example:
        >>> option_name("keep_fp32"), option_name("budget.max_drop"), option_name("model")
        ('--keep-fp32', '--max-drop', 'MODEL')
        >>> option_name("hyperparameters.options.momentum")
        '--hyperparameters (options.momentum)'
    """
    if key in _NO_OPTIONS:
        return _NO_OPTIONS[key]
    outer, _, inner = key.partition(".")
    if outer in _GROUPS and inner:
        outer, _, inner = inner.partition(".")
    return f"--{outer.replace('_', '-')}{f' ({inner})' if inner else ''}"


def _read_about(folder: Path) -> dict[str, Any]:
    """The content of `config.yaml`: at least `format` and `config`, in runs of 0.1.0 no `version`."""
    file = folder / CONFIG_FILE
    remedy = f"Choose another folder with --out, or remove {folder}."
    try:
        about = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{file} cannot be read.", why=first_lines(error), fix=remedy) from error
    stored_format = about.get("format") if isinstance(about, dict) else None
    if stored_format != _FORMAT and str(stored_format).startswith(_FORMATS):
        raise InputError(
            f"{folder} holds a run of another version of Afina.",
            why=f"Its format is {stored_format!r}, and this version ({_version()}) takes up {_FORMAT!r}.",
            fix=f"Go on with the version that made it. Or: {remedy[0].lower()}{remedy[1:]}",
        )
    if stored_format != _FORMAT or not isinstance(about.get("config"), dict):
        raise InputError(f"{folder} is not the folder of a run.", f"{file} was not written by Afina.", remedy)
    return cast(dict[str, Any], about)


def _make_folder(folder: Path) -> None:
    another = "Choose another folder with --out."
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file, not a folder.", fix=another)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    # A process that was killed right after it made the folder leaves only these.
    others = {name for name in names if name != _LOCK and not name.startswith(PARTIAL)}
    if others and CONFIG_FILE not in names:
        shown = ", ".join(sorted(others)[:3])
        raise InputError(f"--out {folder} holds other files and is not a run.", f"It has: {shown}.", another)


def _acquire(folder: Path) -> int:
    """Lock the folder for this process. The system drops the lock when the process ends, however it ends."""
    path = folder / _LOCK
    with storing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666) if folder not in _HELD else -1
    if handle < 0:
        raise _busy(folder, str(os.getpid()))
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _busy(folder, pid) from error
        with storing(path):
            raise
    with storing(path):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    _HELD.add(folder)
    return handle


def _release(folder: Path, lock: int) -> None:
    _HELD.discard(folder)
    os.close(lock)


def _busy(folder: Path, pid: str) -> InputError:
    return InputError(
        f"Another process works in {folder}.",
        why=f"Process {pid or 'of unknown id'} has it open.",
        fix="Wait until it ends or stop it, or choose another folder with --out.",
    )


def _check_same(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run whose configuration is another one, or that an earlier version with other options has made."""
    about = _read_about(folder)
    stored_config, current_config = about["config"], _plain_config(config)
    volatile = set(config.get(_VOLATILE, ()))
    before, now = (
        _flat({key: value for key, value in plain.items() if key not in volatile})
        for plain in (stored_config, current_config)
    )
    keys = [key for key in {**before, **now} if before.get(key, _MISSING) != now.get(key, _MISSING)]
    if not keys:
        return
    shown = "; ".join(
        f"{option_name(key)}: {_shown(before, key)} there, {_shown(now, key)} now" for key in keys[:_MOST_SHOWN]
    )
    more = f"; and {len(keys) - _MOST_SHOWN} more" if len(keys) > _MOST_SHOWN else ""
    version, command = about.get("version"), about.get("command")
    if version != _version() and (stored_config.keys() ^ current_config.keys()) - volatile:
        # Its own command would not resume it either: this version records other options than that one did.
        raise InputError(
            f"{folder} holds a run of another version of Afina, which does not have the same options.",
            f"It was made by {f'version {version}' if version else 'an earlier version'}, this is {_version()}. "
            f"They differ in {shown}{more}.",
            f"Choose another folder with --out, or remove {folder} and start again.",
        )
    again = f", or repeat its own command to resume it: {command}" if command else "."
    raise InputError(
        f"{folder} holds a run with other settings.",
        f"They differ in {shown}{more}.",
        f"Choose another folder with --out{again}",
    )


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("afina")
    except importlib.metadata.PackageNotFoundError:  # run from the source, not installed
        return "unknown"


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = to_plain({key: value for key, value in config.items() if key != _VOLATILE})
    return cast(dict[str, Any], plain)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, whose keys are joined with dots."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"stage", "value", "files"} <= record.keys()
    return record if whole else None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
