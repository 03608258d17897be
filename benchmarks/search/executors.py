"""What searches cost beside their trials: two local workers beside one, and 10,000 cheap trials.

    python benchmarks/search/executors.py            # on a quiet machine

Rows in `results/executors.jsonl`. `workers`: trainings of a small network on digits, one thread each, by one process
and by two; the ratio of the time from the first trial's start to the last one's end, and of the whole wall time, which
has the start of the processes in it. `cheap`: seconds for each of 10,000 random trials of a function that costs
nothing.
"""

import csv
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1]))

import optuna
from common import Row, Rows, arguments

import afina
from afina.search import open_storage

TRIALS, EPOCHS = 24, 12
CHEAP = 10_000


class _Rows(Rows):
    libraries = ("afina", "optuna", "torch", "numpy")
    shown = ("ratio", "wall_ratio", "seconds_each", "last_thousand", "failed")


def main() -> None:
    """Both."""
    options = arguments(__doc__).parse_args([".", *sys.argv[1:]])
    rows = _Rows(Path(__file__).with_name("results") / "executors.jsonl", options.only, options.skip, options.again)
    rows.measure("workers", workers)
    rows.measure("cheap", cheap)


def workers() -> Row:
    """The same trials by one process and by two."""
    (one, whole_one), (two, whole_two) = _search(1), _search(2)
    return {
        "trials": TRIALS, "one": round(one, 1), "two": round(two, 1), "ratio": round(one / two, 2),
        "wall_ratio": round(whole_one / whole_two, 2),
    }  # fmt: skip


def _search(count: int) -> tuple[float, float]:
    """Seconds from the first trial's start to the last one's end, and of the whole call."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        afina.tune(
            "builtin:convnet", "digits", trials=TRIALS, epochs=EPOCHS, sampler="random", early_stopping="none",
            workers=count, out=folder,
        )  # fmt: skip
        wall = time.monotonic() - begun
        trials = optuna.load_study(study_name="search", storage=open_storage(folder)).trials
    starts, ends = [t.datetime_start for t in trials], [t.datetime_complete for t in trials]
    assert len(trials) == TRIALS
    return (max(filter(None, ends)) - min(filter(None, starts))).total_seconds(), wall


def cheap() -> Row:
    """A function that costs nothing."""
    space = {name: {"type": "float", "low": 0.0, "high": 1.0} for name in "abcde"}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        afina.tune(objective=lambda **x: sum(x.values()), space=space, sampler="random", trials=CHEAP, out=folder)
        seconds = time.monotonic() - begun
        with (Path(folder) / "trials.csv").open() as file:
            assert sum(1 for _ in csv.DictReader(file)) == CHEAP
        trials = optuna.load_study(study_name="search", storage=open_storage(folder)).trials
    starts = [t.datetime_start.timestamp() for t in trials if t.datetime_start]
    return {"seconds_each": round(seconds / CHEAP, 5), "last_thousand": round((starts[-1] - starts[-1000]) / 999, 5)}


if __name__ == "__main__":
    main()
