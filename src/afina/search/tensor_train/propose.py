"""The next point: where expected improvement is highest, found along the train, on its grid and between its levels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from afina.search.tensor_train.acquisition import (
    log_feasible,
    log_feasible_slopes,
    log_improvement,
    log_improvement_slopes,
)
from afina.search.tensor_train.encode import Domain, Pattern
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.surrogate import Surrogate
from afina.search.tensor_train.train import Indices, Train

# Multiplications that one suggestion may spend on variances of candidates.
_WORK = 3e7
_OPTIMISM = (0.0, 0.5, 1.0, 2.0)
_BEAM = 6
_STARTS = 4
_ROUNDS = 4
_INCUMBENTS = 8
# Candidates among which a drawn function is followed.
_DRAWN = 400
_SAME = 1e-9


@dataclass(frozen=True)
class Problem:
    """What is maximised: the logarithm of expected improvement times the probability that constraints hold.

    Attributes:
        domain: The d parameters.
        objective: Surrogate of what is minimised.
        best: The value to improve on; None where no trial is feasible, so that feasibility alone is sought.
        constraints: One surrogate for each constraint.
        limits: For each, the highest value that is feasible, on the scale of its surrogate.
    """

    domain: Domain
    objective: Surrogate
    best: float | None
    constraints: tuple[Surrogate, ...] = ()
    limits: tuple[float, ...] = ()

    def acquisition(self, points: Array) -> Array:
        """Its value (m,) at points (m, d)."""
        total = np.zeros(len(points))
        if self.best is not None:
            total += log_improvement(*self.objective.posterior(points), self.best)
        for surrogate, limit in zip(self.constraints, self.limits, strict=True):
            mean, variance = surrogate.posterior(points)
            total += log_feasible(mean - limit, variance)
        return total

    def slopes(self, points: Array) -> tuple[Array, Array]:
        """Its value (m,) at points (m, d), and its gradient (m, d)."""
        total, gradient = np.zeros(len(points)), np.zeros(points.shape)
        if self.best is not None:
            mean, variance, by_x, variance_by_x = self.objective.gradient(points)
            total += log_improvement(mean, variance, self.best)
            by_mean, by_variance = log_improvement_slopes(mean, variance, self.best)
            gradient += by_mean[:, None] * by_x + by_variance[:, None] * variance_by_x
        for surrogate, limit in zip(self.constraints, self.limits, strict=True):
            mean, variance, by_x, variance_by_x = surrogate.gradient(points)
            total += log_feasible(mean - limit, variance)
            by_mean, by_variance = log_feasible_slopes(mean - limit, variance)
            gradient += by_mean[:, None] * by_x + by_variance[:, None] * variance_by_x
        return total, gradient


@dataclass(frozen=True)
class Proposal:
    """A point (d,) and the acquisition there."""

    point: Array
    score: float


def propose(
    problem: Problem,
    pattern: Pattern,
    known: Array,
    ranks: Array,
    rng: np.random.Generator,
    box: tuple[Array, Array],
    share: float = 1.0,
) -> list[Proposal]:
    """Points where the acquisition is high, the best first; none of them is known already.

    Args:
        problem: What is maximised.
        pattern: The parameters that the points have.
        known: Points (n, d) that were tried or are running.
        ranks: Their values (n,), to order them; running ones as infinity.
        rng: Of this suggestion.
        box: Lowest and highest unit coordinates, each (d,), for numbers.
        share: Of the work of a whole suggestion.
    """
    order = np.argsort(ranks, kind="stable")
    members = order[(~np.isnan(known[order]) == pattern.active).all(axis=1)]
    top = known[members[:_INCUMBENTS]]
    grids = _grids(problem.domain, pattern, top, box, rng)
    trains = [Train(s, grids) for s in (problem.objective, *problem.constraints)]
    n = len(problem.objective.points)
    count = int(np.clip(share * _WORK / (2 * n * n * len(trains)), 100, 1000))
    rows = _candidates(trains[0], _rows_of(grids, top), count, rng)
    scores = _score(problem, trains, rows)
    starts = _distinct(rows, scores, _STARTS)
    budget = share * _WORK / (2 * n * n * len(trains))
    climbed = [_climb(problem, trains, row, budget / _STARTS) for row in starts]
    points = trains[0].points(np.array([row for row, _ in climbed]))
    polished = _polish(problem, pattern, points, box)
    found = np.concatenate([polished, points, trains[0].points(rows[np.argsort(-scores)[:20]])])
    found = np.array([problem.domain.nearest(p) for p in found])
    fresh = found[[not _is_known(p, known) for p in found]]
    if not len(fresh):
        return []
    values = problem.acquisition(fresh)
    return [Proposal(fresh[i], float(values[i])) for i in np.argsort(-values, kind="stable")]


def draw(
    problem: Problem,
    pattern: Pattern,
    known: Array,
    ranks: Array,
    rng: np.random.Generator,
    box: tuple[Array, Array],
) -> list[Proposal]:
    """Points where one function that is drawn from the posterior is least, the best first (Thompson sampling).

    The candidates are those of `propose`; constraints are drawn too, and where one does not hold a point comes last.
    Arguments are as there.
    """
    order = np.argsort(ranks, kind="stable")
    members = order[(~np.isnan(known[order]) == pattern.active).all(axis=1)]
    top = known[members[:_INCUMBENTS]]
    grids = _grids(problem.domain, pattern, top, box, rng)
    train = Train(problem.objective, grids)
    points = train.points(_candidates(train, _rows_of(grids, top), _DRAWN, rng))
    points = np.unique([problem.domain.nearest(p) for p in points], axis=0)
    points = points[[not _is_known(p, known) for p in points]]
    if not len(points):
        return []
    values = problem.objective.draw(points, rng)
    for surrogate, limit in zip(problem.constraints, problem.limits, strict=True):
        over = surrogate.draw(points, rng) - limit
        values = np.where(over > 0, values.max() + over, values)
    return [Proposal(points[i], -float(values[i])) for i in np.argsort(values, kind="stable")]


def _grids(
    domain: Domain, pattern: Pattern, top: Array, box: tuple[Array, Array], rng: np.random.Generator
) -> list[Array]:
    """Levels of each coordinate: all where they are few; else spread over the box, of incumbents and near the best."""
    grids = []
    for j in range(len(domain.coordinates)):
        low, high = float(box[0][j]), float(box[1][j])
        own = pattern.levels[j]
        if not pattern.active[j]:
            grids.append(np.array([np.nan]))
        elif own is not None:
            inside = own[(own >= low - _SAME) & (own <= high + _SAME)] if not domain.coordinates[j].categorical else own
            grids.append(inside if len(inside) else own)
        else:
            spread = low + (high - low) * (np.arange(14) + rng.random(14)) / 14
            near = top[:, j]
            steps = np.array([-0.1, -0.03, -0.01, 0.01, 0.03, 0.1]) * rng.uniform(0.5, 1.5, 6) * (high - low)
            close = near[0] + steps if len(near) else near
            grids.append(np.unique(np.clip(np.concatenate([spread, [low, high], near, close]), low, high)))
    return grids


def _rows_of(grids: list[Array], points: Array) -> Indices:
    """Indices of the levels nearest to points (m, d)."""
    rows = np.zeros((len(points), len(grids)), dtype=np.intp)
    for j, grid in enumerate(grids):
        if len(grid) > 1:
            rows[:, j] = np.abs(points[:, j][:, None] - grid[None]).argmin(axis=1)
    return rows


def _candidates(train: Train, top: Indices, count: int, rng: np.random.Generator) -> Indices:
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


def _score(problem: Problem, trains: Sequence[Train], rows: Indices) -> Array:
    return _judge(problem, [train.covariance(rows) for train in trains], trains)


def _judge(problem: Problem, crosses: Sequence[Array], trains: Sequence[Train]) -> Array:
    """The acquisition (m,) from the kernel (m, n) of each surrogate."""
    total = np.zeros(len(crosses[0]))
    if problem.best is not None:
        total += log_improvement(*trains[0].surrogate.from_covariance(crosses[0]), problem.best)
    for train, cross, limit in zip(trains[1:], crosses[1:], problem.limits, strict=True):
        mean, variance = train.surrogate.from_covariance(cross)
        total += log_feasible(mean - limit, variance)
    return total


def _distinct(rows: Indices, scores: Array, count: int) -> Indices:
    """The best `count` rows, of which no two differ in one coordinate only."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all((rows[i] != rows[k]).sum() > 1 for k in kept):
            kept.append(int(i))
        if len(kept) == count:
            break
    return rows[kept]


def _climb(problem: Problem, trains: Sequence[Train], row: Indices, budget: float) -> tuple[Indices, float]:
    """Steps to the best of all points that differ in one coordinate, until none is better or the budget is spent."""
    best = float(_score(problem, trains, row[None])[0])
    for step in range(_ROUNDS):
        neighbours, cross = trains[0].neighbours(row)
        if step and budget < len(neighbours):
            break
        budget -= len(neighbours)
        scores = _judge(problem, [cross, *[t.covariance(neighbours) for t in trains[1:]]], trains)
        i = int(np.argmax(scores))
        if scores[i] <= best + 1e-6:
            break
        row, best = neighbours[i], float(scores[i])
    return row, best


def _polish(problem: Problem, pattern: Pattern, points: Array, box: tuple[Array, Array]) -> Array:
    """Points (m, d) moved uphill between the levels, in the coordinates that are continuous: all at once."""
    free = np.array([pattern.active[j] and pattern.levels[j] is None for j in range(points.shape[1])])
    if not free.any():
        return points
    shape = (len(points), int(free.sum()))
    low, high = np.tile(box[0][free], len(points)), np.tile(box[1][free], len(points))

    def down(flat: Array) -> tuple[float, Array]:
        moved = points.copy()
        moved[:, free] = flat.reshape(shape)
        value, gradient = problem.slopes(moved)
        return -float(value.sum()), -gradient[:, free].ravel()

    start = np.clip(points[:, free].ravel(), low, high)
    found = minimize(
        down, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options={"maxfun": 40}
    )
    moved = points.copy()
    moved[:, free] = found.x.reshape(shape)
    return moved


def _is_known(point: Array, known: Array) -> bool:
    return bool((np.isclose(known, point, rtol=0.0, atol=_SAME) | (np.isnan(known) & np.isnan(point))).all(1).any())
