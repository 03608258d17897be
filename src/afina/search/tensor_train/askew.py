"""Candidates of a surrogate whose coordinates are turned: along its axes, and back within the cube."""

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.candidates import RUNNERS_UP, STARTS, candidates, climb, grids_of, levels_along, rows_of
from afina.search.tensor_train.encode import Pattern
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.problem import Problem
from afina.search.tensor_train.train import Indices, Train
from afina.search.tensor_train.turn import Turn

_EDGE = 1e-9


def askew_places(
    problem: Problem, pattern: Pattern, top: Array, box: tuple[Array, Array], rng: np.random.Generator, work: float
) -> Array:
    """Points (m, d) where the acquisition is high, those that were climbed to along the turned axes first.

    A grid over turned coordinates has most of its points outside the cube: candidates are drawn back to its edge, and
    steps that lead out of it are not taken.

    Args:
        problem: What is maximised, with a turned objective and no constraints.
        pattern: The parameters that the points have.
        top: The best trials (m, d), the best first.
        box: Lowest and highest coordinates, each (d,).
        rng: Of this suggestion.
        work: Multiplications that may be spent.
    """
    turn = problem.objective.turn
    assert turn is not None
    flat = grids_of(problem.domain, pattern, top, box, rng)
    budget = work / (2 * len(problem.objective.points) ** 2)
    placed = turn.to(top)
    train = Train(problem.objective, _levels(turn, flat, top[0], placed, rng))
    count = int(np.clip(budget, 100, 1000))
    points = turn.back(train.points(candidates(train, rows_of(train.levels, placed), count, rng)))
    elsewhere = points[rng.integers(len(points), size=count // 4)]
    elsewhere[:, turn.which] = rng.random((len(elsewhere), len(turn.which)))
    points = np.concatenate([_drawn_in(turn, points), elsewhere])
    order = np.argsort(-problem.acquisition(points), kind="stable")
    starts = turn.to(points[order[:STARTS]])
    train = Train(problem.objective, _levels(turn, flat, top[0], starts, rng))

    def inside(rows: Indices) -> NDArray[np.bool_]:
        moved = turn.back(train.points(rows))[:, turn.which]
        return np.asarray(((moved > -_EDGE) & (moved < 1 + _EDGE)).all(axis=1))

    rows = rows_of(train.levels, starts)
    climbed = [climb(problem, [train], row, budget / STARTS, inside) for row in rows]
    found = _drawn_in(turn, turn.back(train.points(np.array(climbed))))
    return np.concatenate([found, points[order[:RUNNERS_UP]]])


def _levels(turn: Turn, flat: list[Array], best: Array, placed: Array, rng: np.random.Generator) -> list[Array]:
    """Levels of each coordinate; of turned ones, along the line through the best point (d,) and of `placed` (m, d)."""
    levels = list(flat)
    here, middle = best[turn.which], turn.to(best[None])[0]
    for axis, j in zip(turn.matrix, turn.which, strict=True):
        slanted = np.abs(axis) > _EDGE
        ends = np.stack([-here[slanted] / axis[slanted], (1 - here[slanted]) / axis[slanted]])
        low, high = ends.min(axis=0).max(), ends.max(axis=0).min()
        along = middle[j] + levels_along(low, high, np.zeros(1), 1.0, rng)
        levels[j] = np.unique(np.concatenate([along, placed[:, j]]))
    return levels


def _drawn_in(turn: Turn, points: Array) -> Array:
    drawn = points.copy()
    drawn[:, turn.which] = np.clip(points[:, turn.which], 0.0, 1.0)
    return drawn
