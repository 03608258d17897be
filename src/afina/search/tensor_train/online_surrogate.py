"""A surrogate that is kept between suggestions: its hyperparameters follow the data as trials come in.

**What comes in**: at each suggestion the points (n, d) of the finished trials and their values (n,), one row longer
than at the last one, as a rule. **What comes out**: a `Surrogate`, which is a Gaussian process with fitted
hyperparameters `theta` (3 d + 3,) over warped values.

A worked example, with two parameters and four values, of which the last is an outlier:

    values    = [1.0, 2.0, 3.0, 40.0]
    identity  = [-0.64, -0.58, -0.52, 1.73]     standardised: three of them look the same
    log 0.1   = [-1.29, -0.27, 0.05, 1.51]     log(values - 1 + 0.1 * (median - 1)): they differ again

Each warping has a `theta` of its own and a score, `log p(warped | points, theta) + log p(theta) + log slopes`; the last
term makes scores comparable (without it the map that squeezes most would always win). The best one is in use.

Fits from all starts of all warpings take seconds where a suggestion should take a tenth of one. So only the first
update does that, and `FitSchedule` says what each later one does: the warping in use is refined from its last `theta`,
and one alternative (another warping from its own last `theta`, or another start for the one in use) is tried, one
after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from afina.search.tensor_train.kernel import Array, Layout
from afina.search.tensor_train.online_rotation import OnlineRotation
from afina.search.tensor_train.output_warping import WARPINGS, warp_values
from afina.search.tensor_train.schedule import FitSchedule, FitStep, evaluations_per_fit
from afina.search.tensor_train.surrogate import Surrogate, fit, starts


@dataclass(frozen=True)
class _Alternative:
    """A warping, and the hyperparameters to start its fit from."""

    warping: str
    theta: Array


@dataclass
class OnlineSurrogate:
    """The surrogate of one series of values, as trials come in.

    The time of a suggestion stays even, but for those that fit a rotation.

    Attributes:
        warpings: The maps to choose from.

    Example:
        >>> points = np.linspace(0, 1, 8)[:, None]
        >>> online = OnlineSurrogate()
        >>> surrogate = online.update(Layout(np.array([False])), points, (points[:, 0] - 0.3) ** 2)
        >>> mean, variance = surrogate.posterior(np.array([[0.3], [0.9]]))
        >>> bool(mean[0] < mean[1])
        True
    """

    warpings: tuple[str, ...] = WARPINGS
    _theta: dict[str, Array] = field(default_factory=dict)
    _in_use: str = ""
    _score: float = -np.inf
    _fitted_values: Array = field(default_factory=lambda: np.empty(0))
    _updates: int = 0
    _rotation: OnlineRotation = field(default_factory=OnlineRotation)

    def update(
        self, layout: Layout, points: Array, values: Array, share: float = 1.0, allow_rotation: bool = False
    ) -> Surrogate:
        """The surrogate of `values` (n,), finite, at points (n, d).

        Args:
            layout: The coordinates.
            points: Points of the data.
            values: Values of the data.
            share: Scales the work.
            allow_rotation: Whether the numbers may be rotated together, where the evidence for that is strong.
        """
        evaluations = evaluations_per_fit(len(values), layout.d, share)
        schedule = FitSchedule.for_budget(evaluations)
        changed = not np.array_equal(values, self._fitted_values)
        if allow_rotation:
            self._rotation.prepare(layout, points)
        step = self._step(layout, schedule, changed, allow_rotation)
        if step is FitStep.FIRST:
            self._fit_all(layout, points, values, evaluations)
        elif step is not FitStep.KEEP:
            self._refit(layout, points, values, evaluations, schedule)
        self._fitted_values = values
        warped = warp_values(self._in_use, values).values
        straight = Surrogate(layout, self._theta[self._in_use], points, warped)
        if not allow_rotation:
            return straight
        if changed:
            self._rotation.update(straight, values, self._in_use, self._score, self.warpings)
        return self._rotation.surrogate(layout, points, values) or straight

    def _step(self, layout: Layout, schedule: FitSchedule, changed: bool, allow_rotation: bool) -> FitStep:
        """What this update does to the hyperparameters; a step of the schedule is counted."""
        if not self._theta or len(next(iter(self._theta.values()))) != layout.size:
            return FitStep.FIRST
        if not changed or (allow_rotation and self._rotation.rests):
            return FitStep.KEEP
        self._updates += 1
        return schedule.step(self._updates)

    def _fit_all(self, layout: Layout, points: Array, values: Array, evaluations: int) -> None:
        """Fit every warping from the prior's mean, then the best one from every start."""
        self._theta = {}
        scores = {}
        for name in self.warpings:
            warped = warp_values(name, values)
            self._theta[name], score = fit(layout, points, warped.values, starts(layout)[:1], evaluations)
            scores[name] = score + warped.log_slope
        self._in_use = max(scores, key=lambda name: scores[name])
        warped = warp_values(self._in_use, values)
        all_starts = [self._theta[self._in_use], *starts(layout)[1:]]
        self._theta[self._in_use], score = fit(layout, points, warped.values, all_starts, evaluations)
        self._score = score + warped.log_slope

    def _refit(self, layout: Layout, points: Array, values: Array, evaluations: int, schedule: FitSchedule) -> None:
        """Refine the warping in use, or explore an alternative, or both, as the schedule says."""
        step = schedule.step(self._updates)
        warped = warp_values(self._in_use, values)
        # One evaluation scores the hyperparameters as they are, for the comparison with the alternative.
        theta, score = fit(
            layout, points, warped.values, [self._theta[self._in_use]], evaluations if step.refines else 1
        )
        self._score = score + warped.log_slope
        if step.refines:
            self._theta[self._in_use] = theta
        if step.explores:
            alternative = schedule.alternative(self._updates, self._alternatives(layout))
            self._explore(alternative, layout, points, values, evaluations)

    def _alternatives(self, layout: Layout) -> Sequence[_Alternative]:
        """The other warpings from their last hyperparameters, then every start for the one in use."""
        others = [_Alternative(name, self._theta[name]) for name in self.warpings if name != self._in_use]
        return [*others, *(_Alternative(self._in_use, start) for start in starts(layout))]

    def _explore(
        self, alternative: _Alternative, layout: Layout, points: Array, values: Array, evaluations: int
    ) -> None:
        """Fit an alternative, and put it to use where its score is better."""
        warped = warp_values(alternative.warping, values)
        theta, score = fit(layout, points, warped.values, [alternative.theta], evaluations)
        better = score + warped.log_slope > self._score
        if alternative.warping != self._in_use or better:
            self._theta[alternative.warping] = theta
        if better:
            self._in_use, self._score = alternative.warping, score + warped.log_slope
