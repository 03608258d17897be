"""Which process runs a trial, and what becomes of the trials of processes that are gone."""

import contextlib
import os
import socket
import threading
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
_BEAT = "afina:beat"
MOST_RETRIES = 2
# A running trial that does not say who runs it is given this long, in seconds, before it counts as lost.
_UNSIGNED = 60.0
# How often a process says that its trials still run, in seconds, and after how long it counts as gone on a machine that
# cannot be looked into. Clocks of two machines may differ by minutes.
_PERIOD, _SILENT = 30.0, 600.0


class Heartbeat:
    """Tells the study, from time to time, that the trials of this process still run; for the length of a `with` block.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._storage, self._running, self._over = study._storage, set[int](), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, trial: optuna.Trial) -> None:
        """Write into a trial that this process runs it."""
        worker = {"host": socket.gethostname(), "pid": os.getpid(), "since": _since(os.getpid()), "begun": time.time()}
        trial.set_user_attr(_WORKER, worker)
        self._running.add(trial._trial_id)

    def end(self, trial: optuna.Trial) -> None:
        """Forget a trial, which this process runs no longer."""
        self._running.discard(trial._trial_id)

    def _beat(self) -> None:
        while not self._over.wait(_PERIOD):
            for number in tuple(self._running):
                # A trial may end at this moment; and a storage that is away for a while is the trial's own concern.
                with contextlib.suppress(Exception):
                    self._storage.set_trial_user_attr(number, _BEAT, time.time())


def retry_lost(study: Study) -> list[int]:
    """Fail the running trials whose process is gone, and queue their parameters again; gives their numbers.

    Processes of this machine are looked up; those of others are gone when they were silent for ten minutes. A trial
    that was lost three times is not queued again: it may be what ends its process.
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
        return time.time() - float(trial.user_attrs.get(_BEAT, worker.get("begun", 0.0))) < _SILENT
    since = _since(int(worker["pid"]))
    return since is not None and abs(since - float(worker["since"])) < 2.0


def _since(pid: int) -> float | None:
    """When a process started, in seconds; None where there is none."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None
