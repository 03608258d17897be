"""`afina tune`: hyperparameters of a training, or of any Python function, found by search."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from afina.errors import InputError
from afina.jobs.common.model_source import ModelSource
from afina.jobs.tuning.fidelity import EPOCHS, FACTORS, rungs_of
from afina.jobs.tuning.local_workers import HOPELESS, work_together
from afina.jobs.tuning.ray_cluster import Cluster, work_on_ray
from afina.jobs.tuning.results import Teller, Tuned, describe_search, results, write_search
from afina.jobs.tuning.subject import DEFAULT_RUNTIME, Given, Subject, subject_of
from afina.progress import Progress
from afina.search import (
    DEFAULT_SAMPLER,
    DEFAULT_STOPPING,
    FOLD_BY_FOLD,
    GRID_POINTS,
    STOPPING,
    SearchError,
    Space,
    check_sampler,
    check_stopping,
    make_sampler,
    make_stopping,
    open_study,
    run_study,
)
from afina.search.storage import is_url, without_password
from afina.search.studies import STUDY, stop_if_all_failed, stop_if_hopeless
from afina.training.config import Optimizer, TrainingPrecision
from afina.units import parse_size, parse_time

__all__ = ["Tuned", "describe_search", "tune"]

_TRIALS = 50
_FAILURES = 5
# Between the seeds of the samplers of two processes.
_APART = 1_000_003


def tune(
    model: ModelSource | None = None,
    data: Any = None,
    *,
    objective: str | Callable[..., Any] | None = None,
    space: str | Path | Mapping[str, Any] | Space | None = None,
    sampler: str = DEFAULT_SAMPLER,
    trials: int | None = None,
    time: str | float | None = None,
    early_stopping: str | None = None,
    fidelity: str = EPOCHS,
    folds: int | None = None,
    grid_points: int | None = None,
    epochs: int | None = None,
    also: str | tuple[str, ...] | list[str] = (),
    size: str | float | None = None,
    latency: str | float | None = None,
    maximize: bool = False,
    out: str | Path | None = None,
    storage: str | None = None,
    study: str | None = None,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    optimizer: Optimizer | None = None,
    precision: TrainingPrecision = "32",
    keep_fp32: tuple[str, ...] = (),
    runtime: str = DEFAULT_RUNTIME,
    threads: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    trial_cpus: float = 1,
    trial_gpus: float = 0,
    seed: int = 0,
    example: Any = None,
    progress: Progress | None = None,
) -> Tuned:
    """Search hyperparameters of the training of `model` on `data`, or of a Python function.

    The run folder has `best.yaml`, `trials.csv`, `report.html`, the study and, for a training, `network.pt2`. The same
    call goes on where it stopped, up to `trials` in all; several processes may work on one folder at once.

    Args:
        model: As in `optimize`.
        data: As in `optimize`; its validation images judge the trials.
        objective: Instead of both: a function of the parameters by name that gives a number, or
            `path/file.py:function`. Where it has an argument `trial`, it gets that too (Optuna's), for
            `trial.report(value, step)`, `trial.should_prune()` and `trial.set_constraint(name, value)`.
        space: A YAML file, a mapping, or a `Space`; by default what matters for a training. Its names are those of
            `FitConfig`, `input_size`, and `model.NAME` for the arguments of what builds the model.
        sampler: `tensor-train`, `tpe`, `gp`, `cmaes`, `qmc`, `random` or `grid`.
        trials: How many in all; by default 50, or no limit where there is a time. A grid is tried once.
        time: After which no new trial is begun, as in `1h`; a number is seconds.
        early_stopping: Which trials are stopped before their end: `none`, `median`, `halving` or `hyperband`; with
            `folds`, `none` or `wilcoxon`. By default `median`, or `wilcoxon`; with several objectives `none`.
        fidelity: What trainings are compared by before their end: `epochs`; `images` (a ninth of them first, then a
            third, then all) or `input-size` (half of it first, then 0.7, then all), each from the weights before.
        folds: Judge each trial by cross-validation: trained once for each of so many parts of the training images,
            on the others. The network of a trial that is kept is trained on all of them.
        grid_points: Values of each continuous parameter in a grid; 5 by default.
        epochs: Of each training, where the space does not vary them.
        also: What is to be low beside the quality: `size`, `latency`, `parameters`, `macs`, `seconds` (of training).
            The result then is every trial that no other is better than in all. With a function: names of what it
            gives after its value.
        size: Limit on the exported float file, as in `500KB`; networks beyond it are not trained.
        latency: Limit on the time of that file for one image, as in `2ms`.
        maximize: Whether the function's value is to be high; a training knows its metric.
        out: The run folder; `runs/tune-MODEL-DATA` by default.
        storage: URL of a database of Optuna's, for many machines; by default a file in the run folder.
        study: Name of the study in that database; by default that of what is tuned.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the network's input, where the space does not vary it.
        optimizer: `sgd` or `adamw`, where the space does not say; by default the one that suits the network.
        precision: Of training, where the space does not say: `32`, `bf16-mixed` or `16-mixed`.
        keep_fp32: Layers, as names or patterns, that run in 32 bits whatever the precision.
        runtime: What runs the files that `size` and `latency` are about.
        threads: Threads of the runtime; all cores by default.
        workers: Local processes, each with its share of the cores, that work on one study; 1 by default. On Ray, trials
            at once; by default as many as it has processors for.
        ray: Run trials as tasks of a Ray cluster: `auto` (the one that this machine is in), `local` (this machine
            alone), or an address.
        trial_cpus: Processors of a trial on Ray.
        trial_gpus: GPUs of a trial: several share each of its batches. On Ray also a part of one, where several trials
            share it.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: nothing to tune, a space that cannot be used, or a folder with another study.
        SearchError: too many trials failed in a row, or all of them; what was finished is kept.
        StorageError: the run folder or the database cannot be used.
    """
    begun, progress = _now(), progress or Progress()
    for name, value, least in (("trials", trials, 1), ("workers", workers, 1), ("folds", folds, 2)):
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}.", fix=f"Give {least} or more.")
    check_sampler(sampler)
    rungs_of(fidelity)
    limit = parse_time(time, "--time", "1h") if time is not None else None
    if trials is None and limit is None and sampler != "grid":
        trials = _TRIALS
    others = (also,) if isinstance(also, str) else tuple(also)
    _check_several(others, sampler, fidelity)
    if grid_points is not None and sampler != "grid":
        raise InputError(f"--grid-points is for --sampler grid, not {sampler}.", fix="Leave it out.")
    if folds and fidelity != EPOCHS:
        raise InputError(f"--fidelity {fidelity} and --folds exclude each other.", fix="Leave one of them out.")
    _check_storage(storage, study)
    stopping = _stopping(early_stopping, others, folds, objective is not None)
    check_stopping(stopping)
    given = Given(
        model, data, objective, space, sampler, trials, limit, stopping, grid_points or GRID_POINTS, epochs, maximize,
        out, storage, study, weights, input_size, seed, example,
        {"optimizer": optimizer, "precision": precision, "keep_fp32": tuple(keep_fp32)},
        others, _limits(size, latency), runtime, threads, fidelity, folds,
        _devices(trial_cpus, trial_gpus, workers, ray),
    )  # fmt: skip
    cluster = None if ray is None else Cluster(ray, workers, trial_cpus, trial_gpus)
    return _search(given, cluster, workers or 1, begun, progress)


def _search(given: Given, cluster: Cluster | None, workers: int, begun: float, progress: Progress) -> Tuned:
    """The search, on a cluster or in so many processes of this machine; `begun` is when."""
    study, subject = _open(given, 0, progress)
    if begun_with := len(study.get_trials(deepcopy=False)):
        place = (
            f"{study.study_name!r} in {without_password(given.storage)}" if given.storage else f"in {subject.folder}"
        )
        progress.say(f"The study {place} has {begun_with} {'trial' if begun_with == 1 else 'trials'}; it goes on.")
    combinations = len(subject.space.combinations(given.grid_points)) if given.sampler == "grid" else None
    if combinations is not None:
        progress.say(f"The grid has {combinations:,} combinations.")
    teller = Teller(study, subject, given.trials or combinations, progress)
    try:
        if cluster is not None:
            work_on_ray(cluster, given, study, subject, teller.look, progress, _FAILURES)
        elif workers == 1:
            run_study(
                study, subject.objective, subject.space, trials=given.trials, seconds=given.limit,
                most_failures=_FAILURES, after=lambda trial: teller.look(),
            )  # fmt: skip
        else:
            work_together(workers, _work, vars(given), teller.look, progress)
            stop_if_hopeless(study, _FAILURES)
    finally:
        write_search(study, subject)
    stop_if_all_failed(study)
    return results(study, subject, _now() - begun)


def _check_storage(storage: str | None, study: str | None) -> None:
    if storage is not None and not is_url(storage):
        raise InputError(
            f"--storage {storage} is not a URL.",
            fix=f"Write sqlite:///{storage} for a file, or leave it out: the study is in the run folder (--out).",
        )
    if study is not None and storage is None:
        raise InputError(
            f"--study {study} names a study of a database, and there is none: a run folder has one study.",
            fix="Give --storage URL, or another --out instead.",
        )


def _stopping(asked: str | None, also: tuple[str, ...], folds: int | None, function: bool) -> str:
    """The rule of early stopping: folds give no curve, and several objectives no single value to stop by."""
    if also and asked not in (None, "none"):
        raise InputError(
            f"--early-stopping {asked} is not possible with several objectives.",
            why="There is no single value that says which training has no hope.",
            fix="Leave it out.",
        )
    unlike = (asked == FOLD_BY_FOLD) != bool(folds) and not function
    if asked not in (None, "none") and asked in STOPPING and unlike:
        raise InputError(
            f"--early-stopping {asked} compares trials {'along their curves' if folds else 'fold by fold'}.",
            fix=f"Leave it out, or write {FOLD_BY_FOLD}." if folds else "Give --folds N, or another rule.",
        )
    return asked or ("none" if also else FOLD_BY_FOLD if folds else DEFAULT_STOPPING)


def _devices(cpus: float, gpus: float, workers: int | None, ray: str | None) -> int:
    """GPUs that share a training."""
    if ray is None and (cpus != 1 or 0 < gpus < 1):
        raise InputError(
            "Parts of a machine for each trial (--trial-cpus, --trial-gpus below 1) are shared out by Ray.",
            fix="Add --ray local, or leave them out.",
        )
    if not math.isfinite(gpus) or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"--trial-gpus is {gpus:g}.", fix="Give a whole number, or less than 1 to share one GPU.")
    if ray is None and gpus > 1:
        if workers not in (None, 1):
            raise InputError(
                "--workers and --trial-gpus exclude each other.", fix="Add --ray local, which shares out the GPUs."
            )
        import torch

        if gpus > torch.cuda.device_count():
            raise InputError(
                f"--trial-gpus is {gpus:g}, and {torch.cuda.device_count()} GPUs are here.", fix="Ask for fewer."
            )
    return max(1, int(gpus))


def _check_several(also: tuple[str, ...], sampler: str, fidelity: str) -> None:
    """Whether what was asked for is possible with several objectives."""
    if also and sampler == "cmaes":
        raise InputError("--sampler cmaes knows one objective only.", fix="Leave out --also, or take another sampler.")
    if also and fidelity != EPOCHS:
        raise InputError(
            f"--fidelity {fidelity} gains nothing with several objectives.",
            why="It is for stopping trainings early, and no single value says which has no hope.",
            fix="Leave it out.",
        )


def _limits(size: str | float | None, latency: str | float | None) -> Mapping[str, float]:
    limits = {} if size is None else {"size": float(parse_size(size))}
    return limits if latency is None else {**limits, "latency": parse_time(latency)}


def _open(given: Given, worker: int, progress: Progress) -> tuple[Study, Subject]:
    """The study and what its trials run, for one of the processes that work on it."""
    subject = subject_of(given, progress)
    space: Space = subject.space
    study = open_study(
        given.storage or subject.folder,
        space,
        make_sampler(given.sampler, space, given.seed, given.grid_points),
        subject.directions,
        given.study or (subject.name if given.storage else STUDY),
        pruner=make_stopping(given.early_stopping, subject.steps, FACTORS[given.fidelity]),
        about=subject.about,
    )
    known = len(study.get_trials(deepcopy=False)) + _APART * worker
    if known and given.sampler != "tensor-train":
        # Optuna's samplers would begin with the same points again; ours draws by the number of the trial.
        study.sampler = make_sampler(given.sampler, space, given.seed + known, given.grid_points)
    return study, subject


def _work(given: dict[str, Any], number: int) -> None:
    """One of several processes."""
    wanted = Given(**given)
    study, subject = _open(wanted, number, Progress())
    try:
        run_study(
            study, subject.objective, subject.space, trials=wanted.trials, seconds=wanted.limit, most_failures=_FAILURES
        )
    except SearchError:
        sys.exit(HOPELESS)


def _now() -> float:
    return time.monotonic()


optuna.logging.set_verbosity(optuna.logging.WARNING)
