"""Tables of real trainings: small networks on scikit-learn's digits, with every combination of their parameters.

A table is made once (two minutes on one core for the perceptron, half an hour for the convolutional network) and kept
in `results/`, so that a study costs nothing but its sampler. The value is the cross-entropy on the validation images,
in nats; a training that diverged has `nan`.
"""

import csv
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import digits_convnet
import digits_mlp
import numpy as np


@dataclass(frozen=True)
class Table:
    """The trainings of one module, which has `CHOICES` and `train`."""

    name: str
    module: ModuleType

    @property
    def choices(self) -> dict[str, list[Any]]:
        """The values of each parameter."""
        found: dict[str, list[Any]] = self.module.CHOICES
        return found

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return Path(__file__).with_name("results") / f"{self.name}.csv"

    def make(self) -> None:
        """Fill the table; rows that are there are kept."""
        combinations = list(itertools.product(*self.choices.values()))
        done = set(read(self)) if self.file.exists() else set()
        if len(done) == len(combinations):
            return
        read.cache_clear()
        data = _digits()
        with self.file.open("a", newline="", buffering=1) as file:
            writer = csv.writer(file)
            if not done:
                writer.writerow([*self.choices, "loss"])
            for combination in combinations:
                if combination not in done:
                    loss = self.module.train(dict(zip(self.choices, combination, strict=True)), *data)
                    writer.writerow([*combination, f"{loss:.5f}"])


@cache
def read(table: Table) -> dict[tuple[Any, ...], float]:
    """The loss of each combination, in the order of the table's choices."""
    with table.file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [type(values[0]) for values in table.choices.values()]
    return {tuple(k(r[n]) for k, n in zip(kinds, table.choices, strict=True)): float(r["loss"]) for r in rows}


def _digits() -> tuple[Any, Any, Any, Any]:
    """Images and labels to train on, and to judge by."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order] / 16.0 - 0.3, labels[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


TABLES = {
    name: Table(name, module) for name, module in (("digits-mlp", digits_mlp), ("digits-convnet", digits_convnet))
}
