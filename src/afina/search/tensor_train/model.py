"""Surrogates kept between suggestions: hyperparameters start from the last ones, warps and starts are tried in turn."""

from dataclasses import dataclass, field

import numpy as np

from afina.search.tensor_train.kernel import Array, Layout, distances
from afina.search.tensor_train.surrogate import Surrogate, fit, starts
from afina.search.tensor_train.warp import WARPS, draw_in, warp

# Seconds that one evaluation of the evidence takes for one pair of points and one coordinate, about.
_COST = 2.5e-8
_SECONDS = 0.05
_MOST, _LEAST = 60, 6


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
class Model:
    """The surrogate of one series of values, as trials come in.

    Every suggestion refines the hyperparameters of the warp in use; in turn with it, another warp, or the same with
    a fresh start, is tried, and kept where its evidence is better. So the time of a suggestion stays even.

    Attributes:
        warps: The maps to choose from.
    """

    warps: tuple[str, ...] = WARPS
    _theta: dict[str, Array] = field(default_factory=dict)
    _chosen: str = ""
    _fitted: Array = field(default_factory=lambda: np.empty(0))
    _turn: int = 0

    def update(self, layout: Layout, points: Array, values: Array, share: float = 1.0) -> Surrogate:
        """The surrogate of `values` (n,), finite, at points (n, d); `share` scales the work."""
        n = len(values)
        evaluations = int(np.clip(share * _SECONDS / (_COST * n * n * layout.d), _LEAST, _MOST))
        if not self._theta or len(next(iter(self._theta.values()))) != layout.size:
            self._first(layout, points, values, evaluations)
        elif not np.array_equal(values, self._fitted):
            self._next(layout, points, values, evaluations)
        self._fitted = values
        return Surrogate(layout, self._theta[self._chosen], points, warp(self._chosen, values).values)

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
        self._theta[self._chosen], _ = fit(layout, points, mapped.values, first, evaluations)

    def _next(self, layout: Layout, points: Array, values: Array, evaluations: int) -> None:
        """The warp in use from its last hyperparameters, and one other trial of a warp or a start."""
        self._turn += 1
        heavy = evaluations < _MOST // 2
        mapped = warp(self._chosen, values)
        if not heavy or self._turn % 2:
            self._theta[self._chosen], score = fit(
                layout, points, mapped.values, [self._theta[self._chosen]], evaluations
            )
            if heavy:
                return
        else:
            _, score = fit(layout, points, mapped.values, [self._theta[self._chosen]], 1)
        others = [name for name in self.warps if name != self._chosen]
        fresh = starts(layout)
        pick = (self._turn // 2 if heavy else self._turn) % (len(others) + len(fresh))
        if pick < len(others):
            name, start = others[pick], self._theta[others[pick]]
        else:
            name, start = self._chosen, fresh[pick - len(others)]
        other = warp(name, values)
        theta, rival = fit(layout, points, other.values, [start], evaluations)
        better = rival + other.log_slope > score + mapped.log_slope
        if name != self._chosen or better:
            self._theta[name] = theta
        if better:
            self._chosen = name
