"""Rotations of the coordinates, for valleys that run askew to the parameters: the one with most evidence.

A function that is a sum along directions which are not those of the parameters has long ridges in all of them. With
`z = R x` for an orthogonal `R`, the kernel over `z` is that of `kernel.py` again, and its evidence has a gradient by
`R`: from the derivative by each distance `|z_j - z'_j|`, through the Cayley map of a skew matrix `S` that starts at 0,
`R = (I - S / 2)^-1 (I + S / 2) R_0`.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from afina.search.tensor_train.kernel import Array, Layout, Pairs, evidence

_MOST_SKEW = 2.0


@dataclass(frozen=True)
class Rotation:
    """A rotation of some of the coordinates, the others left as they are.

    Attributes:
        indices: Indices of the coordinates that are rotated (k,).
        matrix: Orthogonal (k, k): its rows are the new axes.

    Example:
        >>> rotation = Rotation(np.array([0, 1]), np.array([[0.8, 0.6], [-0.6, 0.8]]))
        >>> rotated = rotation.rotate(np.array([[0.5, 0.5, 0.9]]))
        >>> rotated.round(2).tolist(), rotation.rotate_back(rotated).round(2).tolist()
        ([[0.7, 0.1, 0.9]], [[0.5, 0.5, 0.9]])
    """

    indices: NDArray[np.intp]
    matrix: Array

    def rotate(self, points: Array) -> Array:
        """Rotated coordinates (m, d) of points (m, d)."""
        rotated = points.copy()
        rotated[:, self.indices] = points[:, self.indices] @ self.matrix.T
        return rotated

    def rotate_back(self, points: Array) -> Array:
        """Points (m, d) of rotated coordinates (m, d); and gradients by points, of gradients by rotated coordinates."""
        straight = points.copy()
        straight[:, self.indices] = points[:, self.indices] @ self.matrix
        return straight

    @property
    def angles(self) -> int:
        """How many numbers describe a rotation: k (k - 1) / 2."""
        return len(self.indices) * (len(self.indices) - 1) // 2


def fit_rotation(
    layout: Layout, points: Array, values: Array, theta: Array, rotation: Rotation, evaluations: int
) -> tuple[Array, Rotation, float]:
    """Hyperparameters and rotation that maximise evidence times prior (that of rotations is uniform).

    Args:
        layout: The coordinates.
        points: Points (n, d).
        values: Standardised values (n,).
        theta: Logarithms of the hyperparameters to start from (3 d + 3,).
        rotation: The rotation to start from.
        evaluations: Evaluations of the evidence, at most.

    Returns:
        The logarithms (3 d + 3,), the rotation, and the logarithm of evidence times prior there.
    """
    mean, spread = layout.prior()
    limits, size = layout.bounds(), layout.size
    pairs = Pairs.of(points, layout.categorical)
    differences = (points[pairs.rows] - points[pairs.columns])[:, rotation.indices].T

    def loss(parameters: Array) -> tuple[float, Array]:
        cayley, half = _cayley(parameters[size:], len(rotation.indices))
        rotated = cayley @ rotation.matrix @ differences
        pairs.gap[rotation.indices] = np.abs(rotated)
        value, gradient, by_gap = evidence(layout, parameters[:size], pairs, values)
        if not np.isfinite(value):
            return 1e10, np.zeros_like(parameters)
        # With C the Cayley matrix and D the differences, distances are |C R_0 D|. Backwards: `by_rotated` is the
        # derivative by C R_0 D (that by the logarithm of a distance, divided by the signed distance), `by_cayley` that
        # by C, and, as dC = (I - S / 2)^-1 dS (I + C) / 2, `by_skew` that by S, of which both triangles count.
        by_rotated = np.divide(by_gap[rotation.indices], rotated, out=np.zeros_like(rotated), where=rotated != 0)
        by_cayley = by_rotated @ differences.T @ rotation.matrix.T
        by_skew = half.T @ by_cayley @ (np.eye(len(cayley)) + cayley).T / 2
        angles = (by_skew - by_skew.T)[np.tril_indices(len(cayley), -1)]
        deviation = (parameters[:size] - mean) / spread
        return float(-value + deviation @ deviation / 2), -np.concatenate([gradient - deviation / spread, angles])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = minimize(
            loss,
            np.concatenate([np.clip(theta, *np.transpose(limits)), np.zeros(rotation.angles)]),
            jac=True,
            method="L-BFGS-B",
            bounds=[*limits, *[(-_MOST_SKEW, _MOST_SKEW)] * rotation.angles],
            options={"maxfun": evaluations, "gtol": 1e-2, "ftol": 1e-6, "maxcor": 20},
        )
    cayley, _ = _cayley(result.x[size:], len(rotation.indices))
    return np.asarray(result.x[:size]), Rotation(rotation.indices, cayley @ rotation.matrix), -float(result.fun)


def _cayley(skew: Array, k: int) -> tuple[Array, Array]:
    """The orthogonal matrix (k, k) of a skew one, given as its lower triangle; and the inverse of `I - S / 2`.

    For k = 2 it is the rotation by `2 atan(s / 2)`: with s = 1, [[0.6, -0.8], [0.8, 0.6]].

    Example:
        >>> _cayley(np.array([1.0]), 2)[0].round(2).tolist()
        [[0.6, -0.8], [0.8, 0.6]]
    """
    matrix = np.zeros((k, k))
    matrix[np.tril_indices(k, -1)] = skew
    matrix -= matrix.T
    half = np.asarray(np.linalg.inv(np.eye(k) - matrix / 2), dtype=float)
    return half @ (np.eye(k) + matrix / 2), half
