"""A Gaussian process over the unit cube: fitted hyperparameters, and the posterior with its gradient."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize

from afina.search.tensor_train.kernel import (
    Array,
    Layout,
    Pairs,
    combine,
    covariance,
    diagonal,
    distances,
    factors,
    loss,
)
from afina.search.tensor_train.rotation import Rotation

_JITTER = 1e-9
_LEAST_VARIANCE = 1e-12
# Variance that is added to drawn functions, so that points that are close can be drawn together.
_DRAWN = 1e-7
_STEP = 1e-4


class Surrogate:
    """The posterior of a Gaussian process with zero mean, given values at points.

    Args:
        layout: The coordinates.
        theta: Logarithms of the hyperparameters (3 d + 3,).
        points: Points (n, d) in the unit cube; NaN where a coordinate is not active.
        values: Values (n,), standardised.
        rotation: A rotation of the coordinates that the kernel is over; None for those of the cube.

    Attributes:
        places: The points (n, d) in the coordinates that the kernel is over.
    """

    def __init__(
        self, layout: Layout, theta: Array, points: Array, values: Array, rotation: Rotation | None = None
    ) -> None:
        self.layout, self.theta, self.points, self.values, self.rotation = layout, theta, points, values, rotation
        self.places = self.placed(points)
        self.level = diagonal(layout, theta)
        self.noise = float(np.exp(theta[-1]))
        pairs = Pairs.of(self.places, layout.categorical)
        matrix = np.zeros((pairs.n, pairs.n), order="F")
        matrix[pairs.rows, pairs.columns] = covariance(layout, theta, pairs.gap)
        root = _root(matrix, self.level + self.noise + _JITTER)
        self.weights = lapack.dpotrs(root, values, lower=1)[0]
        self.whitener = lapack.dtrtri(root, lower=1)[0]

    def believing(self, points: Array) -> "Surrogate":
        """The same with points (m, d) that are still running: each is believed to give its posterior mean.

        A point of which not all rotated coordinates are known yet is left out.
        """
        if self.rotation is not None:
            points = points[~np.isnan(points[:, self.rotation.indices]).any(axis=1)]
        if not len(points):
            return self
        mean, _ = self.posterior(points)
        known, values = np.concatenate([self.points, points]), np.concatenate([self.values, mean])
        return Surrogate(self.layout, self.theta, known, values, self.rotation)

    def placed(self, points: Array) -> Array:
        """Points (m, d) in the coordinates that the kernel is over."""
        return points if self.rotation is None else self.rotation.rotate(points)

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance (m,) of the function, without noise, at points (m, d)."""
        gap = distances(self.placed(points), self.places, self.layout.categorical)
        return self.from_covariance(covariance(self.layout, self.theta, gap))

    def from_covariance(self, cross: Array) -> tuple[Array, Array]:
        """Mean and variance (m,) from the kernel (m, n) between points and data."""
        spread = cross @ self.whitener.T
        variance = self.level - np.einsum("mn,mn->m", spread, spread)
        return cross @ self.weights, np.maximum(variance, _LEAST_VARIANCE)

    def draw(self, points: Array, rng: np.random.Generator) -> Array:
        """One function of the posterior, at points (m, d) together: (m,)."""
        layout, theta, points = self.layout, self.theta, self.placed(points)
        cross = covariance(layout, theta, distances(points, self.places, layout.categorical))
        spread = cross @ self.whitener.T
        among = covariance(layout, theta, distances(points, points, layout.categorical)) - spread @ spread.T
        root = _root(np.asfortranarray(among), self.level - np.einsum("mn,mn->m", spread, spread) + _DRAWN)
        return np.asarray(cross @ self.weights + np.tril(root) @ rng.standard_normal(len(points)))

    def gradient(self, points: Array) -> tuple[Array, Array, Array, Array]:
        """Mean and variance (m,) at points (m, d), and their gradients (m, d).

        The gradient is 0 for categories, and where a coordinate is not active.
        """
        layout, points = self.layout, self.placed(points)
        a, length, product, w2, wp, _ = layout.split(self.theta)
        gap = distances(points, self.places, layout.categorical)
        k, k_slope = factors(gap, length, layout.categorical)
        c, c_slope = factors(gap, product, layout.categorical)
        u = k * a[:, None, None]
        cross = combine(u, c, w2, wp)
        # A logarithm's derivative by the lengthscale's logarithm is minus the distance times that by the distance.
        places = np.where(np.isnan(self.places), 0.5, self.places)
        away = (points.T[:, :, None] - places.T[:, None, :]) / np.maximum(gap**2, 1e-24)
        away[layout.categorical] = 0.0
        away = np.nan_to_num(away, nan=0.0)
        total = u.sum(axis=0)
        slope = -((1 + w2 * (total - u)) * u * k_slope + wp * c.prod(axis=0) * c_slope) * away
        spread = cross @ self.whitener.T
        variance = np.maximum(self.level - np.einsum("mn,mn->m", spread, spread), _LEAST_VARIANCE)
        back = spread @ self.whitener
        by_mean = np.einsum("dmn,n->md", slope, self.weights)
        by_variance = -2 * np.einsum("dmn,mn->md", slope, back)
        if self.rotation is not None:
            by_mean, by_variance = self.rotation.rotate_back(by_mean), self.rotation.rotate_back(by_variance)
        return cross @ self.weights, variance, by_mean, by_variance

    def curvature(self, point: Array, indices: NDArray[np.intp]) -> Array:
        """Second derivatives (k, k) of the mean at a point (d,), by the coordinates `indices` (k,): by differences."""
        steps = np.zeros((len(indices), len(point)))
        steps[np.arange(len(indices)), indices] = _STEP
        slopes = self.gradient(np.concatenate([point + steps, point - steps]))[2][:, indices]
        second = (slopes[: len(indices)] - slopes[len(indices) :]) / (2 * _STEP)
        return np.asarray((second + second.T) / 2)


def _root(matrix: Array, level: float | Array) -> Array:
    """Cholesky factor of the lower triangle with `level` on the diagonal: more where that is not positive definite."""
    for step in range(8):
        matrix[np.diag_indices(len(matrix))] = level + (10.0 ** (step - 9) if step else 0.0)
        root, failed = lapack.dpotrf(matrix, lower=1)
        if not failed:
            return np.asarray(root)
    raise FloatingPointError("The covariance is not positive definite.")


def fit(
    layout: Layout, points: Array, values: Array, starts: Sequence[Array], evaluations: int, smooth: bool = False
) -> tuple[Array, float]:
    """Hyperparameters that maximise evidence times prior, from the best of several starts.

    Args:
        layout: The coordinates.
        points: Points (n, d).
        values: Standardised values (n,).
        starts: Logarithms of hyperparameters to start from, each (3 d + 3,).
        evaluations: Evaluations of the evidence at most, for each start.
        smooth: Whether the prior is that of the trend alone (`Layout.prior`).

    Returns:
        The logarithms (3 d + 3,), and the logarithm of evidence times prior there.
    """
    pairs, prior = Pairs.of(points, layout.categorical), layout.prior(smooth)
    best, least = starts[0], np.inf
    limits = layout.bounds()
    for start in starts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = minimize(
                loss,
                np.clip(start, *np.transpose(limits)),
                args=(layout, pairs, values, prior),
                jac=True,
                method="L-BFGS-B",
                bounds=limits,
                options={"maxfun": evaluations, "gtol": 1e-2, "ftol": 1e-5, "maxcor": 20},
            )
        if result.fun < least:
            best, least = np.asarray(result.x), float(result.fun)
    return best, -least


def starts(layout: Layout) -> list[Array]:
    """Where a fit may start: at the prior's mean, at short additive lengthscales, and at a product alone."""
    mean, _ = layout.prior()
    d, numeric = layout.d, ~layout.categorical
    short, smooth = mean.copy(), mean.copy()
    short[d : 2 * d][numeric] = np.log(0.08)
    smooth[:d] -= 2.0
    smooth[3 * d + 1] += 0.7
    return [mean, short, smooth]
