"""What a search works on: trainings of a model, or a Python function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from afina.data import ImageData, open_data
from afina.devices.machine import available_cores
from afina.errors import InputError
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import ModelSource, check_source, name_of
from afina.jobs.tuning.costs import COSTS, Costs
from afina.jobs.tuning.fidelity import EPOCHS
from afina.jobs.tuning.training_trials import Training, check_space, default_space
from afina.jobs.tuning.user_function import VALUE, check_names, function_of
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.search import DEFAULT_STOPPING, Objective, Space, make_space, read_space
from afina.search.studies import SEED
from afina.training import FitConfig

WORK = "work"
DEFAULT_RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Given:
    """The arguments of `tune` that decide what a worker does, as there; times in seconds."""

    model: ModelSource | None
    data: Any
    objective: str | Callable[..., Any] | None
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
    study: str | None
    weights: str | None
    input_size: str | tuple[int, int] | None
    seed: int
    example: Any
    common: Mapping[str, Any]
    also: tuple[str, ...]
    limits: Mapping[str, float]
    runtime: str
    threads: int | None
    fidelity: str
    folds: int | None
    devices: int


@dataclass(frozen=True)
class Subject:
    """What is tuned.

    Attributes:
        name: For titles.
        folder: The run folder.
        objective: What a trial runs.
        space: What is searched.
        directions: `minimize` or `maximize`, for each objective.
        metrics: Their names; `units` say how they are written.
        units: As in `Measurement`.
        steps: The last step that a trial reports; None where that is not known.
        trains: Whether trials leave networks.
        about: What must be the same for all trials.
    """

    name: str
    folder: Path
    objective: Objective
    space: Space
    directions: tuple[str, ...]
    metrics: tuple[str, ...]
    units: tuple[str, ...]
    steps: int | None = None
    trains: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


def subject_of(given: Given, progress: Progress) -> Subject:
    """What the arguments say, opened.

    Raises:
        InputError: they say nothing to tune, or two things, or a space that does not fit.
    """
    if given.objective is not None:
        if given.model is not None or given.data is not None:
            raise InputError("Both a function and a model are given.", fix="Leave out --objective or MODEL and --data.")
        return _of_function(given)
    if given.model is None or given.data is None:
        raise InputError("There is nothing to tune.", fix="Give MODEL and --data, or --objective file.py:function.")
    if given.maximize:
        raise InputError(
            "--maximize is for functions.",
            why="A training knows whether its metric is to be high.",
            fix="Leave it out.",
        )
    check_source(given.model, given.weights, given.input_size)
    space = None if given.space is None else _space(given.space)
    if space is not None:
        check_space(space)
    costs = Costs(Exporter(get_runtime(given.runtime), given.threads or available_cores()), given.also, given.limits)
    FitConfig(**{name: value for name, value in given.common.items() if value is not None})
    images = open_data(given.data, seed=given.seed, progress=progress)
    return _of_training(given, space, costs, images, progress)


def _of_training(given: Given, space: Space | None, costs: Costs, images: ImageData, progress: Progress) -> Subject:
    assert given.model is not None
    training = Training(
        given.model, images, given.weights, given.input_size, given.epochs, given.seed, given.example, progress,
        given.common, costs, given.fidelity, given.folds, given.devices,
    )  # fmt: skip
    space = default_space(training) if space is None else space
    training.check(space)
    name, metric = f"{name_of(given.model)}-{name_of(images.name)}", training.metric
    folder = _folder(given.out, name)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> tuple[float, ...]:
        trial.set_user_attr(SEED, given.seed)
        return training.run(params, trial, folder / WORK)

    return Subject(
        name, folder, objective, space,
        directions=("maximize" if metric.higher_is_better else "minimize", *("minimize" for _ in given.also)),
        metrics=(metric.name, *given.also),
        units=(metric.name, *(COSTS[name] for name in given.also)),
        steps=training.most_steps(space),
        trains=True,
        about={
            "model": name_of(given.model, full=True), "data": images.fingerprint, "weights": given.weights,
            "input_size": given.input_size, "epochs": given.epochs, **given.common, "also": given.also,
            "limits": given.limits, "fidelity": given.fidelity,
            **({} if given.folds is None else {"folds": given.folds}),
        },
    )  # fmt: skip


def _of_function(given: Given) -> Subject:
    assert given.objective is not None
    if given.space is None:
        raise InputError("A function needs a search space.", fix="Give --space FILE.")
    _check_options_of(given)
    check_names(given.also)
    space = _space(given.space)
    function = function_of(given.objective, space)
    if given.early_stopping not in ("none", DEFAULT_STOPPING) and not function.takes_trial:
        raise InputError(
            f"--early-stopping {given.early_stopping} compares what trials report; {function.name} reports nothing.",
            fix="Give it an argument `trial`, and call trial.report(value, step) and trial.should_prune().",
        )
    names = (VALUE, *given.also)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> Any:
        trial.set_user_attr(SEED, given.seed)
        return function(params, trial)

    return Subject(
        function.name, _folder(given.out, function.name), objective, space,
        directions=("maximize" if given.maximize else "minimize", *("minimize" for _ in given.also)),
        metrics=names, units=names,
        about={"function": function.name, **({"also": given.also} if given.also else {})},
    )  # fmt: skip


def _check_options_of(given: Given) -> None:
    """Raise `InputError` for options that only a training has."""
    options = {
        "weights": given.weights, "input_size": given.input_size, "epochs": given.epochs, "folds": given.folds,
        "fidelity": given.fidelity != EPOCHS, "runtime": given.runtime != DEFAULT_RUNTIME, "threads": given.threads,
        **given.limits,
        **{name: value for name, value in given.common.items() if value != "32"},
    }  # fmt: skip
    wrong = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if wrong:
        raise InputError("Options of trainings are given with a function.", fix=f"Leave out {' and '.join(wrong)}.")


def _folder(out: str | Path | None, name: str) -> Path:
    return Path(out) if out is not None else Path("runs") / f"tune-{name}"


def _space(space: Any) -> Space:
    if isinstance(space, Space):
        return space
    return read_space(space) if isinstance(space, (str, Path)) else make_space(space)
