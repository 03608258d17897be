"""Samplers compared: `python benchmarks/search/run.py [--seeds 3] [--trials 200] [--tasks /7/ continuous]`.

Each run is a line of `results/runs.jsonl` with the best value so far at 25, 50, 100, 200 and 500 trials, the seconds
of processor time, the versions and the machine. Runs that are there are not made again, so it may be stopped at any
time. TTOpt and PROTES need `pip install ttopt==0.6.2 protes==0.3.12`, best in an environment of their own (they pin
an old numpy): with `PYTHONPATH=src`, `--methods ttopt protes protes-10`.
"""

import argparse
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import peers
import tables
import tasks

RESULTS = Path(__file__).with_name("results")
BUDGETS = (25, 50, 100, 200, 500)


def main() -> None:
    """Make the runs that are missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--tasks", nargs="*", default=[], help="parts that the task's name must have")
    parser.add_argument("--methods", nargs="+", default=list(peers.METHODS), choices=list(peers.METHODS))
    parser.add_argument("--file", type=Path, default=RESULTS / "runs.jsonl")
    given = parser.parse_args()
    for name, table in tables.TABLES.items():
        if name in tasks.names(given.tasks):
            table.make()
    done = {key(row) for row in read(given.file)}
    for seed in given.seeds:
        for name in tasks.names(given.tasks):
            for method in given.methods:
                row = {"task": name, "method": method, "seed": seed, "trials": given.trials}
                if key(row) not in done:
                    _run(row, given.file)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run the same as another."""
    return row["task"], row["method"], row["seed"], row["trials"]


def read(file: Path) -> list[dict[str, Any]]:
    """The runs in a file; a half-written last line is left out."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _run(row: dict[str, Any], file: Path) -> None:
    task, began = tasks.make(row["task"], row["seed"]), time.process_time()
    try:
        values = peers.run(row["method"], task, row["seed"], row["trials"])
    except ImportError as error:
        print(f"{row['method']} is left out: {error}")
        return
    best = np.fmin.accumulate(np.array(values, dtype=float))
    row["best"] = {str(b): float(best[min(b, len(best)) - 1]) for b in BUDGETS if b <= row["trials"]}
    row["minimum"] = task.minimum
    row["seconds"] = round(time.process_time() - began, 2)
    row |= {"date": time.strftime("%Y-%m-%d"), "processor": _processor(), "versions": _versions()}
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(row["task"], row["method"], row["seed"], row["seconds"], row["best"], flush=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("afina", "optuna", "numpy", "scipy", "torch", "cmaes", "ttopt", "protes", "jax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
