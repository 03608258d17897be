"""The sampler that tries every combination of a space once; it knows conditions."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.errors import InputError

# The system attribute of a trial that holds its combination.
_COMBINATION = "afina:grid"


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
        """The number of combinations that no trial of `study` has taken up."""
        return len(self._combinations.keys() - self._taken(study))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take up the next combination, or that of the trial which this one repeats."""
        if trial.system_attrs.get("fixed_params") is not None:
            return
        rng = random.Random(trial.number)
        free = self._free(study, trial)
        key = free[0] if free else None
        while key is not None:
            study._storage.set_trial_system_attr(trial._trial_id, _COMBINATION, key)
            trial.system_attrs[_COMBINATION] = key
            free = self._free(study, trial)
            if key in free:
                return
            # Another process took it at the same moment.
            key = rng.choice(free) if free else None
        study._storage.set_trial_system_attr(trial._trial_id, _COMBINATION, None)
        trial.system_attrs.pop(_COMBINATION, None)

    def _free(self, study: Study, trial: FrozenTrial) -> list[str]:
        """The keys of the combinations that no other trial has taken up."""
        taken = self._taken(study, besides=trial.number)
        return [key for key in self._combinations if key not in taken]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty, since each parameter is looked up by itself in `sample_independent`."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Empty, since each parameter is looked up by itself in `sample_independent`."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value in the trial's combination."""
        key = trial.system_attrs.get(_COMBINATION)
        if key is None:
            raise GridIsDone("Every combination of the grid was tried.", fix="Read the results, or give more values.")
        return self._combinations[key][param_name]

    @staticmethod
    def _taken(study: Study, besides: int | None = None) -> set[str]:
        """Combinations assigned to trials; of a trial that another sampler made, its parameters."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != besides and t.state != TrialState.WAITING]
        assigned = [(t.system_attrs.get(_COMBINATION), t) for t in trials]
        return {key if isinstance(key, str) else _key(t.params) for key, t in assigned}


def _key(values: Mapping[str, Any]) -> str:
    """A combination as text: 1, 1.0 and true differ."""
    return json.dumps(values, sort_keys=True)
