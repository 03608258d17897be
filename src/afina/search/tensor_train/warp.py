"""Monotone maps of the values, so that a Gaussian process fits what is left: chosen by evidence.

All are of values that are minimised. What is far worse than the median matters little for where the minimum is, so
the bad end is drawn in first, and so are failed and diverged trials.
"""

from dataclasses import dataclass

import numpy as np

from afina.search.tensor_train.kernel import Array

_BAD = 3.0


@dataclass(frozen=True)
class Warp:
    """Values, standardised after a monotone map, and what the map adds to the logarithm of evidence.

    Attributes:
        name: `identity`, or `log` with the share of the spread that is added to the distance from the best.
        values: Warped values (n,), with mean 0 and variance 1.
        log_slope: Sum of the logarithms of the map's slopes at the n values.
    """

    name: str
    values: Array
    log_slope: float


WARPS = ("identity", "log 1", "log 0.1", "log 0.01")


def draw_in(values: Array) -> Array:
    """Finite values: those beyond `median + 3 (median - best)` grow with the logarithm only; infinite as the worst."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    known = values[finite]
    best, middle = known.min(), np.median(known)
    reach = middle - best
    if reach <= 0:
        reach = known.max() - best
    if reach <= 0:
        reach = 1.0
    edge = middle + _BAD * reach
    drawn = np.where(finite, values, known.max())
    return np.where(drawn > edge, edge + reach * np.log1p((np.maximum(drawn, edge) - edge) / reach), drawn)


def warp(name: str, values: Array) -> Warp:
    """The map `name`, one of `WARPS`, of finite values (n,)."""
    if name == "identity":
        mapped, log_slope = values, 0.0
    else:
        share = float(name.removeprefix("log "))
        above = values - values.min() + share * max(float(np.median(values) - values.min()), 1e-300)
        mapped, log_slope = np.log(above), float(-np.log(above).sum())
    spread = float(mapped.std())
    if not np.isfinite(spread) or spread <= 1e-12 * max(1.0, float(np.abs(mapped).max())):
        return Warp(name, np.zeros_like(values), 0.0)
    return Warp(name, (mapped - mapped.mean()) / spread, log_slope - len(values) * float(np.log(spread)))
