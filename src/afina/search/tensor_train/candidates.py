"""Candidates on a grid: minima of the train's parts, incumbents and their mutations; and the climb from the best."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.acquisition import log_feasible, log_improvement
from afina.search.tensor_train.encoding import Domain, Pattern
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.posterior_train import Indices, TensorTrain
from afina.search.tensor_train.problem import Problem

_OPTIMISM = (0.0, 0.5, 1.0, 2.0)
_BEAM = 6
_ROUNDS = 4
# Candidates that are climbed from, and the best of the others that are kept beside what they lead to.
STARTS, RUNNERS_UP = 4, 20
_SAME = 1e-9


def grids_of(
    domain: Domain, pattern: Pattern, top: Array, box: tuple[Array, Array], rng: np.random.Generator
) -> list[Array]:
    """Levels of each coordinate: all where they are few; else spread over the box, of incumbents and near the best."""
    grids = []
    for j in range(len(domain.coordinates)):
        low, high = float(box[0][j]), float(box[1][j])
        levels_here = pattern.levels[j]
        if not pattern.active[j]:
            grids.append(np.array([np.nan]))
        elif levels_here is not None:
            inside = (
                levels_here[(levels_here >= low - _SAME) & (levels_here <= high + _SAME)]
                if not domain.coordinates[j].categorical
                else levels_here
            )
            grids.append(inside if len(inside) else levels_here)
        else:
            near = top[:, j]
            levels = levels_along(low, high, near[:1], high - low, rng)
            grids.append(np.unique(np.clip(np.concatenate([levels, near]), low, high)))
    return grids


def levels_along(low: float, high: float, middle: Array, scale: float, rng: np.random.Generator) -> Array:
    """Levels spread from `low` to `high`, and at steps of up to 0.15 `scale` around `middle`, (1,) or none (0,)."""
    spread = low + (high - low) * (np.arange(14) + rng.random(14)) / 14
    steps = np.array([-0.1, -0.03, -0.01, 0.01, 0.03, 0.1]) * rng.uniform(0.5, 1.5, 6) * scale
    return np.concatenate([spread, [low, high], (middle[:, None] + steps).ravel()])


def rows_of(grids: list[Array], points: Array) -> Indices:
    """Indices of the levels nearest to points (m, d)."""
    rows = np.zeros((len(points), len(grids)), dtype=np.intp)
    for j, grid in enumerate(grids):
        if len(grid) > 1:
            rows[:, j] = np.abs(points[:, j][:, None] - grid[None]).argmin(axis=1)
    return rows


def candidates(train: TensorTrain, top: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Minima of the additive part, ends of a beam search, incumbents, their mutations and mixtures, and random ones."""
    sizes = np.array([len(grid) for grid in train.levels])
    d = len(sizes)
    minima = train.additive_minimum(_OPTIMISM)
    random = (rng.random((max(count // 3, 20), d)) * sizes).astype(np.intp)
    if not len(top):
        top = minima[:1]
    starts = (minima[0], top[0])
    beams = [train.beam(start, _BEAM, rng.permutation(d)) for start in starts]
    many = max(count - len(random) - len(minima) - 2 * _BEAM, 20)
    sources = np.concatenate([top, minima, *[b[:2] for b in beams]])
    mutated = sources[rng.integers(len(sources), size=many)].copy()
    other = sources[rng.integers(len(sources), size=many)]
    change = rng.random((many, d)) < (rng.integers(1, 4, size=many) / d)[:, None]
    fresh = (rng.random((many, d)) * sizes).astype(np.intp)
    half = many // 2
    mutated[:half] = np.where(change[:half], fresh[:half], mutated[:half])
    mix = rng.random((many - half, d)) < 0.3
    mutated[half:] = np.where(mix, other[half:], mutated[half:])
    return np.unique(np.concatenate([minima, *beams, top, mutated, random]), axis=0)


def acquisition_at(problem: Problem, trains: Sequence[TensorTrain], rows: Indices) -> Array:
    """The acquisition (m,) at points of the grid, given as indices (m, d)."""
    return acquisition_from_covariance(problem, [train.covariance(rows) for train in trains], trains)


def acquisition_from_covariance(problem: Problem, crosses: Sequence[Array], trains: Sequence[TensorTrain]) -> Array:
    """The acquisition (m,) from the kernel (m, n) of each surrogate."""
    total = np.zeros(len(crosses[0]))
    if problem.best is not None:
        total += log_improvement(*trains[0].surrogate.from_covariance(crosses[0]), problem.best)
    for train, cross, limit in zip(trains[1:], crosses[1:], problem.limits, strict=True):
        mean, variance = train.surrogate.from_covariance(cross)
        total += log_feasible(mean - limit, variance)
    return total


def distinct(rows: Indices, scores: Array, count: int) -> Indices:
    """The best `count` rows, of which no two differ in one coordinate only."""
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all((rows[i] != rows[k]).sum() > 1 for k in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return rows[chosen]


def climb(
    problem: Problem,
    trains: Sequence[TensorTrain],
    row: Indices,
    budget: float,
    inside: Callable[[Indices], NDArray[np.bool_]] | None = None,
) -> Indices:
    """Steps to the best of all points that differ in one coordinate, until none is better or the budget is spent.

    Args:
        problem: What is maximised.
        trains: One for each surrogate.
        row: Indices to start from (d,).
        budget: Points whose acquisition may be computed.
        inside: Which of rows (m, d) may be stepped to; None for all.
    """
    best = float(acquisition_at(problem, trains, row[None])[0])
    for step in range(_ROUNDS):
        neighbours, cross = trains[0].neighbours(row)
        if inside is not None:
            allowed = inside(neighbours)
            neighbours, cross = neighbours[allowed], cross[allowed]
        if not len(neighbours) or (step and budget < len(neighbours)):
            break
        budget -= len(neighbours)
        scores = acquisition_from_covariance(problem, [cross, *[t.covariance(neighbours) for t in trains[1:]]], trains)
        i = int(np.argmax(scores))
        if scores[i] <= best + 1e-6:
            break
        row, best = neighbours[i], float(scores[i])
    return row
