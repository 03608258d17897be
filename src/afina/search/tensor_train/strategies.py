"""Strategies for the next point: the usual one, or, while nothing better comes, the one that has paid most.

| name | surrogate | what it is for |
| --- | --- | --- |
| (empty) | of all data, over the whole cube | the usual one: expected improvement |
| `near` | of the nearest data alone, in a box around the best point | ridges and valleys |
| `smooth` | of the trend over the whole cube, all else taken as noise | leaving a local minimum |
| `far` | as usual, with a target below the best | asks for uncertainty more than for a likely small step |

The names are stored with the trials (`STRATEGY` in `history.py`), so that they must not change.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.history import History
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.schedule import STUCK_AFTER_PATIENCES, stagnation_patience

# Successes and failures of each strategy before there are any: the parameters of a beta distribution.
STRATEGIES: dict[str, tuple[float, float]] = {
    "": (3.0, 4.0),
    "near": (1.0, 4.0),
    "smooth": (1.0, 6.0),
    "far": (1.0, 6.0),
}
# An improvement counts when it is this share of the distance from the median to the best.
SIGNIFICANT_SHARE = 0.01


@dataclass(frozen=True)
class Trajectory:
    """How a study went, trial by trial.

    Attributes:
        values: What is minimised (n,), in the order of the trials; infinite where a constraint does not hold.
        best: The least value so far (n,).
        significant: The smallest improvement that counts.
        idle: Trials since the last improvement that counts (n,); 0 until a trial is feasible.
        patience: This many trials without an improvement are a stagnation.
        strategies: The strategy by which each trial was chosen, in the same order.
    """

    values: Array
    best: Array
    significant: float
    idle: NDArray[np.intp]
    patience: int
    strategies: tuple[str, ...]

    @classmethod
    def of(cls, history: History, values: Array) -> "Trajectory":
        """The trajectory of a study's finished trials, from their history and what is minimised (n,).

        Example:
            The third trial is better by far; two more follow without an improvement.

            >>> values = np.array([5.0, 4.0, 1.0, 3.0, 2.0])
            >>> none = np.empty((0, 1))
            >>> history = History(np.zeros((5, 1)), values[:, None], none, np.empty((5, 0)), tuple(range(5)), ("",) * 5)
            >>> Trajectory.of(history, values).idle.tolist()
            [0, 0, 0, 1, 2]
        """
        order = np.argsort(history.numbers, kind="stable")
        series = np.where(history.feasible, values, np.inf)[order]
        best = np.minimum.accumulate(series)
        significant = 0.0
        if np.isfinite(best[-1]):
            significant = SIGNIFICANT_SHARE * max(float(np.median(values)) - float(best[-1]), 0.0)
        since = np.arange(len(best)) - np.searchsorted(-best, -(best + significant))
        idle = np.where(np.isfinite(best), since, 0)
        strategies = tuple(history.strategies[i] for i in order)
        return cls(series, best, significant, idle, stagnation_patience(history.points.shape[1]), strategies)

    @property
    def stuck(self) -> bool:
        """Whether the study, now or earlier, stagnated for so long that it will not leave its valley by itself."""
        return bool(self.idle.max() >= STUCK_AFTER_PATIENCES * self.patience)


def choose_strategy(trajectory: Trajectory, rng: np.random.Generator) -> str:
    """The strategy for the next trial, one of `STRATEGIES`.

    The usual one is kept while the best value improves. During a stagnation every other trial is given to a lottery:
    each strategy draws its chance of success from a beta distribution of its successes and failures so far, and the
    highest draw wins (Thompson sampling of Bernoulli arms, Thompson 1933; Chapelle & Li 2011, algorithm 2). The
    trials between stay with the usual one, so that a lottery costs at most half of them.

    Args:
        trajectory: The study so far.
        rng: The generator of this suggestion.
    """
    since = int(trajectory.idle[-1]) - trajectory.patience
    if not np.isfinite(trajectory.best[-1]) or since < 0 or since % 2:
        return ""
    chances = {}
    before = np.concatenate([[np.inf], trajectory.best[:-1]])
    better = trajectory.values < before - trajectory.significant / 10
    strategies = np.array(trajectory.strategies)
    idle = trajectory.idle > trajectory.patience
    for name, (successes, failures) in STRATEGIES.items():
        chosen = strategies == name
        if not name:
            # The usual strategy competes by what it did in stagnations: before them it finds improvements easily.
            chosen &= np.concatenate([[False], idle[:-1]])
        chances[name] = rng.beta(successes + (chosen & better).sum(), failures + (chosen & ~better).sum())
    return max(chances, key=lambda name: chances[name])
