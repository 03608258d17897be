"""Studies: opened or taken up again, and run trial by trial; nothing that was finished is lost."""

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.errors import AfinaError, InputError
from afina.search.grid import GridIsDone, GridSampler
from afina.search.spaces import Space
from afina.search.storage import is_url, open_storage, without_password
from afina.search.tensor_train.history import LOST
from afina.search.workers import Heartbeat, give_up, retry_lost

Objective = Callable[[dict[str, Any], optuna.Trial], float | Sequence[float] | None]

ERROR = "afina:error"
SEED = "afina:seed"
_SPACE = "afina:space"
_ABOUT = "afina:about"
STUDY = "search"
_LOOK = 30.0


class SearchError(AfinaError):
    """A search cannot go on: its trials fail one after another."""


@dataclass(frozen=True)
class StudyRun:
    """The outcome of one call of `run_study`.

    Attributes:
        trials: Trials that this call ran.
        failed: The number of those that failed.
        retried: Numbers of trials whose process was gone, which were queued again.
        seconds: Time that it took.
    """

    trials: int
    failed: int
    retried: tuple[int, ...]
    seconds: float


def open_study(
    where: str | Path,
    space: Space,
    sampler: BaseSampler,
    directions: Sequence[str] = ("minimize",),
    name: str = STUDY,
    pruner: optuna.pruners.BasePruner | None = None,
    about: Mapping[str, Any] | None = None,
) -> Study:
    """The study in a run folder or at a storage URL; made where there is none, else taken up with all its trials.

    Args:
        where: A folder, whose journal several processes of one machine may share, or a URL of Optuna's.
        space: What is searched.
        sampler: A sampler of `make_sampler`, or any of Optuna's.
        directions: `minimize` or `maximize` for each objective.
        name: The study's name; a storage may have several studies.
        pruner: Which trials are stopped early; None for none.
        about: What else must be the same for all trials of the study, as plain data; None for nothing.

    Raises:
        InputError: the storage has a study of this name with another space, other directions, or about something else.
        StorageError: the storage cannot be reached or written.

    Example:
        >>> import tempfile
        >>> from afina.search import make_sampler, make_space
        >>> space = make_space({"x": {"type": "int", "low": 0, "high": 4}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = open_study(folder, space, make_sampler("grid", space))
        ...     run = run_study(study, lambda params, trial: (params["x"] - 3) ** 2, space)
        ...     run.trials, study.best_params
        (5, {'x': 3})
    """
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise InputError(f"A direction is minimize or maximize, got {direction!r}.")
    storage = open_storage(where)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        directions=[optuna.study.StudyDirection[d.upper()] for d in directions],
        load_if_exists=True,
    )
    stored_directions, shown = [d.name.lower() for d in study.directions], without_password(where)
    if stored_directions != list(directions):
        raise InputError(
            f"The study in {shown} has the directions {', '.join(stored_directions)}, not {', '.join(directions)}.",
            fix=f"{_another(where)}, or give the directions that it was begun with.",
        )
    _settle(study, _SPACE, space.to_plain(), where, "another search space", "space")
    _settle(study, _ABOUT, dict(about or {}), where, "other options", "options")
    return study


def _another(where: str | Path) -> str:
    return "Give another name (--study)" if is_url(where) else "Choose another folder (--out)"


def _settle(study: Study, key: str, expected: Any, where: str | Path, other: str, what: str) -> None:
    """Store a fact that all trials of a study share; raise `InputError` where the study has another value of it."""
    text = json.dumps(expected, sort_keys=True, default=str)
    stored = study.user_attrs.get(key)
    if stored is None:
        study.set_user_attr(key, text)
    elif stored != text:
        raise InputError(
            f"The study in {without_password(where)} was begun with {other}.",
            why=_difference(json.loads(stored), json.loads(text)),
            fix=f"{_another(where)}, or give the {what} that it was begun with.",
        )


def run_study(
    study: Study,
    objective: Objective,
    space: Space,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    most_failures: int = 5,
    after: Callable[[FrozenTrial], None] | None = None,
) -> StudyRun:
    """Run trials until the study has `trials` of them, the time is over, or a grid is used up.

    An objective that raises, or gives no finite number, fails its trial: the reason and the traceback are kept with it
    (user attribute `afina:error`), and the study goes on. Trials that were running in a process that is gone are run
    again. When this one is interrupted, its trial is queued again too.

    Args:
        study: A study of `open_study`; several processes may run it at once.
        objective: Called with the values of the active parameters and the trial, for reports and constraints;
            gives the value, or one for each direction.
        space: The space of the study.
        trials: Number of trials after which the study ends, failed ones too; None for no limit.
        seconds: Time after which no new trial is begun; None for no limit.
        most_failures: So many failed trials in a row end the search.
        after: Called with every trial that ended.

    Raises:
        InputError: there is no limit at all.
        SearchError: too many trials failed in a row; it has the last traceback.
    """
    endless = trials is None and seconds is None and not isinstance(study.sampler, GridSampler)
    if endless:
        raise InputError("The search has no end.", fix="Give a number of trials or a time.")
    begun, looked = time.monotonic(), -_LOOK
    ran, failed, retried = 0, 0, []
    with Heartbeat(study) as heart:
        while seconds is None or time.monotonic() - begun < seconds:
            if time.monotonic() - looked >= _LOOK:
                retried += retry_lost(study)
                looked = time.monotonic()
            if is_done(study, trials):
                break
            trial = study.ask()
            heart.begin(trial)
            ended = _run(study, trial, objective, space)
            heart.end(trial)
            ran += 1
            failed += ended.state == TrialState.FAIL and LOST not in ended.user_attrs
            if after is not None:
                after(ended)
            if ended.state == TrialState.FAIL:
                stop_if_hopeless(study, most_failures)
    return StudyRun(ran, failed, tuple(retried), time.monotonic() - begun)


def _run(study: Study, trial: optuna.Trial, objective: Objective, space: Space) -> FrozenTrial:
    """Run one trial and store how it ended."""
    try:
        params = suggest(study, trial, space)
        if params is None:
            return study._storage.get_trial(trial._trial_id)
        return conclude(study, trial, attempt(objective, params, trial, len(study.directions)))
    except BaseException:
        give_up(study, study._storage.get_trial(trial._trial_id))
        raise


def suggest(study: Study, trial: optuna.Trial, space: Space) -> dict[str, Any] | None:
    """The parameters of a new trial; None where a grid has nothing left for it, and it has ended."""
    try:
        return space.suggest(trial)
    except GridIsDone as done:
        # Another process took the last combination between the look and the trial.
        trial.set_user_attr(LOST, True)
        conclude(study, trial, Outcome(TrialState.FAIL, message=done.what))
        return None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as plain data.

    Attributes:
        state: `COMPLETE`, `PRUNED` or `FAIL`.
        values: One for each direction, where it is complete.
        message: Why it failed.
        traceback: The traceback of the error, where there was one.
    """

    state: TrialState
    values: tuple[float, ...] = ()
    message: str = ""
    traceback: str = ""


def attempt(objective: Objective, params: dict[str, Any], trial: Any, count: int) -> Outcome:
    """Call an objective, which must give `count` values; what it raises fails the trial, and nothing else.

    Example:
        >>> attempt(lambda params, trial: params["x"] ** 2, {"x": 3}, trial=None, count=1).values
        (9.0,)
        >>> attempt(lambda params, trial: None, {}, trial=None, count=1).message
        'The objective gave None, not a number.'
    """
    try:
        values = objective(params, trial)
    except optuna.TrialPruned:
        return Outcome(TrialState.PRUNED)
    except (Exception, SystemExit) as error:
        return Outcome(TrialState.FAIL, (), f"{type(error).__name__}: {error}", traceback.format_exc())
    problem = _problem(values, count)
    if problem:
        return Outcome(TrialState.FAIL, message=problem)
    assert values is not None
    return Outcome(TrialState.COMPLETE, tuple(float(v) for v in (values if isinstance(values, Sequence) else [values])))


def conclude(study: Study, trial: optuna.Trial, outcome: Outcome) -> FrozenTrial:
    """Store how a trial ended."""
    complete = outcome.state == TrialState.COMPLETE
    try:
        if outcome.state == TrialState.FAIL:
            trial.set_user_attr(ERROR, {"message": outcome.message, "traceback": outcome.traceback})
        return study.tell(trial, list(outcome.values) if complete else None, state=outcome.state)
    except (ValueError, UpdateFinishedTrialError):
        # This process was silent for so long that another took it for dead, and queued the trial again.
        stored = study._storage.get_trial(trial._trial_id)
        if not stored.state.is_finished():
            raise
        return stored


def _problem(values: Any, count: int) -> str:
    """The reason why the values of an objective are no result; empty where they are one."""
    if values is None:
        return "The objective gave None, not a number."
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else [values]
    if len(numbers) != count:
        return f"The objective gave {len(numbers)} values, and the study has {count} objectives."
    for value in numbers:
        try:
            # Text that float() would read is a mistake of the objective all the same.
            number = float("" if isinstance(value, str | bytes) else value)
        except (TypeError, ValueError, OverflowError):
            return f"The objective gave {value!r}, not a number."
        if not math.isfinite(number):
            return f"The objective gave {'NaN' if math.isnan(number) else number}."
    return ""


def is_done(study: Study, trials: int | None) -> bool:
    """Whether the study has so many trials, or its grid is used up."""
    everything = study.get_trials(deepcopy=False)
    if trials is not None and len(everything) >= trials:
        counted = sum(t.state != TrialState.WAITING and LOST not in t.user_attrs for t in everything)
        if counted >= trials:
            return True
    if not isinstance(study.sampler, GridSampler):
        return False
    return all(t.state != TrialState.WAITING for t in everything) and study.sampler.left(study) == 0


def stop_if_hopeless(study: Study, most: int) -> None:
    """Raise `SearchError`, with the last traceback, where the last `most` trials that ended all failed."""
    last = _ended(study)[-most:]
    if len(last) == most and all(t.state == TrialState.FAIL for t in last):
        raise _failed(
            f"{most} trials failed one after another, so the search stops.",
            last[-1],
            fix="What was finished is kept. Correct the cause, and run the same command again: it goes on from here.",
        )


def stop_if_all_failed(study: Study) -> None:
    """Raise `SearchError`, with the last traceback, where trials have ended and every one of them failed."""
    ended = _ended(study)
    if ended and all(t.state == TrialState.FAIL for t in ended):
        raise _failed(
            f"No trial ended with a value: all {len(ended)} failed.",
            ended[-1],
            fix="Correct the cause. Then go on with more trials, or begin again: another --out, or another --study.",
        )


def _ended(study: Study) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and LOST not in t.user_attrs]


def _failed(what: str, last: FrozenTrial, fix: str) -> SearchError:
    error = last.user_attrs.get(ERROR, {"message": "", "traceback": ""})
    return SearchError(what, why=(error["traceback"] or error["message"]).strip(), fix=fix)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {old.get(name, 'absent')} before, {new.get(name, 'absent')} now" for name in names[:3])
