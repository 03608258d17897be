"""Monotone maps of the values, so that a Gaussian process fits what is left; the evidence chooses among them.

All are for values that are minimised. What is far worse than the median matters little for where the minimum is, so
the bad end is compressed first, and with it failed and diverged trials.

Source: Snelson, Rasmussen & Ghahramani 2003, "Warped Gaussian processes", eq. 7: the logarithm of the map's slopes is
what makes the evidences of two maps comparable.
"""

from dataclasses import dataclass

import numpy as np

from afina.search.tensor_train.kernel import Array

# Values worse than `median + 3 (median - best)` are compressed.
_COMPRESSED_BEYOND = 3.0


@dataclass(frozen=True)
class WarpedValues:
    """Values, standardised after a monotone map, and what the map adds to the logarithm of evidence.

    Attributes:
        name: The map, one of `WARPINGS`.
        values: Warped values (n,), with mean 0 and variance 1.
        log_slope: Sum of the logarithms of the map's slopes at the n values.
    """

    name: str
    values: Array
    log_slope: float


# The identity, or a logarithm with a share of the spread that is added to the distance from the best value.
WARPINGS = ("identity", "log 1", "log 0.1", "log 0.01")


def compress_outliers(values: Array) -> Array:
    """Finite values: those beyond `median + 3 (median - best)` grow with the logarithm only; infinite as the worst.

    Example:
        >>> compress_outliers(np.array([0.0, 1.0, 2.0, 1000.0, np.inf])).round(1).tolist()
        [0.0, 1.0, 2.0, 15.7, 15.7]
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    finite_values = values[finite]
    best, middle = finite_values.min(), np.median(finite_values)
    reach = middle - best
    if reach <= 0:
        reach = finite_values.max() - best
    if reach <= 0:
        reach = 1.0
    edge = middle + _COMPRESSED_BEYOND * reach
    capped = np.where(finite, values, finite_values.max())
    return np.where(capped > edge, edge + reach * np.log1p((np.maximum(capped, edge) - edge) / reach), capped)


def warp_values(name: str, values: Array) -> WarpedValues:
    """The map `name`, one of `WARPINGS`, applied to finite values (n,).

    Example:
        >>> warp_values("log 1", np.array([0.0, 1.0, 3.0])).values.round(2).tolist()
        [-1.22, 0.0, 1.22]
    """
    if name == "identity":
        mapped, log_slope = values, 0.0
    else:
        share = float(name.removeprefix("log "))
        above = values - values.min() + share * max(float(np.median(values) - values.min()), 1e-300)
        mapped, log_slope = np.log(above), float(-np.log(above).sum())
    spread = float(mapped.std())
    if not np.isfinite(spread) or spread <= 1e-12 * max(1.0, float(np.abs(mapped).max())):
        return WarpedValues(name, np.zeros_like(values), 0.0)
    return WarpedValues(name, (mapped - mapped.mean()) / spread, log_slope - len(values) * float(np.log(spread)))
