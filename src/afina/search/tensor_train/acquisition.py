"""Log expected improvement, alone and with the probability that constraints hold; with gradients."""

import numpy as np
from scipy.special import erfcx, log_ndtr

from afina.search.tensor_train.kernel import Array

_LOG_ROOT_2PI = 0.5 * np.log(2 * np.pi)


def log_improvement(mean: Array, variance: Array, best: float) -> Array:
    """Logarithm of the expected improvement below `best`, stable where it is tiny (Ament et al. 2023, eq. 9).

    Improvement itself is 0 in floating point from 39 standard deviations on, and has no gradient to climb there.

    Args:
        mean: Posterior means (m,).
        variance: Posterior variances (m,), above 0.
        best: The value to improve on.

    Example:
        >>> log_improvement(np.array([0.0, 40.0]), np.array([1.0, 1.0]), best=0.0).round(2).tolist()
        [-0.92, -808.3]
    """
    deviation = np.sqrt(variance)
    return np.asarray(_log_h((best - mean) / deviation) + np.log(deviation))


def log_improvement_slopes(mean: Array, variance: Array, best: float) -> tuple[Array, Array]:
    """Derivatives of `log_improvement` by mean and by variance."""
    deviation = np.sqrt(variance)
    z = (best - mean) / deviation
    log_h = _log_h(z)
    by_mean = -np.exp(log_ndtr(z) - log_h) / deviation
    by_deviation = np.exp(-(z**2) / 2 - _LOG_ROOT_2PI - log_h) / deviation
    return by_mean, by_deviation / (2 * deviation)


def log_feasible(mean: Array, variance: Array) -> Array:
    """Logarithm of the probability that a value is at most 0, for means and variances (m,).

    Example:
        >>> log_feasible(np.array([0.0, 2.0]), np.array([1.0, 1.0])).round(2).tolist()
        [-0.69, -3.78]
    """
    return np.asarray(log_ndtr(-mean / np.sqrt(variance)))


def log_feasible_slopes(mean: Array, variance: Array) -> tuple[Array, Array]:
    """Derivatives of `log_feasible` by mean and by variance."""
    deviation = np.sqrt(variance)
    z = -mean / deviation
    ratio = np.exp(-(z**2) / 2 - _LOG_ROOT_2PI - log_ndtr(z))
    return -ratio / deviation, ratio * mean / (2 * variance * deviation)


def _log_h(z: Array) -> Array:
    """Logarithm of `density(z) + z * distribution(z)` of the standard normal."""
    out = np.empty_like(z)
    near = z > -1.0
    x = z[near]
    out[near] = np.log(np.exp(-(x**2) / 2 - _LOG_ROOT_2PI) + x * np.exp(log_ndtr(x)))
    x = z[~near]
    # density * (1 + z * Phi(z) / density), with Phi / density by erfcx; for z far below, 1 / z^2 of it is left.
    mills = np.sqrt(np.pi / 2) * erfcx(-x / np.sqrt(2))
    with np.errstate(divide="ignore"):
        rest = np.where(x > -1e5, np.log1p(np.maximum(x * mills, -1 + 1e-15)), -2 * np.log(-x))
    out[~near] = -(x**2) / 2 - _LOG_ROOT_2PI + rest
    return out
