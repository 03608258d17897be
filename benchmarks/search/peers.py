"""The methods that are compared: each runs a task and gives the values in the order in which it asked for them."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from tasks import GRID, Task


class _Enough(Exception):
    """The budget is spent."""


def run(method: str, task: Task, seed: int, trials: int) -> list[float]:
    """The values of `trials` evaluations; NaN where one failed.

    Raises:
        ImportError: the library of the method is not installed.
    """
    return METHODS[method](task, seed, trials)


def _study(make: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[Task, int, int], list[float]]:
    def play(task: Task, seed: int, trials: int) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=make(seed))
            values = []
            for _ in range(trials):
                trial = study.ask(task.space)
                value = task.function(trial.params)
                values.append(value)
                failed = not np.isfinite(value)
                study.tell(trial, None if failed else value, state=optuna.trial.TrialState.FAIL if failed else None)
        return values

    return play


def _ours(seed: int) -> optuna.samplers.BaseSampler:
    from afina.search import TensorTrainSampler

    return TensorTrainSampler(seed=seed)


def _levels(space: dict[str, BaseDistribution]) -> list[list[Any]]:
    """The values of each parameter on a grid, for methods that know nothing else."""
    grids: list[list[Any]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            grids.append(list(distribution.choices))
        elif isinstance(distribution, IntDistribution):
            grids.append(list(range(distribution.low, distribution.high + 1)))
        else:
            assert isinstance(distribution, FloatDistribution)
            grids.append(list(np.linspace(distribution.low, distribution.high, GRID)))
    return grids


class _Counter:
    """Answers batches of indices, below `size` for each parameter, and stops at the budget."""

    def __init__(self, task: Task, size: int, trials: int) -> None:
        self.task, self.size, self.trials = task, size, trials
        self.grids, self.values = _levels(task.space), list[float]()

    def __call__(self, rows: Any) -> Any:
        out = []
        for row in np.asarray(rows):
            if len(self.values) >= self.trials:
                raise _Enough
            picked = [g[int(i) * len(g) // self.size] for g, i in zip(self.grids, row, strict=True)]
            self.values.append(self.task.function(dict(zip(self.task.space, picked, strict=True))))
            out.append(self.values[-1])
        worst = max((v for v in self.values if np.isfinite(v)), default=1.0)
        return np.nan_to_num(np.array(out), nan=worst)


def _ttopt(task: Task, seed: int, trials: int) -> list[float]:
    from ttopt import TTOpt

    counter = _Counter(task, GRID, trials)
    with contextlib.suppress(_Enough):
        TTOpt(counter, d=len(task.space), n=GRID, evals=trials, is_func=False, is_vect=True).optimize(rank=4, seed=seed)
    return counter.values


def _protes(batch: int) -> Callable[[Task, int, int], list[float]]:
    def play(task: Task, seed: int, trials: int) -> list[float]:
        from protes import protes

        counter = _Counter(task, GRID, trials)
        with contextlib.suppress(_Enough):
            protes(counter, len(task.space), GRID, trials + batch, k=batch, k_top=max(1, batch // 10), seed=seed)
        return counter.values

    return play


METHODS: dict[str, Callable[[Task, int, int], list[float]]] = {
    "random": _study(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "qmc": _study(lambda seed: optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)),
    "tpe": _study(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "cmaes": _study(lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)),
    "gp": _study(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "tensor-train": _study(_ours),
    "ttopt": _ttopt,
    "protes": _protes(100),
    "protes-10": _protes(10),
}
LIBRARIES = {"ttopt": "ttopt", "protes": "protes", "protes-10": "protes"}
