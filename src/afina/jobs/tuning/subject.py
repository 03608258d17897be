"""What a search works on: trainings of a model, or a Python function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from afina.data import ImageData, open_data
from afina.devices.machine import available_cores
from afina.errors import InputError
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.options.tune import DEFAULT_RUNTIME, EPOCHS, TuneOptions
from afina.jobs.tuning.costs import COSTS, Costs
from afina.jobs.tuning.settings import check_space
from afina.jobs.tuning.training_trials import Training, default_space
from afina.jobs.tuning.user_function import VALUE, check_names, function_of
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.search import DEFAULT_STOPPING, FOLD_BY_FOLD, STOPPING, Objective, Space, make_space, read_space
from afina.search.studies import SEED
from afina.training import FitConfig

WORK = "work"


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


def subject_of(asked: TuneOptions, progress: Progress) -> Subject:
    """What the arguments say, opened.

    Raises:
        InputError: they say nothing to tune, or two things, or a space that does not fit.
    """
    if asked.objective is not None:
        if asked.model is not None or asked.data is not None:
            raise InputError("Both a function and a model are asked.", fix="Leave out --objective or MODEL and --data.")
        return _of_function(asked)
    if asked.model is None or asked.data is None:
        raise InputError("There is nothing to tune.", fix="Give MODEL and --data, or --objective file.py:function.")
    if asked.maximize:
        raise InputError(
            "--maximize is for functions.",
            why="A training knows whether its metric is to be high.",
            fix="Leave it out.",
        )
    check_source(asked.model, asked.weights, asked.input_size)
    space = None if asked.space is None else _space(asked.space)
    if space is not None:
        check_space(space)
    costs = Costs(
        Exporter(get_runtime(asked.runtime), asked.threads or available_cores()), asked.objectives, asked.limits
    )
    FitConfig(**{name: value for name, value in asked.training.items() if value is not None})
    images = open_data(asked.data, seed=asked.seed, progress=progress)
    return _of_training(asked, space, costs, images, progress)


def _of_training(
    asked: TuneOptions, space: Space | None, costs: Costs, images: ImageData, progress: Progress
) -> Subject:
    assert asked.model is not None
    training = Training(asked, images, costs, progress)
    space = default_space(training) if space is None else space
    training.check(space)
    name, metric = f"{name_of(asked.model)}-{name_of(images.name)}", training.metric
    folder = _folder(asked.out, name)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> tuple[float, ...]:
        trial.set_user_attr(SEED, asked.seed)
        return training.run(params, trial, folder / WORK)

    return Subject(
        name, folder, objective, space,
        directions=("maximize" if metric.higher_is_better else "minimize", *("minimize" for _ in asked.objectives)),
        metrics=(metric.name, *asked.objectives),
        units=(metric.name, *(COSTS[name] for name in asked.objectives)),
        steps=training.most_steps(space),
        trains=True,
        about={
            "model": name_of(asked.model, full=True), "data": images.fingerprint, "weights": asked.weights,
            "input_size": asked.input_size, "epochs": asked.epochs, **asked.training, "also": asked.objectives,
            "limits": asked.limits, "fidelity": asked.fidelity,
            **({} if asked.folds is None else {"folds": asked.folds}),
        },
    )  # fmt: skip


def _of_function(asked: TuneOptions) -> Subject:
    assert asked.objective is not None
    if asked.space is None:
        raise InputError("A function needs a search space.", fix="Give --space FILE.")
    _check_options_of(asked)
    check_names(asked.objectives)
    space = _space(asked.space)
    function = function_of(asked.objective, space)
    if early_stopping_of(asked) not in ("none", DEFAULT_STOPPING) and not function.takes_trial:
        raise InputError(
            f"--early-stopping {asked.early_stopping} compares what trials report; {function.name} reports nothing.",
            fix="Give it an argument `trial`, and call trial.report(value, step) and trial.should_prune().",
        )
    names = (VALUE, *asked.objectives)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> Any:
        trial.set_user_attr(SEED, asked.seed)
        return function(params, trial)

    return Subject(
        function.name, _folder(asked.out, function.name), objective, space,
        directions=("maximize" if asked.maximize else "minimize", *("minimize" for _ in asked.objectives)),
        metrics=names, units=names,
        about={"function": function.name, **({"also": asked.objectives} if asked.objectives else {})},
    )  # fmt: skip


def _check_options_of(asked: TuneOptions) -> None:
    """Raise `InputError` for options that only a training has."""
    options = {
        "weights": asked.weights, "input_size": asked.input_size, "epochs": asked.epochs, "folds": asked.folds,
        "fidelity": asked.fidelity != EPOCHS, "runtime": asked.runtime != DEFAULT_RUNTIME, "threads": asked.threads,
        **asked.limits,
        **{name: value for name, value in asked.training.items() if value != "32"},
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


def early_stopping_of(options: TuneOptions) -> str:
    """The rule of early stopping: folds give no curve, and several objectives no single value to stop by."""
    asked, also, folds = options.early_stopping, options.objectives, options.folds
    if also and asked not in (None, "none"):
        raise InputError(
            f"--early-stopping {asked} is not possible with several objectives.",
            why="There is no single value that says which training has no hope.",
            fix="Leave it out.",
        )
    unlike = (asked == FOLD_BY_FOLD) != bool(folds) and options.objective is None
    if asked not in (None, "none") and asked in STOPPING and unlike:
        raise InputError(
            f"--early-stopping {asked} compares trials {'along their curves' if folds else 'fold by fold'}.",
            fix=f"Leave it out, or write {FOLD_BY_FOLD}." if folds else "Give --folds N, or another rule.",
        )
    return asked or ("none" if also else FOLD_BY_FOLD if folds else DEFAULT_STOPPING)
