"""A live study: short trainings on CIFAR-10, whose 7 parameters each sampler searches with the same few trials.

    python benchmarks/search/live.py SHARED [--trials 30] [--seeds 0 1] [--samplers random tpe gp tensor-train]

Every trial is a training of `builtin:convnet` for 3 epochs on 4,000 training images, judged on 1,000 others; it takes
some seconds, and none is stopped early, so that samplers alone differ. Rows in `results/live.jsonl`, one for each
sampler and seed: best accuracy after 10, 20 and 30 trials, and seconds of the trials and of the sampler. Studies are
kept in `runs/`, so that a run that was cut off goes on. Then `--table` prints the means.
"""

import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from common import Row, Rows, arguments

import afina
from afina.data import ImageData, open_data
from afina.progress import PlainProgress
from afina.search import open_storage

RUNS = Path(__file__).parents[2] / "runs" / "search"
SPACE = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 0.5, "log": True},
    "weight_decay": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "batch_size": {"type": "int", "low": 16, "high": 256, "log": True},
    "label_smoothing": {"type": "float", "low": 0.0, "high": 0.2},
    "optimizer": ["sgd", "adamw"],
    "model.width": {"type": "int", "low": 4, "high": 24, "log": True},
    "model.kernel_size": [3, 5],
    "epochs": 3,
    "ema": 0.9,
}
# Share of the training images, and of those the part that judges.
_SHARE, _FOLDS = 0.1, 5
_AT = (10, 20, 30)


class _Rows(Rows):
    libraries = ("afina", "optuna", "torch")
    shown = ("best", "trials", "failed")


def main() -> None:
    """The rows, or their table."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe", "gp", "tensor-train"])
    parser.add_argument("--table", action="store_true", help="print the means of the rows that are there")
    given = parser.parse_args()
    rows = _Rows(Path(__file__).with_name("results") / "live.jsonl", given.only, given.skip, given.again)
    if given.table:
        _print(rows)
        return
    data = open_data(str(given.shared / "data" / "cifar10-jpeg.zip"), seed=0, progress=PlainProgress(every=60))
    data = data.with_share(_SHARE).fold(0, _FOLDS)
    for seed in given.seeds:
        for sampler in given.samplers:
            rows.measure(f"{sampler}/{seed}/{given.trials}", partial(study, sampler, seed, given.trials, data))


def study(sampler: str, seed: int, trials: int, data: ImageData) -> Row:
    """One search."""
    out = RUNS / f"live-{sampler}-{seed}-{trials}"
    result = afina.tune(
        "builtin:convnet", data, space=SPACE, sampler=sampler, trials=trials, early_stopping="none", seed=seed,
        out=out, progress=PlainProgress(every=60),
    )  # fmt: skip
    import optuna

    found = optuna.load_study(study_name="search", storage=open_storage(out)).trials
    values = [trial.value if trial.value is not None else np.nan for trial in found]
    best = np.fmax.accumulate(values)
    return {
        "best": {str(at): round(float(best[at - 1]), 4) for at in _AT if at <= len(best)},
        "values": [round(float(value), 4) for value in values],
        "trials": result.trials,
        "training": round(sum(t.duration.total_seconds() for t in found if t.duration is not None), 1),
    }


def _print(rows: Rows) -> None:
    """Mean best accuracy of each sampler over its seeds."""
    by = defaultdict(list)
    for name, row in rows.found.items():
        if str(_AT[-1]) in row.get("best", {}):
            by[name.split("/")[0]].append(row["best"])
    print("| sampler | seeds | " + " | ".join(f"{at} trials" for at in _AT) + " |\n| --- | --- |" + " --- |" * len(_AT))
    for sampler, found in sorted(by.items()):
        means = [np.mean([best[str(at)] for best in found]) for at in _AT]
        print(f"| {sampler} | {len(found)} | " + " | ".join(f"{mean:.2%}" for mean in means) + " |")


if __name__ == "__main__":
    main()
