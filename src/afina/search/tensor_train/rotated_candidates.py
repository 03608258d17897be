"""Candidates of a surrogate whose coordinates are rotated: along its axes, and back within the cube."""

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.candidates import RUNNERS_UP, STARTS, candidates, climb, grids_of, levels_along, rows_of
from afina.search.tensor_train.encoding import Pattern
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.posterior_train import Indices, TensorTrain
from afina.search.tensor_train.problem import Problem
from afina.search.tensor_train.rotation import Rotation

_EDGE = 1e-9


def rotated_candidates(
    problem: Problem, pattern: Pattern, top: Array, box: tuple[Array, Array], rng: np.random.Generator, work: float
) -> Array:
    """Points (m, d) where the acquisition is high, those that were climbed to along the rotated axes first.

    A grid over rotated coordinates has most of its points outside the cube: candidates are drawn back to its edge, and
    steps that lead out of it are not taken.

    Args:
        problem: What is maximised, with a rotated objective and no constraints.
        pattern: The parameters that the points have.
        top: The best trials (m, d), the best first.
        box: Lowest and highest coordinates, each (d,).
        rng: The generator of this suggestion.
        work: Multiplications that may be spent.
    """
    rotation = problem.objective.rotation
    assert rotation is not None
    flat = grids_of(problem.domain, pattern, top, box, rng)
    budget = work / (2 * len(problem.objective.points) ** 2)
    placed = rotation.rotate(top)
    train = TensorTrain(problem.objective, _levels(rotation, flat, top[0], placed, rng))
    count = int(np.clip(budget, 100, 1000))
    points = rotation.rotate_back(train.points(candidates(train, rows_of(train.levels, placed), count, rng)))
    elsewhere = points[rng.integers(len(points), size=count // 4)]
    elsewhere[:, rotation.indices] = rng.random((len(elsewhere), len(rotation.indices)))
    points = np.concatenate([_clipped(rotation, points), elsewhere])
    order = np.argsort(-problem.acquisition(points), kind="stable")
    starts = rotation.rotate(points[order[:STARTS]])
    train = TensorTrain(problem.objective, _levels(rotation, flat, top[0], starts, rng))

    def inside(rows: Indices) -> NDArray[np.bool_]:
        moved = rotation.rotate_back(train.points(rows))[:, rotation.indices]
        return np.asarray(((moved > -_EDGE) & (moved < 1 + _EDGE)).all(axis=1))

    rows = rows_of(train.levels, starts)
    climbed = [climb(problem, [train], row, budget / STARTS, inside) for row in rows]
    reached = _clipped(rotation, rotation.rotate_back(train.points(np.array(climbed))))
    return np.concatenate([reached, points[order[:RUNNERS_UP]]])


def _levels(rotation: Rotation, flat: list[Array], best: Array, placed: Array, rng: np.random.Generator) -> list[Array]:
    """Levels of each coordinate; of rotated ones, along the line through the best point (d,) and of `placed` (m, d)."""
    levels = list(flat)
    here, middle = best[rotation.indices], rotation.rotate(best[None])[0]
    for axis, j in zip(rotation.matrix, rotation.indices, strict=True):
        slanted = np.abs(axis) > _EDGE
        ends = np.stack([-here[slanted] / axis[slanted], (1 - here[slanted]) / axis[slanted]])
        low, high = ends.min(axis=0).max(), ends.max(axis=0).min()
        along = middle[j] + levels_along(low, high, np.zeros(1), 1.0, rng)
        levels[j] = np.unique(np.concatenate([along, placed[:, j]]))
    return levels


def _clipped(rotation: Rotation, points: Array) -> Array:
    clipped = points.copy()
    clipped[:, rotation.indices] = np.clip(points[:, rotation.indices], 0.0, 1.0)
    return clipped
