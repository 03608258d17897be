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
class Turn:
    """A rotation of some of the coordinates, the others left as they are.

    Attributes:
        which: Indices of the coordinates that are turned (k,).
        matrix: Orthogonal (k, k): its rows are the new axes.
    """

    which: NDArray[np.intp]
    matrix: Array

    def to(self, points: Array) -> Array:
        """Turned coordinates (m, d) of points (m, d)."""
        turned = points.copy()
        turned[:, self.which] = points[:, self.which] @ self.matrix.T
        return turned

    def back(self, points: Array) -> Array:
        """Points (m, d) of turned coordinates (m, d); and gradients by points, of gradients by turned coordinates."""
        straight = points.copy()
        straight[:, self.which] = points[:, self.which] @ self.matrix
        return straight

    @property
    def angles(self) -> int:
        """How many numbers it takes to say a rotation: k (k - 1) / 2."""
        return len(self.which) * (len(self.which) - 1) // 2


def fit_turn(
    layout: Layout, points: Array, values: Array, theta: Array, turn: Turn, evaluations: int
) -> tuple[Array, Turn, float]:
    """Hyperparameters and rotation that maximise evidence times prior (that of rotations is uniform).

    Args:
        layout: The coordinates.
        points: Points (n, d).
        values: Standardised values (n,).
        theta: Logarithms of the hyperparameters to start from (3 d + 3,).
        turn: The rotation to start from.
        evaluations: Of the evidence at most.

    Returns:
        The logarithms (3 d + 3,), the rotation, and the logarithm of evidence times prior there.
    """
    mean, spread = layout.prior()
    limits, size = layout.bounds(), layout.size
    pairs = Pairs.of(points, layout.categorical)
    apart = (points[pairs.rows] - points[pairs.columns])[:, turn.which].T

    def loss(place: Array) -> tuple[float, Array]:
        cayley, half = _cayley(place[size:], len(turn.which))
        turned = cayley @ turn.matrix @ apart
        pairs.gap[turn.which] = np.abs(turned)
        value, gradient, by_gap = evidence(layout, place[:size], pairs, values)
        if not np.isfinite(value):
            return 1e10, np.zeros_like(place)
        pull = np.divide(by_gap[turn.which], turned, out=np.zeros_like(turned), where=turned != 0)
        by_cayley = pull @ apart.T @ turn.matrix.T
        by_skew = half.T @ by_cayley @ (np.eye(len(cayley)) + cayley).T / 2
        angles = (by_skew - by_skew.T)[np.tril_indices(len(cayley), -1)]
        off = (place[:size] - mean) / spread
        return float(-value + off @ off / 2), -np.concatenate([gradient - off / spread, angles])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            loss,
            np.concatenate([np.clip(theta, *np.transpose(limits)), np.zeros(turn.angles)]),
            jac=True,
            method="L-BFGS-B",
            bounds=[*limits, *[(-_MOST_SKEW, _MOST_SKEW)] * turn.angles],
            options={"maxfun": evaluations, "gtol": 1e-2, "ftol": 1e-6, "maxcor": 20},
        )
    cayley, _ = _cayley(found.x[size:], len(turn.which))
    return np.asarray(found.x[:size]), Turn(turn.which, cayley @ turn.matrix), -float(found.fun)


def _cayley(skew: Array, k: int) -> tuple[Array, Array]:
    """The orthogonal matrix (k, k) of a skew one, given as its lower triangle; and the inverse of `I - S / 2`."""
    matrix = np.zeros((k, k))
    matrix[np.tril_indices(k, -1)] = skew
    matrix -= matrix.T
    half = np.asarray(np.linalg.inv(np.eye(k) - matrix / 2), dtype=float)
    return half @ (np.eye(k) + matrix / 2), half
