"""The process that measures: `python -m afina.devices.worker`, one request as JSON in, one answer as JSON out.

It is started fresh for each measurement, so that nothing of the job (its memory, its threads, torch) is in the
figures. It does not import torch unless a `.pt2` file is measured.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from afina.errors import AfinaError
from afina.runtimes.base import Session
from afina.runtimes.table import runtime_of

_TURN = 0.003  # seconds that one turn of one file takes at least: long against reading the clock and switching files
_MOST_RUNS = 100  # in one turn
_WARM_UP = 0.2  # seconds per file
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 400
_STABLE = 0.005  # relative standard error of every ratio to the first file at which more rounds say nothing new
_CHECK_EVERY = 10


def main() -> None:
    """Read the request, measure, write the answer."""
    # Native libraries may write to standard output: they get standard error, the answer keeps the real one.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    try:
        result: dict[str, Any] = {"result": _KINDS[request.pop("kind")](**request)}
    except AfinaError as error:
        result = {"error": {"what": error.what, "why": error.why, "fix": error.fix, "exit_code": error.exit_code}}
    answer.write(json.dumps(result))
    answer.close()


def latency(artifacts: dict[str, str], shape: list[int], threads: int, batch: int, seconds: float) -> Any:
    """Seconds that one run of each file takes: `{name: {value, spread, n}}`.

    In each round every file has one turn of a few runs, in random order, so that whatever else the machine does falls
    on all of them alike. A turn starts with a run that is not counted: the caches hold what another file has read.

    Returns:
        For each file the median over its turns, half their interquartile range, and the number of runs counted.
    """
    images = _images(shape, batch)
    runs = {
        name: _bound(runtime_of(path).load(Path(path), threads=threads), images) for name, path in artifacts.items()
    }
    counts = {name: _runs_in_a_turn(_warm_up(run)) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, generator = list(runs), random.Random(0)
    stop = time.perf_counter() + seconds
    for done in range(1, _MOST_ROUNDS + 1):
        generator.shuffle(order)
        for name in order:
            runs[name]()
            times[name].append(_time(runs[name], counts[name]))
        if done < _FEWEST_ROUNDS:
            continue
        if time.perf_counter() > stop or (done % _CHECK_EVERY == 0 and _is_stable(list(times.values()))):
            break
    return {name: {**_summary(turns), "n": len(turns) * counts[name]} for name, turns in times.items()}


def memory(path: str, shape: list[int], threads: int) -> Any:
    """Bytes that loading the file and running one image add to the process at their peak: `{value, n}`."""
    runtime = runtime_of(path)
    runtime.start()
    images = _images(shape, 1)
    before = _reset_peak()
    session = runtime.load(Path(path), threads=threads)
    runs = 3  # the second and third run may use memory that the first one only plans
    for _ in range(runs):
        session(images)
    return {"value": max(_peak() - before, 0), "n": runs}


_KINDS: dict[str, Callable[..., Any]] = {"latency": latency, "memory": memory}


def _images(shape: list[int], batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def _bound(session: Session, images: np.ndarray) -> Callable[[], object]:
    return lambda: session(images)


def _warm_up(run: Callable[[], object]) -> float:
    """Run until caches, clocks and lazy set-up have settled; the seconds of one run."""
    run()
    start = time.perf_counter()
    times: list[float] = []
    while time.perf_counter() - start < _WARM_UP or len(times) < 3:
        times.append(_time(run, 1))
    return float(np.median(times))


def _runs_in_a_turn(seconds: float) -> int:
    return max(1, min(_MOST_RUNS, round(_TURN / seconds)))


def _time(run: Callable[[], object], count: int) -> float:
    """Seconds of one run, the mean of `count` in a row: the clock is read once for all of them."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def _is_stable(times: list[list[float]]) -> bool:
    """Whether the median ratio of each file to the first (of one file: its median) is known closely enough."""
    logs = np.log(np.asarray(times))
    ratios = logs[1:] - logs[:1] if len(logs) > 1 else logs
    low, high = np.percentile(ratios, [25, 75], axis=1)
    # Standard error of a median, from the interquartile range of a normal distribution.
    errors = 1.2533 * (high - low) / 1.349 / np.sqrt(logs.shape[1])
    return bool(errors.max() < _STABLE)


def _summary(times: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return {"value": float(middle), "spread": float(high - low) / 2}


def _reset_peak() -> int:
    """Start counting the peak anew where the system can (Linux); bytes of resident memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    """Largest resident memory of this process since the last reset, in bytes."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
