"""`TensorTrainSampler`: Bayesian optimisation with an additive Gaussian process, for any Optuna study."""

import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.search.tensor_train.encoding import Coordinate, Domain, patterns
from afina.search.tensor_train.history import STRATEGY, History, bilog, known_space, read, scalarise, thin
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.local_surrogates import fit_near, fit_smooth
from afina.search.tensor_train.online_surrogate import OnlineSurrogate
from afina.search.tensor_train.problem import Problem
from afina.search.tensor_train.propose import Proposal, draw, propose
from afina.search.tensor_train.schedule import CROWD, startup_trials
from afina.search.tensor_train.startup import first_point, new_point
from afina.search.tensor_train.strategies import SIGNIFICANT_SHARE, Trajectory, choose_strategy
from afina.search.tensor_train.surrogate import Surrogate

# Trials that the surrogate is fitted to at most, and the same for many parameters: squared, times their number.
_MOST_DATA, _LEAST_DATA = 300, 120
_MOST_WORK = 1.2e6
_MOST_PATTERNS = 6
_CERTAIN = 30.0
# How far below the best the strategy `far` aims, as a share of the way from the median to the best.
_FAR = 0.1

Box = tuple[Array, Array]


class TensorTrainSampler(BaseSampler):
    """Suggests parameters by a Gaussian process whose posterior mean over a grid is an exact tensor train.

    It is for functions that cost seconds or more: a suggestion takes about a tenth of a second. It is at its best
    from 20 to 500 trials, where parts of the effect of the parameters add up. Trials that failed count as bad,
    running ones are taken to give what is expected of them, parameters may be conditional, and constraints
    (`trial.set_constraint`) and several objectives are understood.

    Args:
        seed: The same seed gives the same suggestions to the same trials; None for a different one each time.
        startup: Trials that must have ended before the surrogate is used, spread as a Latin hypercube; None for 2 d + 2
            of d parameters.
    """

    def __init__(self, seed: int | None = None, startup: int | None = None) -> None:
        if startup is not None and startup < 1:
            raise ValueError(f"TensorTrainSampler: startup must be at least 1, got {startup}")
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._startup = startup
        self._surrogates: dict[str, OnlineSurrogate] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._study = ""
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, for pickles and copies."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or copy, with a new lock."""
        vars(self).update(state, _lock=threading.RLock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter that a trial of the study had so far."""
        return known_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters for `trial`: of a Latin hypercube at first, then where the acquisition is highest."""
        if not search_space:
            return {}
        with self._lock:
            if self._study != study.study_name:
                self._study, self._surrogates, self._pending = study.study_name, {}, {}
            trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            busy = {t.number for t in trials if t.state == TrialState.RUNNING}
            self._pending = {number: p for number, p in self._pending.items() if number in busy}
            params = self._sample(study, trial, trials, search_space)
            self._pending[trial.number] = params
            return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for parameters that no trial had before."""
        c = Coordinate.of(param_name, param_distribution)
        rng = self._rng(trial.number, zlib.crc32(param_name.encode()))
        if c.levels is not None:
            return c.decode(float(rng.choice(c.levels)))
        return c.decode(float(rng.random()))

    def _rng(self, *key: int) -> np.random.Generator:
        """A generator for one purpose: nothing depends on the order in which threads ask."""
        return np.random.default_rng([self._seed, *key])

    def _sample(
        self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial], search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        domain = Domain.of(search_space)
        free = sum(c.levels is None or len(c.levels) > 1 for c in domain.coordinates)
        startup = self._startup or startup_trials(free)
        history = read(domain, trials, study.directions, self._pending)
        rng = self._rng(trial.number)
        if len(history.points) < startup:
            tried = np.concatenate([history.points, history.running])
            return domain.decode(first_point(domain, trial.number, startup, tried, self._rng))
        values, tried = scalarise(history.values, rng), history.points
        trajectory = Trajectory.of(history, values)
        strategy = choose_strategy(trajectory, rng)
        if strategy:
            study._storage.set_trial_system_attr(trial._trial_id, STRATEGY, strategy)
        history, values = self._thinned(history, values)
        stuck = trajectory.stuck and history.values.shape[1] == 1
        problem, box = self._problem(domain, history, values, strategy, stuck)
        proposals = self._proposals(problem, history, values, rng, box, tried)
        if not proposals:
            return domain.decode(new_point(domain, np.concatenate([tried, history.running]), rng))
        blind = any(t.state == TrialState.RUNNING and not t.params and t.number not in self._pending for t in trials)
        return domain.decode(proposals[int(rng.integers(min(4, len(proposals)))) if blind else 0].point)

    def _thinned(self, history: History, values: Array) -> tuple[History, Array]:
        order = np.where(history.feasible, values, np.inf)
        most = int(np.clip(np.sqrt(_MOST_WORK / history.points.shape[1]), _LEAST_DATA, _MOST_DATA))
        thinned = thin(history, order, most)
        if thinned is history:
            return history, values
        place = {number: i for i, number in enumerate(history.numbers)}
        return thinned, values[[place[number] for number in thinned.numbers]]

    def _problem(
        self, domain: Domain, history: History, values: Array, strategy: str, stuck: bool
    ) -> tuple[Problem, Box]:
        """Surrogates of the objective and of each constraint, with running trials believed, and where to look."""
        layout, share = domain.layout, 1.0 / (1 + history.constraints.shape[1])
        box = np.zeros(layout.d), np.ones(layout.d)
        feasible = history.feasible
        if strategy == "near":
            centre = history.points[np.argmin(np.where(feasible, values, np.inf))]
            objective, reach = fit_near(layout, history.points, values, centre, 4 * layout.d + 4)
            box = _around(centre, reach, layout.categorical)
        elif strategy == "smooth":
            objective = fit_smooth(layout, history.points, values)
        else:
            allow_rotation = stuck and not history.constraints.shape[1] and len(history.running) < CROWD
            objective = self._surrogate("objective").update(layout, history.points, values, share, allow_rotation)
        objective = objective.believing(history.running)
        tried = np.concatenate([history.points[feasible], history.running])
        means = objective.posterior(tried)[0] if feasible.any() else np.zeros(1)
        best = float(means.min()) if feasible.any() else None
        if best is not None and (strategy == "far" or (stuck and strategy != "near")):
            best -= (_FAR if strategy == "far" else SIGNIFICANT_SHARE) * float(np.median(means) - best)
        constraints, limits = [], []
        for k, column in enumerate(history.constraints.T):
            if np.isnan(column).all():
                continue
            surrogate, limit = self._constraint(f"constraint {k}", domain, history.points, column, share)
            constraints.append(surrogate.believing(history.running))
            limits.append(limit)
        return Problem(domain, objective, best, tuple(constraints), tuple(limits)), box

    def _constraint(
        self, name: str, domain: Domain, points: Array, column: Array, share: float
    ) -> tuple[Surrogate, float]:
        known = ~np.isnan(column)
        compressed = bilog(column[known])
        spread, middle = float(compressed.std()), float(compressed.mean())
        surrogate = self._surrogate(name, ("identity",)).update(domain.layout, points[known], compressed, share)
        if spread <= 1e-12:
            return surrogate, _CERTAIN if middle <= 0 else -_CERTAIN
        return surrogate, -middle / spread

    def _surrogate(self, name: str, warpings: tuple[str, ...] | None = None) -> OnlineSurrogate:
        if name not in self._surrogates:
            self._surrogates[name] = OnlineSurrogate() if warpings is None else OnlineSurrogate(warpings)
        return self._surrogates[name]

    def _proposals(
        self, problem: Problem, history: History, values: Array, rng: np.random.Generator, box: Box, tried: Array
    ) -> list[Proposal]:
        """The best points of every pattern of active parameters, the best first; none of them was tried."""
        known = np.concatenate([history.points, history.running, tried])
        ranks = np.full(len(known), np.inf)
        ranks[: len(values)] = np.where(history.feasible, values, np.inf)
        kinds = patterns(problem.domain, history.points)
        counts = [int((~np.isnan(history.points) == k.active).all(axis=1).sum()) for k in kinds]
        kinds = [kinds[i] for i in np.argsort(counts)[::-1][:_MOST_PATTERNS]]
        proposals: list[Proposal] = []
        for kind in kinds:
            if len(history.running) >= CROWD:
                proposals += draw(problem, kind, known, ranks, rng, box)
            else:
                proposals += propose(problem, kind, known, ranks, rng, box, 1.0 / len(kinds))
        return sorted(proposals, key=lambda p: -p.score)


def _around(centre: Array, reach: float, categorical: NDArray[np.bool_]) -> Box:
    """The part of the cube within `reach` of a point (d,) in each number; categories are free."""
    known = np.nan_to_num(centre, nan=0.5)
    low, high = np.maximum(known - reach, 0.0), np.minimum(known + reach, 1.0)
    free = categorical | np.isnan(centre)
    return np.where(free, 0.0, low), np.where(free, 1.0, high)
