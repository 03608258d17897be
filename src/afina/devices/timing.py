"""Latency and memory of exported files, measured in a process of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afina.errors import AfinaError, InputError
from afina.runtimes.table import runtime_of
from afina.types import Measurement

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TIMEOUT = 3600.0
_LAST_LINES = 5


def measure_latency(
    artifacts: Mapping[str, Path], shape: tuple[int, int, int], *, threads: int, batch: int = 1, seconds: float = 10.0
) -> dict[str, Measurement]:
    """Seconds that one run of each file takes, all measured together in one fresh process.

    The files take turns in random order, until the ratio of each one to the first is known to half a percent or
    `seconds` have passed (five rounds at least): a noisy machine disturbs all of them alike, so that it does not
    decide between them.

    Args:
        artifacts: Files by name; for one measurement, files of one runtime are the fair choice.
        shape: Channels, height, width of an image.
        threads: Threads that the runtime may use.
        batch: Images in one run.
        seconds: When to stop at the latest, not counting loading and warm-up.

    Returns:
        For each name the median over turns, with half the interquartile range as its spread.

    Raises:
        InputError: a file is missing or broken, or its runtime is not installed.
        AfinaError: the process died; the message holds the last lines of its error output.
    """
    if not artifacts:
        return {}
    _check_counts(threads=threads, batch=batch)
    paths = {name: str(Path(path).absolute()) for name, path in artifacts.items()}
    request = {"kind": "latency", "artifacts": paths, "shape": shape, "threads": threads, "batch": batch}
    results = _ask({**request, "seconds": seconds}, threads)
    conditions = f"{_count(threads, 'thread')}, batch {batch}"
    return {
        name: Measurement(
            value=results[name]["value"],
            unit="s",
            how="measured",
            spread=results[name]["spread"],
            n=results[name]["n"],
            where=f"{_runtime_label(path)}, {conditions}",
        )
        for name, path in artifacts.items()
    }


def measure_memory(path: Path, shape: tuple[int, int, int], *, threads: int) -> Measurement:
    """Bytes of resident memory that loading the file and running one image add at their peak, in a fresh process.

    What the runtime itself takes (its code, loaded before the file) is not counted.

    Args:
        path: The file.
        shape: Channels, height, width of an image.
        threads: Threads that the runtime may use.

    Raises:
        InputError, AfinaError: as in `measure_latency`.
    """
    _check_counts(threads=threads)
    request = {"kind": "memory", "path": str(Path(path).absolute()), "shape": shape, "threads": threads}
    result = _ask(request, threads)
    where = f"{_runtime_label(path)}, {_count(threads, 'thread')}, batch 1, above the runtime alone"
    return Measurement(result["value"], "B", "measured", n=result["n"], where=where)


def _ask(request: dict[str, Any], threads: int) -> Any:
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", "afina.devices.worker"]
    try:
        process = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise AfinaError(f"Measuring took more than {_TIMEOUT / 60:.0f} minutes and was stopped.") from error
    if process.returncode != 0 or not process.stdout:
        raise _death(process.returncode, process.stderr)
    answer = json.loads(process.stdout)
    if "error" in answer:
        details = answer["error"]
        kind = InputError if details["exit_code"] == InputError.exit_code else AfinaError
        raise kind(details["what"], details["why"], details["fix"])
    return answer["result"]


def _death(code: int, stderr: str) -> AfinaError:
    last = " ".join(line.strip() for line in stderr.splitlines()[-_LAST_LINES:] if line.strip())
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        memory = " The system does this to a process that takes too much memory." if name == "SIGKILL" else ""
        return AfinaError(f"The process that measures was killed ({name}).", why=f"{last}{memory}".strip())
    return AfinaError(f"The process that measures ended with exit code {code}.", why=last or "It said nothing.")


def _runtime_label(path: Path) -> str:
    runtime = runtime_of(path)
    return f"{runtime.package} {runtime.version()}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}.", fix=f"Give {name} of 1 or more.")
