"""The next point: where expected improvement is highest, found along the train, on its grid and between its levels."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from afina.search.tensor_train.candidates import (
    RUNNERS_UP,
    STARTS,
    acquisition_at,
    candidates,
    climb,
    distinct,
    grids_of,
    rows_of,
)
from afina.search.tensor_train.encoding import Pattern
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.posterior_train import TensorTrain
from afina.search.tensor_train.problem import Problem
from afina.search.tensor_train.rotated_candidates import rotated_candidates

# Multiplications that one suggestion may spend on variances of candidates.
_WORK = 3e7
_STEPS, _GAIN = 10, 1e-6
_INCUMBENTS = 8
# Candidates among which a drawn function is followed.
_DRAWN = 400
_SAME = 1e-9


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
        ranks: The values of the known points (n,), to order them; infinite for running trials.
        rng: The generator of this suggestion.
        box: Lowest and highest unit coordinates, each (d,), for numbers.
        share: Share of the work of a whole suggestion.
    """
    order = np.argsort(ranks, kind="stable")
    members = order[(~np.isnan(known[order]) == pattern.active).all(axis=1)]
    top = known[members[:_INCUMBENTS]]
    find = rotated_candidates if problem.objective.rotation is not None else _grid_candidates
    points = find(problem, pattern, top, box, rng, share * _WORK)
    polished = _polish(problem, pattern, points[:STARTS], box)
    points = np.concatenate([polished, points])
    points = np.array([problem.domain.nearest(p) for p in points])
    fresh = points[[not _is_known(p, known) for p in points]]
    if not len(fresh):
        return []
    values = problem.acquisition(fresh)
    proposals = [Proposal(fresh[i], float(values[i])) for i in np.argsort(-values, kind="stable")]
    if problem.objective.rotation is not None:
        settled = _settle(problem, pattern, proposals[0], known)
        proposals = [settled, *proposals] if settled is not proposals[0] else proposals
    return proposals


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
    grids = grids_of(problem.domain, pattern, top, box, rng)
    train = TensorTrain(problem.objective, grids)
    points = train.points(candidates(train, rows_of(grids, top), _DRAWN, rng))
    points = np.unique([problem.domain.nearest(p) for p in points], axis=0)
    points = points[[not _is_known(p, known) for p in points]]
    if not len(points):
        return []
    values = problem.objective.draw(points, rng)
    for surrogate, limit in zip(problem.constraints, problem.limits, strict=True):
        over = surrogate.draw(points, rng) - limit
        values = np.where(over > 0, values.max() + over, values)
    return [Proposal(points[i], -float(values[i])) for i in np.argsort(values, kind="stable")]


def _grid_candidates(
    problem: Problem, pattern: Pattern, top: Array, box: tuple[Array, Array], rng: np.random.Generator, work: float
) -> Array:
    """Points (m, d) on a grid where the acquisition is high, those that were climbed to first."""
    grids = grids_of(problem.domain, pattern, top, box, rng)
    trains = [TensorTrain(s, grids) for s in (problem.objective, *problem.constraints)]
    n = len(problem.objective.points)
    budget = work / (2 * n * n * len(trains))
    rows = candidates(trains[0], rows_of(grids, top), int(np.clip(budget, 100, 1000)), rng)
    scores = acquisition_at(problem, trains, rows)
    climbed = [climb(problem, trains, row, budget / STARTS) for row in distinct(rows, scores, STARTS)]
    return trains[0].points(np.concatenate([climbed, rows[np.argsort(-scores)[:RUNNERS_UP]]]))


def _settle(problem: Problem, pattern: Pattern, proposal: Proposal, known: Array) -> Proposal:
    """The proposal, which rounding has moved, after steps of one or two levels in single numbers that improve it."""
    for _ in range(_STEPS):
        near = [p for p in _beside(problem, pattern, proposal.point) if not _is_known(p, known)]
        values = problem.acquisition(np.array(near)) if near else np.array([-np.inf])
        best = int(np.argmax(values))
        if values[best] <= proposal.score + _GAIN:
            break
        proposal = Proposal(near[best], float(values[best]))
    return proposal


def _beside(problem: Problem, pattern: Pattern, point: Array) -> list[Array]:
    points = []
    for j, levels in enumerate(pattern.levels):
        if levels is None or not pattern.active[j] or problem.domain.coordinates[j].categorical:
            continue
        here = int(np.abs(levels - point[j]).argmin())
        for k in (here - 2, here - 1, here + 1, here + 2):
            if 0 <= k < len(levels):
                points.append(point.copy())
                points[-1][j] = levels[k]
    return points


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
    result = minimize(
        down, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options={"maxfun": 40}
    )
    moved = points.copy()
    moved[:, free] = result.x.reshape(shape)
    return moved


def _is_known(point: Array, known: Array) -> bool:
    return bool((np.isclose(known, point, rtol=0.0, atol=_SAME) | (np.isnan(known) & np.isnan(point))).all(1).any())
