"""Which process runs a trial, and what becomes of the trials of processes that are gone."""

import contextlib
import os
import socket
import time
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.search.tensor_train.history import LOST

_WORKER = "afina:worker"
_RETRY = "afina:retry_of"
MOST_RETRIES = 2
# A running trial that does not say who runs it is given this long, in seconds, before it counts as lost.
_UNSIGNED = 60.0


def sign(trial: optuna.Trial) -> None:
    """Write into a trial that this process runs it."""
    trial.set_user_attr(_WORKER, {"host": socket.gethostname(), "pid": os.getpid(), "since": _since(os.getpid())})


def retry_lost(study: Study) -> list[int]:
    """Fail the running trials whose process is gone, and queue their parameters again; gives their numbers.

    Only processes of this machine can be looked up; trials of others are left alone. A trial that was lost three
    times is not queued again: it may be what ends its process.
    """
    lost = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_alive(trial):
            continue
        if give_up(study, trial):
            lost.append(trial.number)
    return lost


def give_up(study: Study, trial: FrozenTrial) -> bool:
    """Fail a trial for reasons outside its parameters, and queue them again; False where another process did."""
    storage = study._storage
    try:
        storage.set_trial_user_attr(trial._trial_id, LOST, True)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except (UpdateFinishedTrialError, RuntimeError):
        return False
    first = trial.user_attrs.get(_RETRY, trial.number)
    earlier = sum(t.user_attrs.get(_RETRY) == first for t in study.get_trials(deepcopy=False))
    if trial.params and earlier < MOST_RETRIES:
        study.enqueue_trial(trial.params, user_attrs={_RETRY: first})
    return True


def _is_alive(trial: FrozenTrial) -> bool:
    worker: dict[str, Any] | None = trial.user_attrs.get(_WORKER)
    if worker is None:
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - begun < _UNSIGNED
    if worker["host"] != socket.gethostname():
        return True
    since = _since(int(worker["pid"]))
    return since is not None and abs(since - float(worker["since"])) < 2.0


def _since(pid: int) -> float | None:
    """When a process started, in seconds; None where there is none."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None
