"""Surrogates kept between suggestions: hyperparameters start from the last ones, warps and starts are tried in turn."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.kernel import Array, Layout, distances
from afina.search.tensor_train.surrogate import Surrogate, fit, starts
from afina.search.tensor_train.turn import Turn, fit_turn
from afina.search.tensor_train.warp import WARPS, draw_in, warp

# Seconds that one evaluation of the evidence takes for one pair of points and one coordinate, about.
_COST = 2.5e-8
_SECONDS = 0.05
_MOST, _LEAST = 60, 6
# Trials between two fits of a rotation, where it is in use and where not, and evaluations of the evidence in each; the
# same for those that begin anew. With 40 evaluations for the latter they stayed behind what had been refined for long.
_TURN_EVERY, _TRY_EVERY, _TURN_EVALUATIONS = 5, 8, 40
_FRESH_EVERY, _FRESH_EVALUATIONS = 40, 150


def fit_smooth(layout: Layout, points: Array, values: Array) -> Surrogate:
    """A surrogate of `values` (n,) that sees the trend over the whole cube only, with all else as noise."""
    mapped = warp("identity", values).values
    evaluations = int(np.clip(_SECONDS / (_COST * len(values) ** 2 * layout.d), _LEAST, _MOST))
    theta, _ = fit(layout, points, mapped, [layout.prior(smooth=True)[0]], evaluations, smooth=True)
    return Surrogate(layout, theta, points, mapped)


def fit_near(layout: Layout, points: Array, values: Array, centre: Array, count: int) -> tuple[Surrogate, float]:
    """A surrogate of the `count` data nearest to a point (d,), and the distance within which half of them are."""
    gap = np.nan_to_num(distances(points, centre[None], layout.categorical)[:, :, 0], nan=0.0).max(axis=0)
    near = np.argsort(gap, kind="stable")[:count]
    mapped = warp("identity", draw_in(values[near])).values
    mean = layout.prior()[0]
    evaluations = int(np.clip(_SECONDS / (_COST * len(near) ** 2 * layout.d), _LEAST, _MOST))
    theta, _ = fit(layout, points[near], mapped, [mean], evaluations)
    return Surrogate(layout, theta, points[near], mapped), float(gap[near[len(near) // 2]])


@dataclass
class _Turned:
    """The rotation of the numbers that has most evidence, as trials come in.

    It is fitted to every sixth trial while it is in use, and to every ninth otherwise: from the last one, and now and
    then from the principal axes of the straight surrogate's curvature at the best point, which are those of a sum.
    Where there are more angles than data, it is not.

    Attributes:
        used: Whether the evidence for it was better at the last fit, by one for each angle (Akaike 1974).
    """

    used: bool = False
    _which: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    _turn: Turn | None = None
    _theta: Array = field(default_factory=lambda: np.empty(0))
    _warp: str = ""
    _fits: int = 0
    _rest: int = 0
    _fresh: int = 0

    def prepare(self, layout: Layout, points: Array) -> None:
        """Begins anew where the numbers that all points (n, d) have, and that differ among them, are others."""
        which = np.flatnonzero(~layout.categorical & (np.ptp(points, axis=0) > 0))
        if len(self._theta) != layout.size or not np.array_equal(self._which, which):
            self._which, self._turn, self._rest, self._fresh, self.used = which, None, 0, 0, False

    @property
    def resting(self) -> bool:
        """Whether it is in use, and will not be fitted to the next trial."""
        return self.used and self._rest > 0

    def surrogate(self, layout: Layout, points: Array, values: Array) -> Surrogate | None:
        """The surrogate of `values` (n,) at points (n, d), where it is in use."""
        if not self.used:
            return None
        return Surrogate(layout, self._theta, points, warp(self._warp, values).values, self._turn)

    def update(self, straight: Surrogate, values: Array, name: str, score: float, warps: tuple[str, ...]) -> None:
        """Counts one more series of values, and where it is time for that, fits.

        Args:
            straight: Of the same values (n,), not turned.
            values: Before their warp.
            name: The warp of `straight`.
            score: The logarithm of its evidence times prior.
            warps: To choose from.
        """
        layout, points = straight.layout, straight.points
        self._rest -= 1
        self._fresh -= 1
        which, angles = self._which, len(self._which) * (len(self._which) - 1) // 2
        if not 0 < angles < len(values) or self._rest >= 0:
            return
        begin = []
        if self._turn is not None:
            begin.append((self._warp, self._theta, self._turn, _TURN_EVALUATIONS))
            others = [kind for kind in warps if kind != self._warp]
            if others and self._fits % 3 == 2:
                begin.append((others[self._fits // 3 % len(others)], self._theta, self._turn, _TURN_EVALUATIONS))
        if self._fresh < 0:
            axes = np.linalg.eigh(straight.curvature(points[np.argmin(values)], which))[1].T
            begin.append((name, straight.theta, Turn(which, axes), _FRESH_EVALUATIONS))
            self._fresh = _FRESH_EVERY
        best = -np.inf
        for kind, theta, turn, evaluations in begin:
            mapped = warp(kind, values)
            theta, turn, found = fit_turn(layout, points, mapped.values, theta, turn, evaluations)
            if found + mapped.log_slope > best:
                best, self._warp, self._theta, self._turn = found + mapped.log_slope, kind, theta, turn
        self.used = best - angles > score
        self._rest = _TURN_EVERY if self.used else _TRY_EVERY
        self._fits += 1


@dataclass
class Model:
    """The surrogate of one series of values, as trials come in.

    Every suggestion refines the hyperparameters of the warp in use; in turn with it, another warp, or the same with
    a fresh start, is tried, and kept where its evidence is better. So the time of a suggestion stays even, but for
    those that fit a rotation.

    Attributes:
        warps: The maps to choose from.
    """

    warps: tuple[str, ...] = WARPS
    _theta: dict[str, Array] = field(default_factory=dict)
    _chosen: str = ""
    _score: float = -np.inf
    _fitted: Array = field(default_factory=lambda: np.empty(0))
    _count: int = 0
    _turned: _Turned = field(default_factory=_Turned)

    def update(
        self, layout: Layout, points: Array, values: Array, share: float = 1.0, turns: bool = False
    ) -> Surrogate:
        """The surrogate of `values` (n,), finite, at points (n, d).

        Args:
            layout: The coordinates.
            points: Of the data.
            values: Of the data.
            share: Scales the work.
            turns: Whether the numbers may be turned together, where the evidence for that is strong.
        """
        n = len(values)
        evaluations = int(np.clip(share * _SECONDS / (_COST * n * n * layout.d), _LEAST, _MOST))
        fresh = not np.array_equal(values, self._fitted)
        if turns:
            self._turned.prepare(layout, points)
        if not self._theta or len(next(iter(self._theta.values()))) != layout.size:
            self._first(layout, points, values, evaluations)
        elif fresh and not (turns and self._turned.resting):
            self._next(layout, points, values, evaluations)
        self._fitted = values
        mapped = warp(self._chosen, values).values
        straight = Surrogate(layout, self._theta[self._chosen], points, mapped)
        if not turns:
            return straight
        if fresh:
            self._turned.update(straight, values, self._chosen, self._score, self.warps)
        return self._turned.surrogate(layout, points, values) or straight

    def _first(self, layout: Layout, points: Array, values: Array, evaluations: int) -> None:
        """Every warp from the prior's mean, then the best one from every start."""
        self._theta = {}
        found = {}
        for name in self.warps:
            mapped = warp(name, values)
            self._theta[name], score = fit(layout, points, mapped.values, starts(layout)[:1], evaluations)
            found[name] = score + mapped.log_slope
        self._chosen = max(found, key=lambda name: found[name])
        mapped = warp(self._chosen, values)
        first = [self._theta[self._chosen], *starts(layout)[1:]]
        self._theta[self._chosen], score = fit(layout, points, mapped.values, first, evaluations)
        self._score = score + mapped.log_slope

    def _next(self, layout: Layout, points: Array, values: Array, evaluations: int) -> None:
        """The warp in use from its last hyperparameters, and one other trial of a warp or a start."""
        self._count += 1
        heavy = evaluations < _MOST // 2
        mapped = warp(self._chosen, values)
        refined = not heavy or self._count % 2 == 1
        start = self._theta[self._chosen]
        theta, score = fit(layout, points, mapped.values, [start], evaluations if refined else 1)
        self._score = score + mapped.log_slope
        if refined:
            self._theta[self._chosen] = theta
            if heavy:
                return
        others = [name for name in self.warps if name != self._chosen]
        fresh = starts(layout)
        pick = (self._count // 2 if heavy else self._count) % (len(others) + len(fresh))
        if pick < len(others):
            name, start = others[pick], self._theta[others[pick]]
        else:
            name, start = self._chosen, fresh[pick - len(others)]
        other = warp(name, values)
        theta, score = fit(layout, points, other.values, [start], evaluations)
        better = score + other.log_slope > self._score
        if name != self._chosen or better:
            self._theta[name] = theta
        if better:
            self._chosen, self._score = name, score + other.log_slope
