"""Points for trials before there is a surrogate: Latin hypercubes, and none twice while another is left."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.encoding import Domain, spread_levels
from afina.search.tensor_train.kernel import Array

# A space of no more points is listed to find those that were not tried; in a larger one a few draws find one.
_MOST_LISTED = 4096
_DRAWS = 16


def first_point(
    domain: Domain, number: int, startup: int, tried: Array, rng: Callable[..., np.random.Generator]
) -> Array:
    """The point (d,) of one of the first trials.

    The first `startup` trials share a Latin hypercube. Where more begin before so many have ended, as with many
    workers, the next ones share another, and so on.

    Args:
        domain: The parameters.
        number: The number of the trial.
        startup: Points of a Latin hypercube.
        tried: Points of finished and running trials, (n, d).
        rng: Gives the generator of a key.
    """
    block, place = divmod(number, startup)
    point = spread_levels(startup, domain, rng(0, block) if block else rng(0))[place]
    return new_point(domain, tried, rng(number)) if _is_tried(domain, point, tried) else point


def new_point(domain: Domain, tried: Array, rng: np.random.Generator) -> Array:
    """A random point (d,), not one of those tried (n, d) where there is another."""
    levels = [c.levels for c in domain.coordinates if c.levels is not None]
    drawn = spread_levels(_DRAWS, domain, rng)
    if len(levels) == len(domain.coordinates) and math.prod(map(len, levels)) <= _MOST_LISTED:
        drawn += list(rng.permutation(np.array(list(itertools.product(*levels)))))
    return next((point for point in drawn if not _is_tried(domain, point, tried)), drawn[0])


def _is_tried(domain: Domain, point: Array, tried: Array) -> bool:
    """Whether a point equals one that was tried, in the parameters that the tried one has."""
    same: NDArray[np.bool_] = np.isnan(tried) | np.isclose(tried, domain.nearest(point))
    return bool(same.all(axis=1).any())
