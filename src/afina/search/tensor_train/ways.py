"""Which way the next point is sought: the usual one, or while nothing better is found, the one that paid most.

- the usual: expected improvement of the surrogate over the whole cube;
- `near`: that of a surrogate of the nearest data alone, in a box around the best point, for ridges and valleys;
- `smooth`: that of the trend over the whole cube, with all else as noise, to leave a local minimum;
- `far`: that over a target below the best, which asks for uncertainty more than for a likely small step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.history import History
from afina.search.tensor_train.kernel import Array

# Prior successes and failures of each way.
WAYS: dict[str, tuple[float, float]] = {"": (3.0, 4.0), "near": (1.0, 4.0), "smooth": (1.0, 6.0), "far": (1.0, 6.0)}
# An improvement counts when it is this share of the way from the median to the best; so many trials without one, and
# one more for each parameter, are a stagnation. With six in all, the sampler was behind itself without any other way
# on 6 of 7 functions at 50 trials.
COUNTS = 0.01
_PATIENCE = 8
# A stagnation of so many patiences is a valley that will not be left by itself.
_LONG = 4


@dataclass(frozen=True)
class Progress:
    """How a study went, trial by trial.

    Attributes:
        values: What is minimised (n,), in the order of the trials; infinite where a constraint does not hold.
        best: The least of them so far (n,).
        enough: An improvement that counts.
        idle: Trials since the last one that counts (n,); 0 until a trial is feasible.
        patience: So many without one are a stagnation.
        ways: How each trial was chosen.
    """

    values: Array
    best: Array
    enough: float
    idle: NDArray[np.intp]
    patience: int
    ways: tuple[str, ...]

    @classmethod
    def of(cls, history: History, values: Array) -> "Progress":
        """Of the finished trials of a study, and what is minimised (n,)."""
        order = np.argsort(history.numbers, kind="stable")
        series = np.where(history.feasible, values, np.inf)[order]
        best = np.minimum.accumulate(series)
        enough = 0.0
        if np.isfinite(best[-1]):
            enough = COUNTS * max(float(np.median(values)) - float(best[-1]), 0.0)
        since = np.arange(len(best)) - np.searchsorted(-best, -(best + enough))
        idle = np.where(np.isfinite(best), since, 0)
        ways = tuple(history.ways[i] for i in order)
        return cls(series, best, enough, idle, _PATIENCE + history.points.shape[1], ways)

    @property
    def stuck(self) -> bool:
        """Whether the study stagnated for so long, once or now, that it is in a valley which it will not leave."""
        return bool(self.idle.max() >= _LONG * self.patience)


def choose_way(progress: Progress, rng: np.random.Generator) -> str:
    """The way for the next trial, one of `WAYS`.

    While the usual one finds what is better by a hundredth, it is kept. After some trials without that, every other
    trial is drawn in a lottery of the ways by their successes so far (Thompson sampling of Bernoulli arms).

    Args:
        progress: Of the study.
        rng: Of this suggestion.
    """
    since = int(progress.idle[-1]) - progress.patience
    if not np.isfinite(progress.best[-1]) or since < 0 or since % 2:
        return ""
    chances = {}
    before = np.concatenate([[np.inf], progress.best[:-1]])
    better = progress.values < before - progress.enough / 10
    ways = np.array(progress.ways)
    idle = progress.idle > progress.patience
    for name, (won, lost) in WAYS.items():
        tried = ways == name
        if not name:
            tried &= np.concatenate([[False], idle[:-1]])
        chances[name] = rng.beta(won + (tried & better).sum(), lost + (tried & ~better).sum())
    return max(chances, key=lambda name: chances[name])
