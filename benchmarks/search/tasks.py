"""The tasks of the benchmark: synthetic functions and real tables, each with its parameters and its minimum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import tables
from functions import FUNCTIONS, Synthetic
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

GRID = 32


@dataclass(frozen=True)
class Task:
    """A function of named parameters that is minimised.

    Attributes:
        name: Such as `ackley/7/rotated/continuous`.
        space: Distribution of each parameter.
        function: From parameters to the value; NaN where it fails.
        minimum: The least value there is.
    """

    name: str
    space: dict[str, BaseDistribution]
    function: Callable[[dict[str, Any]], float]
    minimum: float


def names(groups: list[str]) -> list[str]:
    """Names of the tasks of these groups: parts of names, such as `/7/`, `rotated`, `digits`; all must be in it."""
    synthetic = [
        f"{name}/{d}/{kind}/{scale}"
        for d in (7, 10)
        for scale in ("continuous", "grid")
        for kind in ("plain", "rotated")
        for name in FUNCTIONS
    ]
    return [name for name in [*synthetic, *tables.TABLES] if all(group in name for group in groups)]


def make(name: str, seed: int) -> Task:
    """The task `name`; the seed shifts and rotates synthetic ones."""
    if name in tables.TABLES:
        return _of_table(tables.TABLES[name])
    function, size, kind, scale = name.split("/")
    d, grid = int(size), GRID if scale == "grid" else 0
    call = Synthetic(function, d, kind == "rotated", grid, seed)
    keys = [f"x{j:02d}" for j in range(d)]
    if grid:
        space: dict[str, BaseDistribution] = {k: IntDistribution(0, grid - 1) for k in keys}
        return Task(name, space, lambda p: call(np.array([p[k] / (grid - 1) for k in keys])), 0.0)
    space = {k: FloatDistribution(0, 1) for k in keys}
    return Task(name, space, lambda p: call(np.array([p[k] for k in keys])), 0.0)


def _of_table(table: tables.Table) -> Task:
    losses = tables.read(table)
    space: dict[str, BaseDistribution] = {}
    for key, values in table.choices.items():
        numeric = not isinstance(values[0], str)
        space[key] = IntDistribution(0, len(values) - 1) if numeric else CategoricalDistribution(values)

    def loss(p: dict[str, Any]) -> float:
        return losses[tuple(table.choices[k][p[k]] if isinstance(p[k], int) else p[k] for k in space)]

    return Task(table.name, space, loss, float(np.nanmin(list(losses.values()))))


optuna.logging.set_verbosity(optuna.logging.ERROR)
