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
from afina.jobs.tuning.problem import TuningProblem, early_stopping_of, problem_of
from afina.jobs.tuning.ray_cluster import Cluster, work_on_ray
from afina.jobs.tuning.results import TrialReporter, Tuned, describe_search, results, write_search
from afina.progress import Progress
from afina.search import (
    GRID_POINTS,
    SearchError,
    Space,
    check_sampler_name,
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
# Distance between the seeds of the samplers of two processes.
_SEED_STRIDE = 1_000_003


def _tune(options: TuneOptions) -> Tuned:
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
    begun, progress = _now(), options.progress or Progress()
    if options.out is not None:
        check_folder(Path(options.out), "--out")
    check_sampler_name(options.sampler)
    check_stopping(early_stopping_of(options))
    if options.ray is None and options.devices > 1:
        _check_gpus(options.devices)
    return _search(options, begun, progress)


tune = command(TuneOptions, _tune)


def _search(options: TuneOptions, begun: float, progress: Progress) -> Tuned:
    """The search, on a cluster or in so many processes of this machine; `begun` is when."""
    study, problem = _open(options, 0, progress)
    if earlier_trials := len(study.get_trials(deepcopy=False)):
        place = (
            f"{study.study_name!r} in {without_password(options.storage)}"
            if options.storage
            else f"in {problem.folder}"
        )
        progress.say(
            f"The study {place} has {earlier_trials} {'trial' if earlier_trials == 1 else 'trials'}; it goes on."
        )
    combinations = (
        len(problem.space.combinations(options.grid_points or GRID_POINTS)) if options.sampler == "grid" else None
    )
    if combinations is not None:
        progress.say(f"The grid has {combinations:,} combinations.")
    reporter = TrialReporter(study, problem, options.most_trials or combinations, progress)
    try:
        if options.ray is not None:
            cluster = Cluster(options.ray, options.workers, options.trial_cpus, options.trial_gpus)
            work_on_ray(cluster, options, study, problem, reporter.look, progress, _FAILURES)
        elif options.workers in (None, 1):
            run_study(
                study, problem.objective, problem.space, trials=options.most_trials, seconds=options.seconds,
                most_failures=_FAILURES, after=lambda trial: reporter.look(),
            )  # fmt: skip
        else:
            work_together(options.workers, _work, replace(options, progress=None), reporter.look, progress)
            stop_if_hopeless(study, _FAILURES)
    finally:
        write_search(study, problem)
    stop_if_all_failed(study)
    return results(study, problem, _now() - begun)


def _check_gpus(count: int) -> None:
    import torch

    if count > torch.cuda.device_count():
        raise InputError(
            f"--trial-gpus is {count}, and {torch.cuda.device_count()} GPUs are here.", fix="Ask for fewer."
        )


def _open(options: TuneOptions, worker: int, progress: Progress) -> tuple[Study, TuningProblem]:
    """The study and what its trials run, for one of the processes that work on it."""
    problem = problem_of(options, progress)
    space: Space = problem.space
    study = open_study(
        options.storage or problem.folder,
        space,
        make_sampler(options.sampler, space, options.seed, options.grid_points or GRID_POINTS),
        problem.directions,
        options.study or (problem.name if options.storage else STUDY),
        pruner=make_stopping(early_stopping_of(options), problem.steps, FACTORS[options.fidelity]),
        about=problem.about,
    )
    earlier = len(study.get_trials(deepcopy=False)) + _SEED_STRIDE * worker
    if earlier and options.sampler != "tensor-train":
        # Optuna's samplers would begin with the same points again; ours draws by the number of the trial.
        study.sampler = make_sampler(options.sampler, space, options.seed + earlier, options.grid_points or GRID_POINTS)
    return study, problem


def _work(options: TuneOptions, number: int) -> None:
    """One of several processes."""
    study, problem = _open(options, number, Progress())
    try:
        run_study(
            study, problem.objective, problem.space, trials=options.most_trials, seconds=options.seconds,
            most_failures=_FAILURES,
        )  # fmt: skip
    except SearchError:
        sys.exit(HOPELESS)


def _now() -> float:
    return time.monotonic()


optuna.logging.set_verbosity(optuna.logging.WARNING)
