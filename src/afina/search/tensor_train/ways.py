"""Which way the next point is sought: the usual one, or while nothing better is found, the one that paid most.

- the usual: expected improvement of the surrogate over the whole cube;
- `near`: that of a surrogate of the nearest data alone, in a box around the best point, for ridges and valleys;
- `smooth`: that of the trend over the whole cube, with all else as noise, to leave a local minimum;
- `far`: that over a target below the best, which asks for uncertainty more than for a likely small step.
"""

import numpy as np

from afina.search.tensor_train.history import History
from afina.search.tensor_train.kernel import Array

# Prior successes and failures of each way.
WAYS: dict[str, tuple[float, float]] = {"": (3.0, 4.0), "near": (1.0, 4.0), "smooth": (1.0, 6.0), "far": (1.0, 6.0)}
# An improvement counts when it is this share of the way from the median to the best; so many trials without one, and
# one more for each parameter, are a stagnation. With six in all, the sampler was behind itself without any other way
# on 6 of 7 functions at 50 trials.
_COUNTS = 0.01
_PATIENCE = 8


def choose_way(history: History, values: Array, rng: np.random.Generator) -> str:
    """The way for the next trial, one of `WAYS`.

    While the usual one finds what is better by a hundredth, it is kept. After some trials without that, every other
    trial is drawn in a lottery of the ways by their successes so far (Thompson sampling of Bernoulli arms).

    Args:
        history: Of the study.
        values: What is minimised, (n,).
        rng: Of this suggestion.
    """
    order = np.argsort(history.numbers, kind="stable")
    series = np.where(history.feasible, values, np.inf)[order]
    best = np.minimum.accumulate(series)
    if not np.isfinite(best[-1]):
        return ""
    enough = _COUNTS * max(float(np.median(values)) - float(best[-1]), 0.0)
    since = len(best) - 1 - int(np.argmax(best <= best[-1] + enough))
    patience = _PATIENCE + history.points.shape[1]
    if since < patience or (since - patience) % 2:
        return ""
    chances = {}
    before = np.concatenate([[np.inf], best[:-1]])
    better = series < before - enough / 10
    ways = np.array([history.ways[i] for i in order])
    idle = np.array([i - int(np.argmax(best <= best[i] + enough)) > patience for i in range(len(best))])
    for name, (won, lost) in WAYS.items():
        tried = ways == name
        if not name:
            tried &= np.concatenate([[False], idle[:-1]])
        chances[name] = rng.beta(won + (tried & better).sum(), lost + (tried & ~better).sum())
    return max(chances, key=lambda name: chances[name])
