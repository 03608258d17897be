"""The rotation of the numbers that has most evidence, fitted again and again as trials come in.

**What comes in**: the surrogate without a rotation, its points (n, d) and values (n,). **What comes out**: a surrogate
over `z = R x`, where the evidence for it is better by one for each angle; else nothing.

Why: take `f(x, y) = g(0.8 x + 0.6 y) + h(0.8 y - 0.6 x)`. Along its valley both parameters must change together; from a
point in it no step along `x` or `y` alone is better, and an additive process over `(x, y)` sees noise. With

    R = [[0.8, 0.6], [-0.6, 0.8]],    x = (0.5, 0.5)    z = R x = (0.7, 0.1)

the same function is the sum `g(z_1) + h(z_2)`, which the additive part of the kernel fits from few data.

Where the axes come from: at a minimum the matrix of second derivatives of such a sum is
`R' diag(g'', h'') R`, so that the eigenvectors of the surrogate's curvature at the best point are the rows of `R`.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.kernel import Array, Layout
from afina.search.tensor_train.output_warping import warp_values
from afina.search.tensor_train.rotation import Rotation, fit_rotation
from afina.search.tensor_train.schedule import Countdown, RotationSchedule
from afina.search.tensor_train.surrogate import Surrogate


@dataclass(frozen=True)
class _FitStart:
    """Where a fit of a rotation starts."""

    warping: str
    theta: Array
    rotation: Rotation
    evaluations: int


@dataclass
class OnlineRotation:
    """The rotation in use, and when it is fitted again (`RotationSchedule`).

    Where there are more angles than data, none is fitted.

    Attributes:
        in_use: Whether the evidence for it was better at the last fit, by one for each angle (Akaike 1974).
    """

    in_use: bool = False
    _indices: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    _rotation: Rotation | None = None
    _theta: Array = field(default_factory=lambda: np.empty(0))
    _warping: str = ""
    _fits: int = 0
    _next_fit: Countdown = field(default_factory=Countdown)
    _next_fresh_start: Countdown = field(default_factory=Countdown)

    def prepare(self, layout: Layout, points: Array) -> None:
        """Choose the coordinates to rotate: numbers that all points (n, d) have with different values; forget the old
        rotation where these changed.
        """
        indices = np.flatnonzero(~layout.categorical & (np.ptp(points, axis=0) > 0))
        if len(self._theta) != layout.size or not np.array_equal(self._indices, indices):
            self._indices, self._rotation, self.in_use = indices, None, False
            self._next_fit, self._next_fresh_start = Countdown(), Countdown()

    @property
    def rests(self) -> bool:
        """Whether it is in use, and will not be fitted to the next trial."""
        return self.in_use and not self._next_fit.is_due_next

    def surrogate(self, layout: Layout, points: Array, values: Array) -> Surrogate | None:
        """The surrogate of `values` (n,) at points (n, d), where a rotation is in use."""
        if not self.in_use:
            return None
        warped = warp_values(self._warping, values).values
        return Surrogate(layout, self._theta, points, warped, self._rotation)

    def update(self, straight: Surrogate, values: Array, warping: str, score: float, warpings: tuple[str, ...]) -> None:
        """Count one more series of values and, where a fit is due, fit.

        Args:
            straight: The surrogate of the same values (n,) without a rotation.
            values: The values before they were warped.
            warping: The warping of `straight`.
            score: The logarithm of its evidence times prior.
            warpings: The maps to choose from.
        """
        self._next_fit.tick()
        self._next_fresh_start.tick()
        angles = len(self._indices) * (len(self._indices) - 1) // 2
        if not 0 < angles < len(values) or not self._next_fit.is_due:
            return
        best = -np.inf
        for start in self._starts(straight, values, warping, warpings):
            warped = warp_values(start.warping, values)
            theta, rotation, reached = fit_rotation(
                straight.layout, straight.points, warped.values, start.theta, start.rotation, start.evaluations
            )
            if reached + warped.log_slope > best:
                best = reached + warped.log_slope
                self._warping, self._theta, self._rotation = start.warping, theta, rotation
        self.in_use = best - angles > score
        self._next_fit.restart(RotationSchedule.FIT_EVERY if self.in_use else RotationSchedule.TRY_EVERY)
        self._fits += 1

    def _starts(self, straight: Surrogate, values: Array, warping: str, warpings: tuple[str, ...]) -> list[_FitStart]:
        """The last rotation, at times with another warping; and where it is due, the axes of the curvature."""
        starts = []
        if self._rotation is not None:
            evaluations = RotationSchedule.EVALUATIONS
            starts.append(_FitStart(self._warping, self._theta, self._rotation, evaluations))
            other = RotationSchedule.other_warping(self._fits, [name for name in warpings if name != self._warping])
            if other is not None:
                starts.append(_FitStart(other, self._theta, self._rotation, evaluations))
        if self._next_fresh_start.is_due:
            best = straight.points[np.argmin(values)]
            axes = np.linalg.eigh(straight.curvature(best, self._indices))[1].T
            rotation = Rotation(self._indices, axes)
            starts.append(_FitStart(warping, straight.theta, rotation, RotationSchedule.FRESH_EVALUATIONS))
            self._next_fresh_start.restart(RotationSchedule.FRESH_EVERY)
        return starts
