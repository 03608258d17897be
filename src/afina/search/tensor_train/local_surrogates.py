"""Surrogates that are fitted anew for one suggestion: of the trend alone, and of the data near a point."""

import numpy as np

from afina.search.tensor_train.kernel import Array, Layout, distances
from afina.search.tensor_train.output_warping import compress_outliers, warp_values
from afina.search.tensor_train.schedule import evaluations_per_fit
from afina.search.tensor_train.surrogate import Surrogate, fit


def fit_smooth(layout: Layout, points: Array, values: Array) -> Surrogate:
    """A surrogate of `values` (n,) that sees the trend over the whole cube only, with all else as noise."""
    standardised = warp_values("identity", values).values
    evaluations = evaluations_per_fit(len(values), layout.d)
    theta, _ = fit(layout, points, standardised, [layout.prior(smooth=True)[0]], evaluations, smooth=True)
    return Surrogate(layout, theta, points, standardised)


def fit_near(layout: Layout, points: Array, values: Array, centre: Array, count: int) -> tuple[Surrogate, float]:
    """A surrogate of the `count` data nearest to a point (d,), and the distance within which half of them are."""
    gap = np.nan_to_num(distances(points, centre[None], layout.categorical)[:, :, 0], nan=0.0).max(axis=0)
    near = np.argsort(gap, kind="stable")[:count]
    standardised = warp_values("identity", compress_outliers(values[near])).values
    evaluations = evaluations_per_fit(len(near), layout.d)
    theta, _ = fit(layout, points[near], standardised, [layout.prior()[0]], evaluations)
    return Surrogate(layout, theta, points[near], standardised), float(gap[near[len(near) // 2]])
