"""What the finished and running trials of a study say: points, values to be minimised, constraints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from afina.search.tensor_train.encoding import Domain
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.output_warping import compress_outliers

# A trial with this user attribute failed for reasons outside its parameters, such as a machine that was lost.
LOST = "afina:lost"
# User attribute of trials whose reports are parts of one value, such as folds of the images: their mean counts.
PARTS = "afina:parts"
# The system attribute of a trial that holds the strategy by which it was chosen.
STRATEGY = "tensor_train:way"
# The weight of the sum beside the largest term in the augmented Chebyshev function (Knowles 2006, eq. 2).
_AUGMENTED = 0.05


@dataclass(frozen=True)
class History:
    """The trials of a study as arrays.

    Attributes:
        points: Points of the finished trials, (n, d).
        values: Values of the finished trials, to be minimised, (n, objectives); finite.
        running: Points of the running trials, (m, d).
        constraints: Constraints of the finished trials, (n, constraints), at most 0 where they hold; NaN where unknown.
        numbers: Numbers of the finished trials, n of them.
        strategies: The strategy by which each finished trial was chosen (`STRATEGY`); empty for the usual one.
    """

    points: Array
    values: Array
    running: Array
    constraints: Array
    numbers: tuple[int, ...]
    strategies: tuple[str, ...]

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Which finished trials hold all constraints (n,)."""
        return np.asarray(np.all(np.nan_to_num(self.constraints, nan=1.0) <= 0, axis=1))

    def only(self, chosen: NDArray[np.intp]) -> "History":
        """The same with these finished trials alone."""
        numbers, strategies = tuple(self.numbers[i] for i in chosen), tuple(self.strategies[i] for i in chosen)
        return History(
            self.points[chosen], self.values[chosen], self.running, self.constraints[chosen], numbers, strategies
        )


def known_space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Every parameter that a trial had, with the distribution that it had last."""
    space: dict[str, BaseDistribution] = {}
    for trial in trials:
        space.update(trial.distributions)
    return dict(sorted(space.items()))


def read(
    domain: Domain,
    trials: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    running: Mapping[int, Mapping[str, Any]],
) -> History:
    """Arrays of the trials whose values are all within the domain.

    A failed trial, whose value is not a number, counts as bad as the worst; one that was stopped early as its last
    report (of `PARTS`, as their mean), but not as better than the median.

    Args:
        domain: The parameters.
        trials: All trials of the study but the one that is being sampled.
        directions: The direction of each objective.
        running: Parameters of running trials by number, where they are known before they are stored.
    """
    signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
    names = sorted({name for t in trials for name in t.constraints})
    points, raw, limits, busy, numbers, stopped, strategies = [], [], [], [], [], [], []
    for t in trials:
        params = {**running.get(t.number, {}), **t.params} if t.state == TrialState.RUNNING else t.params
        if not params or t.state == TrialState.WAITING or LOST in t.user_attrs:
            continue
        point = domain.encode({k: v for k, v in params.items() if k in {c.name for c in domain.coordinates}})
        if point is None:
            continue
        if t.state == TrialState.RUNNING:
            busy.append(point)
            continue
        points.append(point)
        numbers.append(t.number)
        strategies.append(t.system_attrs.get(STRATEGY, ""))
        raw.append(_value(t, signs))
        stopped.append(t.state == TrialState.PRUNED)
        limits.append([t.constraints.get(name, np.nan) for name in names])
    d, n = len(domain.coordinates), len(points)
    values = np.array(raw).reshape(n, len(signs))
    return History(
        np.array(points).reshape(n, d),
        _finite(values, np.array(stopped, dtype=bool)),
        np.array(busy).reshape(len(busy), d),
        np.array(limits).reshape(n, len(names)),
        tuple(numbers),
        tuple(strategies),
    )


def scalarise(values: Array, rng: np.random.Generator) -> Array:
    """One value (n,) of several objectives (n, k): augmented Chebyshev with random weights (Knowles 2006)."""
    if values.shape[1] == 1:
        return np.asarray(values[:, 0])
    low, high = values.min(axis=0), values.max(axis=0)
    unit = (values - low) / np.where(high > low, high - low, 1.0)
    weighted = unit * rng.dirichlet(np.ones(values.shape[1]))
    return np.asarray(weighted.max(axis=1) + _AUGMENTED * weighted.sum(axis=1))


def bilog(values: Array) -> Array:
    """A constraint's values with large ones drawn in and zero left as it is (Eriksson & Poloczek 2021).

    Example:
        >>> bilog(np.array([-1.0, 0.0, 1.0, 1000.0])).round(2).tolist()
        [-0.69, 0.0, 0.69, 6.91]
    """
    size = np.abs(values[np.isfinite(values)])
    scale = float(np.median(size)) if len(size) else 1.0
    scale = scale if scale > 0 else 1.0
    clipped = np.clip(values, -1e12 * scale, 1e12 * scale)
    return np.asarray(np.sign(clipped) * np.log1p(np.abs(clipped) / scale))


def thin(history: History, order: Array, most: int) -> History:
    """At most `most` finished trials: the best half, the latest quarter, and an even share of the rest.

    Args:
        history: The trials, n of them.
        order: What they are ranked by (n,), the least is the best.
        most: The number of trials that may stay.

    Example:
        Of nine trials four may stay: the two best ones, the last one, and one of the others.

        >>> n = 9
        >>> order = np.array([5.0, 1.0, 7.0, 8.0, 2.0, 6.0, 9.0, 4.0, 3.0])
        >>> none = np.empty((0, 1))
        >>> history = History(np.zeros((n, 1)), order[:, None], none, np.empty((n, 0)), tuple(range(n)), ("",) * n)
        >>> thin(history, order, most=4).numbers
        (0, 1, 4, 8)
    """
    n = len(order)
    if n <= most:
        return history
    chosen = set(np.argsort(order, kind="stable")[: most // 2].tolist()) | set(range(n - most // 4, n))
    rest = np.array([i for i in range(n) if i not in chosen])
    more = most - len(chosen)
    chosen |= set(rest[np.linspace(0, len(rest) - 1, more).astype(int)].tolist())
    return history.only(np.array(sorted(chosen), dtype=np.intp))


def _value(trial: FrozenTrial, signs: Array) -> Array:
    if trial.state == TrialState.COMPLETE:
        return np.asarray(signs * np.array(trial.values, dtype=float))
    last = trial.last_step
    if trial.state == TrialState.PRUNED and last is not None and len(signs) == 1:
        parts = list(trial.intermediate_values.values())
        return np.asarray(signs * (np.mean(parts) if PARTS in trial.user_attrs else trial.intermediate_values[last]))
    return np.full(len(signs), np.inf)


def _finite(values: Array, stopped: NDArray[np.bool_]) -> Array:
    out = np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    for k in range(out.shape[1]):
        column = out[:, k]
        whole = column[~stopped & np.isfinite(column)]
        if stopped.any() and len(whole):
            column[stopped] = np.maximum(column[stopped], np.median(whole))
        finite_values = column[np.isfinite(column)]
        column[column == -np.inf] = finite_values.min() if len(finite_values) else 0.0
        out[:, k] = compress_outliers(column)
    return out
