"""The kernel of the tensor-train sampler, its likelihood and their gradients.

Over points of d coordinates in the unit cube,

    K(x, x') = sum_j u_j + w2 * e2(u_1, ..., u_d) + wp * prod_j c_j,     u_j = a_j k_j(x_j, x'_j)

where `k_j` and `c_j` are Matern-5/2 for numbers and exchangeable for categories (one value where they are equal,
another where they are not), with lengthscales of their own, and `e2` is the second elementary symmetric polynomial,
the sum over all pairs of coordinates (Duvenaud, Nickisch & Rasmussen 2011, "Additive Gaussian processes", eq. 4).
Each term is a short sum of products of functions of one coordinate, which makes a posterior mean a tensor train:
see `posterior_train.py`.

A coordinate that a point does not have (a conditional parameter that is not active) is NaN.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

_SQRT5 = np.sqrt(5.0)
# Inactive coordinates are a point beside the unit interval, at this distance from its middle.
_INACTIVE = 1.0
_JITTER = 1e-9


@dataclass(frozen=True)
class Layout:
    """Where each hyperparameter lies in the vector of their logarithms, for `d` coordinates.

    The vector is (log a, log l, log m, log w2, log wp, log noise): amplitudes and lengthscales of the additive part,
    lengthscales of the product, weights of pairs and product, and the variance of the noise; length 3 d + 3.

    Attributes:
        categorical: Which coordinates are categories, shape (d,).
    """

    categorical: NDArray[np.bool_]

    @property
    def d(self) -> int:
        """Number of coordinates."""
        return len(self.categorical)

    @property
    def size(self) -> int:
        """Length of the vector of hyperparameters."""
        return 3 * self.d + 3

    def split(self, theta: Array) -> tuple[Array, Array, Array, float, float, float]:
        """Amplitudes, additive lengthscales, product lengthscales (d,), and w2, wp, noise, from their logarithms."""
        d = self.d
        values = np.exp(theta)
        w2, wp, noise = (float(v) for v in values[3 * d :])
        return values[:d], values[d : 2 * d], values[2 * d : 3 * d], w2, wp, noise

    def prior(self, smooth: bool = False) -> tuple[Array, Array]:
        """Mean and standard deviation of the normal prior of each logarithm, for standardised values.

        The lengthscales of the product grow with the root of d, as distances do (Hvarfner, Hellsten & Nardi 2024).

        Args:
            smooth: Whether to see the trend over the whole cube only, with all else as noise.
        """
        d, one = self.d, np.ones(self.d)
        if smooth:
            mean = np.concatenate(
                [one * np.log(0.3 / d), one * 0.0, one * np.log(0.8 * np.sqrt(d)), np.log([0.1, 0.5, 0.1])]
            )
            return mean, np.concatenate([one, one * 0.3, one * 0.3, [0.5, 1.0, 1.5]])
        length = np.where(self.categorical, np.log(1.0), np.log(0.3))
        product = np.where(self.categorical, np.log(1.0 * np.sqrt(d)), np.log(0.4 * np.sqrt(d)))
        mean = np.concatenate([one * np.log(0.3 / d), length, product, np.log([0.5, 0.5, 1e-4])])
        spread = np.concatenate([one * 1.5, one * 1.0, one * 1.0, [1.5, 1.5, 2.0]])
        return mean, spread

    def bounds(self) -> list[tuple[float, float]]:
        """Lowest and highest logarithm of each hyperparameter."""
        ranges = [(1e-5, 20.0)] * self.d + [(0.01, 20.0)] * self.d + [(0.02, 50.0)] * self.d
        ranges += [(1e-4, 100.0), (1e-5, 20.0), (1e-7, 1.0)]
        return [(float(np.log(low)), float(np.log(high))) for low, high in ranges]


def distances(first: Array, second: Array, categorical: NDArray[np.bool_]) -> Array:
    """Distance of each coordinate of points (n, d) from those of others (m, d): shape (d, n, m).

    Categories are 0 or 1 apart. Where one of two points lacks the coordinate, the distance is that from a point
    beside the interval, so that the kernels stay positive definite; where both lack it, 0.

    Example:
        A point at 0.2, and one that lacks the coordinate, from one at 0.5:

        >>> distances(np.array([[0.2], [np.nan]]), np.array([[0.5]]), np.array([False])).round(2).tolist()
        [[[0.3], [1.0]]]
    """
    return _gap(first.T[:, :, None], second.T[:, None, :], categorical)


def _gap(first: Array, second: Array, categorical: NDArray[np.bool_]) -> Array:
    gap = np.abs(first - second)
    gap[categorical] = gap[categorical] > 0.5
    if np.isnan(first).any() or np.isnan(second).any():
        first_missing, second_missing = np.isnan(first), np.isnan(second)
        present = np.where(first_missing, second, first)
        beside = np.sqrt((present - 0.5) ** 2 + _INACTIVE**2)
        beside[categorical] = 1.0
        gap = np.where(first_missing & second_missing, 0.0, np.where(first_missing | second_missing, beside, gap))
    return gap


def factors(gap: Array, length: Array, categorical: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Kernel of each coordinate, and the derivative of its logarithm by the logarithm of its lengthscale.

    With s = sqrt(5) * distance / lengthscale, a Matern-5/2 kernel is (1 + s + s^2 / 3) exp(-s), and the derivative of
    its logarithm by that of the lengthscale is s^2 / 3 * (1 + s) / (1 + s + s^2 / 3).

    Args:
        gap: Distances, (d, ...).
        length: Lengthscales (d,).
        categorical: Which coordinates are categories (d,).

    Returns:
        Both of the shape of `gap`.
    """
    s = gap * (np.where(categorical, 1.0, _SQRT5) / length).reshape(-1, *[1] * (gap.ndim - 1))
    decay = np.exp(-s)
    shape = s * s
    shape /= 3.0
    s1 = s + 1.0
    slope = shape * s1
    shape += s1
    slope /= shape
    decay *= shape
    if categorical.any():
        flat = s[categorical]
        decay[categorical], slope[categorical] = np.exp(-flat), flat
    return decay, slope


def combine(u: Array, c: Array, w2: float, wp: float) -> Array:
    """The kernel from its factors `u` and `c`, whose first axis is that of the coordinates.

    Example:
        The sum 2 + 3, one half of the only pair 2 * 3, and one of the product 0.5 * 0.5:

        >>> float(combine(np.array([2.0, 3.0]), np.array([0.5, 0.5]), w2=0.5, wp=1.0))
        8.25
    """
    total = u.sum(axis=0)
    pairs = (total**2 - np.einsum("d...,d...->...", u, u)) / 2
    return np.asarray(total + w2 * pairs + wp * c.prod(axis=0))


def diagonal(layout: Layout, theta: Array) -> float:
    """The kernel of a point with itself, which is the same everywhere."""
    a, _, _, w2, wp, _ = layout.split(theta)
    return float(a.sum() + w2 * (a.sum() ** 2 - (a**2).sum()) / 2 + wp)


def covariance(layout: Layout, theta: Array, gap: Array) -> Array:
    """The kernel over distances (d, ...): shape (...), without noise."""
    a, length, product, w2, wp, _ = layout.split(theta)
    k, _ = factors(gap, length, layout.categorical)
    c, _ = factors(gap, product, layout.categorical)
    return combine(k * a.reshape(-1, *[1] * (gap.ndim - 1)), c, w2, wp)


@dataclass(frozen=True)
class Pairs:
    """Distances of each pair of n different points, (d, n (n - 1) / 2), and where pairs are in an n by n matrix."""

    gap: Array
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    n: int

    @classmethod
    def of(cls, points: Array, categorical: NDArray[np.bool_]) -> "Pairs":
        """The pairs of points (n, d)."""
        rows, columns = np.tril_indices(len(points), -1)
        first, second = np.ascontiguousarray(points.T[:, rows]), np.ascontiguousarray(points.T[:, columns])
        return cls(_gap(first, second, categorical), rows, columns, len(points))


def evidence(layout: Layout, theta: Array, pairs: Pairs, values: Array) -> tuple[float, Array, Array]:
    """Logarithm of the marginal likelihood of `values` (n,), with gradients by `theta` and by distances.

    Rasmussen & Williams 2006, eq. 2.30 and 5.9. Minus infinity, with zero gradients, where the covariance is not
    numerically positive definite.

    Returns:
        The logarithm; its gradient by `theta` (3 d + 3,); and that by the logarithm of each distance, (d, pairs).
    """
    a, length, product, w2, wp, noise = layout.split(theta)
    u, u_slope = factors(pairs.gap, length, layout.categorical)
    u *= a[:, None]
    c, c_slope = factors(pairs.gap, product, layout.categorical)
    total, whole = u.sum(axis=0), c.prod(axis=0)
    two = (total**2 - np.einsum("dp,dp->p", u, u)) / 2
    matrix = np.zeros((pairs.n, pairs.n), order="F")
    matrix[pairs.rows, pairs.columns] = total + w2 * two + wp * whole
    level = diagonal(layout, theta) + noise + _JITTER
    matrix[np.diag_indices(pairs.n)] = level
    root, failed = lapack.dpotrf(matrix, lower=1, overwrite_a=1)
    if failed:
        return -np.inf, np.zeros(layout.size), np.zeros_like(pairs.gap)
    log_determinant = 2 * np.log(np.diagonal(root)).sum()
    weights, _ = lapack.dpotrs(root, values, lower=1)
    inverse, _ = lapack.dpotri(root, lower=1, overwrite_c=1)
    inverse_diagonal = np.diagonal(inverse).copy()
    inverse_pairs = inverse[pairs.rows, pairs.columns]
    value = -(values @ weights + log_determinant + pairs.n * np.log(2 * np.pi)) / 2

    # The gradient is half the trace of (weights weights' - inverse) times the derivative of the matrix, which is
    # symmetric: `by_pair` has that matrix for each pair below the diagonal, which stands for both triangles, and `ends`
    # half the sum of its diagonal, where the kernel is `level` for every datum. The derivative of the kernel by log a_j
    # is u_j (1 + w2 * sum of the other u); that by a lengthscale is the same times the slope of its logarithm.
    by_pair = weights[pairs.rows] * weights[pairs.columns] - inverse_pairs
    ends = float((weights**2 - inverse_diagonal).sum()) / 2
    by_u = (1 + w2 * (total - u)) * u * by_pair
    gradient = np.empty(layout.size)
    rest = a.sum() - a
    gradient[: layout.d] = by_u.sum(axis=1) + ends * a * (1 + w2 * rest)
    u_slope *= by_u
    gradient[layout.d : 2 * layout.d] = u_slope.sum(axis=1)
    whole *= wp * by_pair
    c_slope *= whole
    gradient[2 * layout.d : 3 * layout.d] = c_slope.sum(axis=1)
    products = (a.sum() ** 2 - (a**2).sum()) / 2
    gradient[3 * layout.d :] = w2 * (two @ by_pair + ends * products), whole.sum() + ends * wp, ends * noise
    # A kernel sees a distance over its lengthscale only: what a longer one does, a shorter distance does.
    return float(value), gradient, -(u_slope + c_slope)


def loss(theta: Array, layout: Layout, pairs: Pairs, values: Array, prior: Any) -> tuple[float, Array]:
    """Minus the logarithm of evidence times prior, and its gradient: what a fit minimises."""
    mean, spread = prior
    value, gradient, _ = evidence(layout, theta, pairs, values)
    if not np.isfinite(value):
        return 1e10, np.zeros_like(theta)
    deviation = (theta - mean) / spread
    return float(-value + deviation @ deviation / 2), -gradient + deviation / spread
