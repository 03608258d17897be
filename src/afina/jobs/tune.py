"""`afina tune`: hyperparameters of a training, or of any Python function, found by search."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.study import Study

from afina.errors import InputError
from afina.jobs.options.declaration import command
from afina.jobs.options.tune import TuneOptions
from afina.jobs.tuning.fidelity import FACTORS
from afina.jobs.tuning.local_workers import HOPELESS, work_together
from afina.jobs.tuning.ray_cluster import Cluster, work_on_ray
from afina.jobs.tuning.results import Teller, Tuned, describe_search, results, write_search
from afina.jobs.tuning.subject import Subject, early_stopping_of, subject_of
from afina.progress import Progress
from afina.search import (
    GRID_POINTS,
    SearchError,
    Space,
    check_sampler,
    check_stopping,
    make_sampler,
    make_stopping,
    open_study,
    run_study,
)
from afina.search.storage import without_password
from afina.search.studies import STUDY, stop_if_all_failed, stop_if_hopeless
from afina.store.files import check_folder

__all__ = ["Tuned", "describe_search", "tune"]

_TRIALS = 50
_FAILURES = 5
# Between the seeds of the samplers of two processes.
_APART = 1_000_003


def _tune(asked: TuneOptions) -> Tuned:
    """Search hyperparameters of the training of `model` on `data`, or of a Python function.

    The run folder has `best.yaml`, `trials.csv`, `report.html`, the study and, for a training, `network.pt2`. The same
    call goes on where it stopped, up to `trials` in all; several processes may work on one folder at once.

    Raises:
        InputError: nothing to tune, a space that cannot be used, or a folder with another study.
        SearchError: too many trials failed in a row, or all of them; what was finished is kept.
        StorageError: the run folder or the database cannot be used.

    Example:
        >>> import afina
        >>> def valley(x, depth):
        ...     return (x - 0.25) ** 2 + abs(depth - 3)
        >>> space = {"x": {"type": "float", "low": 0, "high": 1}, "depth": [2, 3, 4]}
        >>> tuned = afina.tune(objective=valley, space=space, sampler="grid", out="runs/valley")
        >>> tuned.best, tuned.value, tuned.trials["finished"]
        ({'x': 0.25, 'depth': 3}, 0.0, 15)
    """
    begun, progress = _now(), asked.progress or Progress()
    if asked.out is not None:
        check_folder(Path(asked.out), "--out")
    check_sampler(asked.sampler)
    check_stopping(early_stopping_of(asked))
    if asked.ray is None and asked.devices > 1:
        _check_gpus(asked.devices)
    return _search(asked, begun, progress)


tune = command(TuneOptions, _tune)


def _search(asked: TuneOptions, begun: float, progress: Progress) -> Tuned:
    """The search, on a cluster or in so many processes of this machine; `begun` is when."""
    study, subject = _open(asked, 0, progress)
    if begun_with := len(study.get_trials(deepcopy=False)):
        place = (
            f"{study.study_name!r} in {without_password(asked.storage)}" if asked.storage else f"in {subject.folder}"
        )
        progress.say(f"The study {place} has {begun_with} {'trial' if begun_with == 1 else 'trials'}; it goes on.")
    combinations = (
        len(subject.space.combinations(asked.grid_points or GRID_POINTS)) if asked.sampler == "grid" else None
    )
    if combinations is not None:
        progress.say(f"The grid has {combinations:,} combinations.")
    teller = Teller(study, subject, asked.most_trials or combinations, progress)
    try:
        if asked.ray is not None:
            cluster = Cluster(asked.ray, asked.workers, asked.trial_cpus, asked.trial_gpus)
            work_on_ray(cluster, asked, study, subject, teller.look, progress, _FAILURES)
        elif asked.workers in (None, 1):
            run_study(
                study, subject.objective, subject.space, trials=asked.most_trials, seconds=asked.seconds,
                most_failures=_FAILURES, after=lambda trial: teller.look(),
            )  # fmt: skip
        else:
            work_together(asked.workers, _work, replace(asked, progress=None), teller.look, progress)
            stop_if_hopeless(study, _FAILURES)
    finally:
        write_search(study, subject)
    stop_if_all_failed(study)
    return results(study, subject, _now() - begun)


def _check_gpus(count: int) -> None:
    import torch

    if count > torch.cuda.device_count():
        raise InputError(
            f"--trial-gpus is {count}, and {torch.cuda.device_count()} GPUs are here.", fix="Ask for fewer."
        )


def _open(asked: TuneOptions, worker: int, progress: Progress) -> tuple[Study, Subject]:
    """The study and what its trials run, for one of the processes that work on it."""
    subject = subject_of(asked, progress)
    space: Space = subject.space
    study = open_study(
        asked.storage or subject.folder,
        space,
        make_sampler(asked.sampler, space, asked.seed, asked.grid_points or GRID_POINTS),
        subject.directions,
        asked.study or (subject.name if asked.storage else STUDY),
        pruner=make_stopping(early_stopping_of(asked), subject.steps, FACTORS[asked.fidelity]),
        about=subject.about,
    )
    known = len(study.get_trials(deepcopy=False)) + _APART * worker
    if known and asked.sampler != "tensor-train":
        # Optuna's samplers would begin with the same points again; ours draws by the number of the trial.
        study.sampler = make_sampler(asked.sampler, space, asked.seed + known, asked.grid_points or GRID_POINTS)
    return study, subject


def _work(asked: TuneOptions, number: int) -> None:
    """One of several processes."""
    study, subject = _open(asked, number, Progress())
    try:
        run_study(
            study, subject.objective, subject.space, trials=asked.most_trials, seconds=asked.seconds,
            most_failures=_FAILURES,
        )  # fmt: skip
    except SearchError:
        sys.exit(HOPELESS)


def _now() -> float:
    return time.monotonic()


optuna.logging.set_verbosity(optuna.logging.WARNING)
