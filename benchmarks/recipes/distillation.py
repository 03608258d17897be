"""What distillation gains: ResNet-20 pruned to half its MACs, one epoch of fine-tuning with and without a teacher.

    python benchmarks/recipes/distillation.py SHARED

Three seeds each (of the order of images and their variation) on the same pruned network. Rows in
`results/distillation.jsonl`; the last line printed is the mean gain over labels alone, and its spread.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "quantization"))

from common import Row, Rows, arguments
from subjects import Subject, open_subject

import afina
from afina.graph.network import Network
from afina.progress import PlainProgress
from afina.training import FitConfig, evaluate, fit
from afina.training.suited import RATES_OF_FINE_TUNING as RATES
from afina.training.suited import suited_batch

RUNS = Path(__file__).parents[2] / "runs" / "recipes"
SEEDS = (0, 1, 2)
WAYS = {
    "labels": None,
    "outputs": {},
    "outputs and features": {"features": "auto"},
    "outputs and attention": {"features": "auto", "feature_weight": 0.0, "attention_weight": 1.0},
}


class _Rows(Rows):
    libraries = ("afina", "torch")
    shown = ("accuracy", "failed")


def main() -> None:
    """Each way with each seed."""
    options = arguments(__doc__).parse_args()
    results = Path(__file__).with_name("results") / "distillation.jsonl"
    rows = _Rows(results, options.only, options.skip, options.again)
    subject = open_subject("resnet20", options.shared)
    for seed in SEEDS:
        for way in WAYS:
            rows.measure(f"{way}/{seed}", partial(row, subject, way, seed))
    whole = [way for way in WAYS if all(f"{way}/{seed}" in rows.found for seed in SEEDS)]
    found = {way: [rows.found[f"{way}/{seed}"]["accuracy"] for seed in SEEDS] for way in whole}
    for way, values in found.items() if "labels" in found else ():
        gains = [value - base for value, base in zip(values, found["labels"], strict=True)]
        print(f"{way:24} {mean(values):.4f}  gain {mean(gains):+.4f}, spread {stdev(gains):.4f}")


def row(subject: Subject, way: str, seed: int) -> Row:
    """The pruned network after one epoch."""
    config = FitConfig(
        epochs=1,
        optimizer="sgd",
        learning_rate=RATES["sgd"],
        batch_size=suited_batch(subject.data.count("train")),
        seed=seed,
    )
    chosen = WAYS[way]
    teacher = None if chosen is None else subject.network
    start = pruned(subject)
    tuned, _ = fit(start, subject.data, replace(config, **(chosen or {})), teacher=teacher, progress=PlainProgress())
    return {
        "accuracy": round(evaluate(tuned, subject.data).value, 4),
        "pruned": round(evaluate(start, subject.data).value, 4),
        "original": round(evaluate(subject.network, subject.data).value, 4),
    }


def pruned(subject: Subject) -> Network:
    """Half of the MACs, without training; kept."""
    path = RUNS / "resnet20-half.pt2"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        afina.prune(subject.network, subject.data, macs=0.5, progress=PlainProgress(every=60))[0].save(path)
    return Network.load(path)


if __name__ == "__main__":
    main()
