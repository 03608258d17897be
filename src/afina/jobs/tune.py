"""`afina tune`: hyperparameters of a training, or of any Python function, found by search."""

import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from afina.data import open_data
from afina.errors import InputError
from afina.jobs.target import ModelSource, name_of
from afina.jobs.trials import CURVE, Training, default_space, keep_best
from afina.jobs.workers import HOPELESS, work_together
from afina.models.userfile import load_function
from afina.progress import Progress
from afina.search import (
    DEFAULT_SAMPLER,
    DEFAULT_STOPPING,
    Objective,
    SearchError,
    Space,
    best_trial,
    counts,
    importances,
    make_sampler,
    make_space,
    make_stopping,
    open_study,
    page,
    read_space,
    run_study,
    trials_csv,
)
from afina.search.studies import ERROR, stop_if_hopeless
from afina.search.tensor_train.history import LOST
from afina.store.files import write
from afina.training.config import Optimizer, Precision
from afina.types import Epoch
from afina.units import format_value, parse_time

_TRIALS = 50
_FAILURES = 5
# Between the seeds of the samplers of two processes.
_APART = 1_000_003
_VALUE = "value"
_WORK, _NETWORK = "work", "network.pt2"


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        best: Values of the active parameters of the best trial, fixed ones too; None where no trial ended well.
        value: Its value.
        metric: What the value is.
        trials: Trials of the study, by how they ended: `finished`, `stopped` early, `failed`.
        importances: Share of each parameter in what makes trials good; empty where there are few trials.
        network: File of the best trial's network; None for a function.
        curve: Of its training; empty for a function.
        out: The run folder.
        seconds: Time that this call took.
    """

    best: Mapping[str, Any] | None
    value: float | None
    metric: str
    trials: Mapping[str, int]
    importances: Mapping[str, float]
    network: str | None
    curve: tuple[Epoch, ...]
    out: str
    seconds: float


def tune(
    model: ModelSource | None = None,
    data: Any = None,
    *,
    objective: str | Callable[..., float] | None = None,
    space: str | Path | Mapping[str, Any] | Space | None = None,
    sampler: str = DEFAULT_SAMPLER,
    trials: int | None = None,
    time: str | float | None = None,
    early_stopping: str = DEFAULT_STOPPING,
    grid_points: int = 5,
    epochs: int | None = None,
    maximize: bool = False,
    out: str | Path | None = None,
    storage: str | None = None,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    optimizer: Optimizer | None = None,
    precision: Precision = "32",
    keep_fp32: tuple[str, ...] = (),
    workers: int = 1,
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
            `path/file.py:function`.
        space: A YAML file, a mapping, or a `Space`; by default what matters for a training. Its names are those of
            `FitConfig`, `input_size`, and `model.NAME` for the arguments of what builds the model.
        sampler: `tensor-train`, `tpe`, `gp`, `cmaes`, `qmc`, `random` or `grid`.
        trials: How many in all; by default 50, or no limit where there is a time. A grid is tried once.
        time: After which no new trial is begun, as in `1h`; a number is seconds.
        early_stopping: Which trainings are stopped before their end: `none`, `median`, `halving` or `hyperband`.
        grid_points: Values of each continuous parameter in a grid.
        epochs: Of each training, where the space does not vary them.
        maximize: Whether the function's value is to be high; a training knows its metric.
        out: The run folder; `runs/tune-MODEL-DATA` by default.
        storage: URL of a database of Optuna's, for many machines; by default a file in the run folder.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the network's input, where the space does not vary it.
        optimizer: `sgd` or `adamw`, where the space does not say; by default the one that suits the network.
        precision: Of training, where the space does not say: `32`, `bf16-mixed` or `16-mixed`.
        keep_fp32: Layers, as names or patterns, that run in 32 bits whatever the precision.
        workers: Local processes, each with its share of the cores; they work on one study.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: nothing to tune, a space that cannot be used, or a folder with another study.
        SearchError: too many trials failed in a row; what was finished is kept.
        StorageError: the run folder or the database cannot be used.
    """
    begun, progress = _now(), progress or Progress()
    if trials is not None and trials < 1:
        raise InputError(f"--trials is {trials}.", fix="Give 1 or more.")
    if workers < 1:
        raise InputError(f"--workers is {workers}.", fix="Give 1 or more.")
    limit = parse_time(time, "--time") if time is not None else None
    if trials is None and limit is None and sampler != "grid":
        trials = _TRIALS
    given = _Given(
        model, data, objective, space, sampler, trials, limit, early_stopping, grid_points, epochs, maximize, out,
        storage, weights, input_size, seed, example,
        {"optimizer": optimizer, "precision": precision, "keep_fp32": tuple(keep_fp32)},
    )  # fmt: skip
    study, subject, chosen = _open(given, 0, progress)
    if len(study.get_trials(deepcopy=False)):
        progress.say(f"The study in {subject.folder} has {len(study.get_trials(deepcopy=False))} trials; it goes on.")
    if sampler == "grid":
        progress.say(f"The grid has {len(chosen.combinations(grid_points)):,} combinations.")
    teller = _Teller(study, subject.metric, progress)
    try:
        if workers == 1:
            run_study(
                study, subject.objective, chosen, trials=trials, seconds=limit, most_failures=_FAILURES,
                after=lambda trial: teller.look(),
            )  # fmt: skip
        else:
            work_together(workers, _work, vars(given), teller.look, progress)
            stop_if_hopeless(study, _FAILURES)
    finally:
        _write(study, subject, chosen)
    return _results(study, subject, chosen, begun)


@dataclass(frozen=True)
class _Given:
    """The arguments of `tune` that decide what a worker does; times in seconds."""

    model: ModelSource | None
    data: Any
    objective: str | Callable[..., float] | None
    space: Any
    sampler: str
    trials: int | None
    limit: float | None
    early_stopping: str
    grid_points: int
    epochs: int | None
    maximize: bool
    out: str | Path | None
    storage: str | None
    weights: str | None
    input_size: str | tuple[int, int] | None
    seed: int
    example: Any
    common: Mapping[str, Any]


def _open(given: _Given, worker: int, progress: Progress) -> tuple[Study, "_Subject", Space]:
    """The study, what its trials run, and the space, for one of the processes that work on it."""
    if given.objective is not None:
        if given.model is not None or given.data is not None:
            raise InputError("Both a function and a model are given.", fix="Leave out --objective or MODEL and --data.")
        subject, space = _of_function(given)
    elif given.model is None or given.data is None:
        raise InputError("There is nothing to tune.", fix="Give MODEL and --data, or --objective file.py:function.")
    else:
        images = open_data(given.data, seed=given.seed, progress=progress)
        training = Training(
            given.model,
            images,
            given.weights,
            given.input_size,
            given.epochs,
            given.seed,
            given.example,
            progress,
            given.common,
        )
        subject, space = _of_training(training, f"{name_of(given.model)}-{name_of(images.name)}", given)
    study = open_study(
        given.storage or subject.folder,
        space,
        make_sampler(given.sampler, space, given.seed, given.grid_points),
        [subject.direction],
        pruner=make_stopping(given.early_stopping, subject.steps),
    )
    known = len(study.get_trials(deepcopy=False)) + _APART * worker
    if known and given.sampler != "tensor-train":
        # Optuna's samplers would begin with the same points again; ours draws by the number of the trial.
        study.sampler = make_sampler(given.sampler, space, given.seed + known, given.grid_points)
    return study, subject, space


def _work(given: dict[str, Any], number: int) -> None:
    """One of several processes."""
    wanted = _Given(**given)
    study, subject, space = _open(wanted, number, Progress())
    try:
        run_study(study, subject.objective, space, trials=wanted.trials, seconds=wanted.limit, most_failures=_FAILURES)
    except SearchError:
        sys.exit(HOPELESS)


class _Teller:
    """Says each trial that ended, once, whichever process ran it."""

    def __init__(self, study: Study, metric: str, progress: Progress) -> None:
        self._study, self._metric, self._progress = study, metric, progress
        self._told = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}

    def look(self) -> None:
        """Say what is new."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self._told and LOST not in trial.user_attrs:
                self._told.add(trial.number)
                self._progress.say(_told(trial, best_trial(self._study), self._metric))


def describe_search(tuned: Tuned) -> str:
    """The result as text."""
    ended = ", ".join(f"{count} {state}" for state, count in tuned.trials.items() if count)
    lines = [f"{sum(tuned.trials.values())} trials: {ended or 'none was begun'}."]
    if tuned.best is None or tuned.value is None:
        return "\n".join([*lines, "None ended with a value."])
    lines.append(f"Best {tuned.metric}: {format_value(tuned.value, tuned.metric)}, with")
    for name, value in tuned.best.items():
        share = f"  (importance {tuned.importances[name]:.0%})" if name in tuned.importances else ""
        lines.append(f"  {name}: {_short(value)}{share}")
    files = f"{tuned.out}/best.yaml, trials.csv, report.html" + (", network.pt2" if tuned.network else "")
    return "\n".join([*lines, f"Kept in {files}"])


@dataclass(frozen=True)
class _Subject:
    """What is tuned.

    Attributes:
        name: For titles.
        folder: The run folder.
        objective: What a trial runs.
        direction: `minimize` or `maximize`.
        metric: What its value is.
        steps: Most reports of one trial.
        trains: Whether trials leave networks.
    """

    name: str
    folder: Path
    objective: Objective
    direction: str
    metric: str
    steps: int = 1
    trains: bool = False


def _of_training(training: Training, name: str, given: _Given) -> tuple[_Subject, Space]:
    chosen = _space(given.space) if given.space is not None else default_space(training)
    training.check(chosen)
    folder = _folder(given.out, name)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> float:
        return training.run(params, trial, folder / _WORK)

    metric, steps = training.metric, training.most_epochs(chosen)
    direction = "maximize" if metric.higher_is_better else "minimize"
    return _Subject(name, folder, objective, direction, metric.name, steps, trains=True), chosen


def _of_function(given: _Given) -> tuple[_Subject, Space]:
    assert given.objective is not None
    if given.space is None:
        raise InputError("A function needs a search space.", fix="Give --space FILE.")
    function, name = _function(given.objective)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> float:
        return function(**params)

    direction = "maximize" if given.maximize else "minimize"
    return _Subject(name, _folder(given.out, name), objective, direction, _VALUE), _space(given.space)


def _folder(out: str | Path | None, name: str) -> Path:
    return Path(out) if out is not None else Path("runs") / f"tune-{name}"


def _function(objective: str | Callable[..., float]) -> tuple[Callable[..., float], str]:
    if callable(objective):
        return objective, re.sub(r"\W+", "", getattr(objective, "__name__", "function"))
    path, _, name = str(objective).rpartition(":")
    if not path.endswith(".py"):
        raise InputError(f"--objective {objective} is not a function.", fix="Write it as path/file.py:function.")
    return load_function(Path(path), name), f"{Path(path).stem}-{name}"


def _space(space: Any) -> Space:
    if isinstance(space, Space):
        return space
    return read_space(space) if isinstance(space, (str, Path)) else make_space(space)


def _told(trial: FrozenTrial, best: FrozenTrial | None, metric: str) -> str:
    """A trial in one line."""
    seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
    shown = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    if trial.state == TrialState.FAIL:
        ended = f"failed: {trial.user_attrs.get(ERROR, {}).get('message', 'no reason')}"
    elif trial.state == TrialState.PRUNED:
        ended = f"stopped after {len(trial.intermediate_values)} epochs"
    else:
        ended = f"{metric} {format_value(trial.value or 0.0, metric)}"
    so_far = f" (best {format_value(best.value or 0.0, metric)}, trial {best.number})" if best is not None else ""
    return f"Trial {trial.number}: {ended}{so_far}, {seconds:.1f} s: {shown}"


def _write(study: Study, subject: _Subject, space: Space) -> None:
    """What is said about the study, and its network; also when it is cut off."""
    folder = subject.folder
    if subject.trains:
        keep_best(study, folder / _WORK, folder / _NETWORK)
    best = best_trial(study)
    write(folder / "space.yaml", yaml.safe_dump(space.to_plain(), sort_keys=False).encode())
    write(folder / "trials.csv", trials_csv(study, space).encode())
    if best is None:
        return
    write(folder / "best.yaml", yaml.safe_dump(dict(space.complete(best.params)), sort_keys=False).encode())
    title = escape(f"Search of {subject.name}")
    write(folder / "report.html", page(study, title, subject.metric).encode())


def _results(study: Study, subject: _Subject, space: Space, begun: float) -> Tuned:
    best, file = best_trial(study), subject.folder / _NETWORK
    return Tuned(
        best=None if best is None else space.complete(best.params),
        value=None if best is None else best.value,
        metric=subject.metric,
        trials=counts(study),
        importances=importances(study),
        network=str(file) if subject.trains and file.is_file() else None,
        curve=() if best is None else tuple(Epoch(**epoch) for epoch in best.user_attrs.get(CURVE, ())),
        out=str(subject.folder),
        seconds=_now() - begun,
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _now() -> float:
    return time.monotonic()


optuna.logging.set_verbosity(optuna.logging.WARNING)
