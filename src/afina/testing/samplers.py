"""The promises of a sampler, as checks that raise `AssertionError` with a sentence that says what is not kept.

For a sampler in a package of one's own, with pytest:

    import pytest
    from afina.testing.samplers import SAMPLER_PROMISES

    @pytest.mark.parametrize("check", SAMPLER_PROMISES)
    def test_my_sampler_keeps_its_promises(check):
        check("halton")     # its name in the table, or the factory itself: make_halton

Nothing here needs pytest.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.search import Space, make_sampler, make_space

# A name in the table of samplers, or a factory that is called as an entry point is: with a space and a seed.
NameOrFactory = str | Callable[[Space, int | None], BaseSampler]

# Enough for samplers that begin with random points or a design (ten trials in Optuna) to come to their own choices.
_TRIALS = 14
_SPACE = {
    "x": {"type": "float", "low": -1, "high": 1},
    "rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "kind": ["a", "b"],
    "depth": {"type": "int", "low": 2, "high": 6, "step": 2, "when": {"kind": "b"}},
}


def check_sampler(sampler: NameOrFactory) -> None:
    """Check every promise of a sampler.

    Args:
        sampler: A name in the table, or a function or class that is called with a `Space` and a seed.

    Raises:
        AssertionError: a promise is not kept; the text says which.
        InputError: there is no sampler of this name, or it cannot be made.

    Example:
        >>> check_sampler("random")
    """
    for check in SAMPLER_PROMISES:
        check(sampler)


def check_same_seed_same_trials(sampler: NameOrFactory) -> None:
    """The same seed and the same values give the same suggestions."""
    first, second = (_parameters(_finished_study(sampler, seed=7)) for _ in range(2))
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        _promise(one == other, f"Two studies with the same seed differ at trial {number}: {one} and {other}.")


def check_bounds_and_conditions(sampler: NameOrFactory) -> None:
    """Every value is within its bounds and on its step, and a parameter is in a trial if its condition holds."""
    _check_trials(_finished_study(sampler, seed=0).trials)


def check_several_processes(sampler: NameOrFactory) -> None:
    """Several samplers share one study, each seeing running and finished trials that the others made."""
    space, storage = make_space(_SPACE), optuna.storages.InMemoryStorage()
    studies = [_study(sampler, space, seed, storage) for seed in range(3)]
    for _ in range(_TRIALS // len(studies) + 1):
        running = [(study, study.ask()) for study in studies]
        suggested = [(study, trial, space.suggest(trial)) for study, trial in running]
        for study, trial, params in suggested:
            study.tell(trial, _value(params))
    trials = studies[0].trials
    _check_trials(trials)
    numbers = [trial.number for trial in trials]
    _promise(numbers == list(range(len(trials))), f"Trials of several processes have the numbers {numbers}.")


def check_failed_and_pruned_trials(sampler: NameOrFactory) -> None:
    """Trials that failed or were stopped early, also the first ones and all so far, do not stop a study."""
    space = make_space(_SPACE)
    study = _study(sampler, space, seed=0)
    for number in range(_TRIALS + 4):
        trial = study.ask()
        params = space.suggest(trial)
        if number < 4 or number % 4 == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 4 == 1:
            trial.report(_value(params), step=1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, _value(params))
    _check_trials(study.trials)


def check_continued_study(sampler: NameOrFactory) -> None:
    """A new sampler goes on with a study that another process began, and keeps the parameters of queued trials."""
    space, storage = make_space(_SPACE), optuna.storages.InMemoryStorage()
    _run(_study(sampler, space, 0, storage), space, _TRIALS)
    study = _study(sampler, space, 1, storage)
    queued = {"x": 0.25, "rate": 0.01, "kind": "b", "depth": 4}
    study.enqueue_trial(queued)
    _run(study, space, _TRIALS)
    trials = study.trials
    _promise(len(trials) == 2 * _TRIALS, f"A continued study has {len(trials)} trials, not {2 * _TRIALS}.")
    _check_trials(trials)
    repeated = trials[_TRIALS].params
    _promise(repeated == queued, f"A queued trial with {queued} was run with {repeated}.")


# Each promise by itself, for a parametrized test.
SAMPLER_PROMISES: tuple[Callable[[NameOrFactory], None], ...] = (
    check_same_seed_same_trials,
    check_bounds_and_conditions,
    check_several_processes,
    check_failed_and_pruned_trials,
    check_continued_study,
)


def _finished_study(sampler: NameOrFactory, seed: int) -> Study:
    space = make_space(_SPACE)
    study = _study(sampler, space, seed)
    _run(study, space, _TRIALS)
    return study


def _study(sampler: NameOrFactory, space: Space, seed: int, storage: Any = None) -> Study:
    """A study with a sampler of its own; on a shared storage it is the same study each time."""
    built = make_sampler(sampler, space, seed) if isinstance(sampler, str) else sampler(space, seed)
    _promise(isinstance(built, BaseSampler), f"The factory returned {type(built).__name__}, not a sampler of Optuna.")
    return optuna.create_study(sampler=built, storage=storage, study_name="contract", load_if_exists=True)


def _run(study: Study, space: Space, trials: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for _ in range(trials):
            trial = study.ask()
            study.tell(trial, _value(space.suggest(trial)))


def _value(params: dict[str, Any]) -> float:
    """Least, at 0, in the middle of the space and for kind b."""
    return float(params["x"] ** 2 + 0.1 * (params.get("depth", 6) - 4) ** 2 + (params["kind"] == "a"))


def _parameters(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def _check_trials(trials: Iterable[FrozenTrial]) -> None:
    """Check that all values are possible, and that conditions hold."""
    for trial in trials:
        params = trial.params
        where = f"Trial {trial.number}, {params}"
        _promise({"x", "rate", "kind"} <= params.keys(), f"{where}, lacks a parameter.")
        _promise(-1 <= params["x"] <= 1, f"{where}: x is not within [-1, 1].")
        _promise(1e-4 <= params["rate"] <= 1e-1, f"{where}: rate is not within [0.0001, 0.1].")
        _promise(params["kind"] in ("a", "b"), f"{where}: kind is neither a nor b.")
        _promise(params.get("depth", 2) in (2, 4, 6), f"{where}: depth is not 2, 4 or 6.")
        active = params["kind"] == "b"
        _promise(("depth" in params) == active, f"{where}: depth is there for kind b, and only then.")


def _promise(holds: bool, otherwise: str) -> None:
    # Not the statement `assert`, which Python leaves out with -O.
    if not holds:
        raise AssertionError(otherwise)
