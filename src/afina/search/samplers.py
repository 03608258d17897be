"""The samplers by name, and the grid, which knows conditions."""

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.errors import InputError, did_you_mean
from afina.search.spaces import Space
from afina.search.tensor_train import TensorTrainSampler

_PLACE = "afina:grid"
DEFAULT_SAMPLER = "tensor-train"
GRID_POINTS = 5


class GridIsDone(InputError):
    """No combination of the grid is left for a trial."""


class GridSampler(BaseSampler):
    """Every combination of a space once, in order; parameters that are not active are not varied.

    What trials of the study have tried is known by its values, so that a study may go on with a finer grid.

    Args:
        combinations: Values of the parameters that are varied (`Space.combinations`).
    """

    def __init__(self, combinations: Sequence[dict[str, Any]]) -> None:
        self._combinations = {_key(combination): combination for combination in combinations}

    def left(self, study: Study) -> int:
        """Combinations that no trial of `study` has taken up."""
        return len(self._combinations.keys() - self._taken(study))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take up the next combination, or that of the trial which this one repeats."""
        fixed = trial.system_attrs.get("fixed_params")
        if fixed is not None:
            return
        rng = random.Random(trial.number)
        free = self._free(study, trial)
        place = free[0] if free else None
        while place is not None:
            study._storage.set_trial_system_attr(trial._trial_id, _PLACE, place)
            trial.system_attrs[_PLACE] = place
            free = self._free(study, trial)
            if place in free:
                return
            # Another process took it at the same moment.
            place = rng.choice(free) if free else None
        study._storage.set_trial_system_attr(trial._trial_id, _PLACE, None)
        trial.system_attrs.pop(_PLACE, None)

    def _free(self, study: Study, trial: FrozenTrial) -> list[str]:
        """Combinations that no other trial has taken up."""
        taken = self._taken(study, besides=trial.number)
        return [key for key in self._combinations if key not in taken]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each parameter is looked up by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None: each parameter is looked up by itself."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value in the trial's combination."""
        place = trial.system_attrs.get(_PLACE)
        if place is None:
            raise GridIsDone("Every combination of the grid was tried.", fix="Read the results, or give more values.")
        return self._combinations[place][param_name]

    @staticmethod
    def _taken(study: Study, besides: int | None = None) -> set[str]:
        """What trials were given, or, where that is another's doing, have."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != besides and t.state != TrialState.WAITING]
        given = [(t.system_attrs.get(_PLACE), t) for t in trials]
        return {place if isinstance(place, str) else _key(t.params) for place, t in given}


def _key(values: Mapping[str, Any]) -> str:
    """A combination as text: 1, 1.0 and true differ."""
    return json.dumps(values, sort_keys=True)


def _optuna(make: Callable[..., BaseSampler], **options: Any) -> Callable[[Space, int | None, int], BaseSampler]:
    def build(space: Space, seed: int | None, points: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(seed=seed, **options)

    return build


# What builds a sampler from the space, a seed, and the points of a grid.
SAMPLERS: dict[str, Callable[[Space, int | None, int], BaseSampler]] = {
    "tensor-train": lambda space, seed, points: TensorTrainSampler(seed),
    "tpe": _optuna(optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True),
    "gp": _optuna(optuna.samplers.GPSampler),
    "cmaes": _optuna(optuna.samplers.CmaEsSampler, warn_independent_sampling=False),
    "qmc": _optuna(optuna.samplers.QMCSampler, warn_independent_sampling=False),
    "random": _optuna(optuna.samplers.RandomSampler),
    "grid": lambda space, seed, points: GridSampler(space.combinations(points)),
}


def check_sampler(name: str) -> None:
    """Raise `InputError` where there is no such sampler."""
    if name not in SAMPLERS:
        raise InputError(f"There is no sampler {name!r}.", fix=did_you_mean(name, SAMPLERS))


def make_sampler(name: str, space: Space, seed: int | None = None, grid_points: int = GRID_POINTS) -> BaseSampler:
    """The sampler `name`, one of `SAMPLERS`.

    Args:
        name: `tensor-train`, `tpe`, `gp` (needs torch), `cmaes`, `qmc`, `random` or `grid`.
        space: What it searches.
        seed: Of its randomness; None for a different one each time.
        grid_points: Values of each continuous parameter in a grid.

    Raises:
        InputError: there is no such sampler, or the grid has more than a million points.
    """
    check_sampler(name)
    return SAMPLERS[name](space, seed, grid_points)
