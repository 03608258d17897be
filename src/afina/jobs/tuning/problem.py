"""The problem that a search of `afina tune` solves: trainings of a model, or a Python function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from afina.data import ImageData
from afina.devices.machine import available_cores
from afina.errors import InputError
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.common.subject import open_images
from afina.jobs.options.tune import DEFAULT_RUNTIME, EPOCHS, TuneOptions
from afina.jobs.tuning.costs import COSTS, Costs
from afina.jobs.tuning.settings import check_space
from afina.jobs.tuning.training_trials import Training, default_space
from afina.jobs.tuning.user_function import VALUE, check_names, function_of
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.search import DEFAULT_STOPPING, FOLD_BY_FOLD, STOPPING, Objective, Space, make_space, read_space
from afina.search.studies import SEED
from afina.tasks.table import identity_of
from afina.training import FitConfig

WORK = "work"

# How images and pixels are taken, where the user says it.
_HOW_OPENED = ("mean", "std")


@dataclass(frozen=True)
class TuningProblem:
    """A problem of hyperparameter optimization: a space, and an objective over it.

    Attributes:
        name: The name in titles.
        folder: The run folder.
        objective: The function that a trial calls with its parameters.
        space: The search space.
        directions: `minimize` or `maximize`, for each value of the objective.
        metrics: The name of each value.
        units: The unit of each value, as in `Measurement`.
        shares: Names of the values that lie in 0..1 and are written in percent.
        steps: The last step that a trial reports; None where that is not known.
        trains: Whether trials train networks, which are kept in the folder.
        about: Facts that must be the same for all trials of a study, as plain data.
    """

    name: str
    folder: Path
    objective: Objective
    space: Space
    directions: tuple[str, ...]
    metrics: tuple[str, ...]
    units: tuple[str, ...]
    shares: frozenset[str] = frozenset()
    steps: int | None = None
    trains: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


def problem_of(options: TuneOptions, progress: Progress) -> TuningProblem:
    """The problem that the options describe, with its model and images opened.

    Raises:
        InputError: the options name nothing to tune, or two things, or a space that does not fit.
    """
    if options.objective is not None:
        if options.model is not None or options.data is not None:
            raise InputError("Both a function and a model are given.", fix="Leave out --objective or MODEL and --data.")
        return _of_function(options)
    if options.model is None or options.data is None:
        raise InputError("There is nothing to tune.", fix="Give MODEL and --data, or --objective file.py:function.")
    if options.maximize:
        raise InputError(
            "--maximize is for functions.",
            why="A training knows whether its metric is to be high.",
            fix="Leave it out.",
        )
    check_source(options.model, options.weights, options.input_size)
    space = None if options.space is None else _space(options.space)
    if space is not None:
        check_space(space)
    costs = Costs(
        Exporter(get_runtime(options.runtime), options.threads or available_cores()), options.objectives, options.limits
    )
    FitConfig(**{name: value for name, value in options.training.items() if value is not None})
    images = open_images(options.data, options.task, seed=options.seed, progress=progress)
    return _of_training(options, space, costs, images, progress)


def _of_training(
    options: TuneOptions, space: Space | None, costs: Costs, images: ImageData, progress: Progress
) -> TuningProblem:
    assert options.model is not None
    training = Training(options, images, costs, progress)
    space = default_space(training) if space is None else space
    training.check(space)
    name, metric = f"{name_of(options.model)}-{name_of(images.name)}", training.metric
    folder = _folder(options.out, name)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> tuple[float, ...]:
        trial.set_user_attr(SEED, options.seed)
        return training.run(params, trial, folder / WORK)

    return TuningProblem(
        name, folder, objective, space,
        directions=("maximize" if metric.higher_is_better else "minimize", *("minimize" for _ in options.objectives)),
        metrics=(metric.name, *options.objectives),
        units=(metric.name, *(COSTS[name] for name in options.objectives)),
        shares=frozenset([metric.name] if metric.share else []),
        steps=training.most_steps(space),
        trains=True,
        about={
            "model": name_of(options.model, full=True), "data": images.fingerprint, "weights": options.weights,
            "input_size": options.input_size, "epochs": options.epochs, **options.training, "also": options.objectives,
            "limits": options.limits, "fidelity": options.fidelity,
            **({} if options.folds is None else {"folds": options.folds}),
            **{name: value for name in _HOW_OPENED if (value := getattr(options, name)) is not None},
            **_about_task(options, images),
        },
    )  # fmt: skip


def _about_task(options: TuneOptions, images: ImageData) -> dict[str, Any]:
    """The task that was asked for; of a user's own the content of its file counts, wherever that is."""
    if options.task is None:
        return {}
    spec = images.task
    return {"own_task": f"{spec.name} {identity_of(spec)['file']}"} if spec.file else {"task": options.task}


def _of_function(options: TuneOptions) -> TuningProblem:
    assert options.objective is not None
    if options.space is None:
        raise InputError("A function needs a search space.", fix="Give --space FILE.")
    _check_options_of(options)
    check_names(options.objectives)
    space = _space(options.space)
    function = function_of(options.objective, space)
    if early_stopping_of(options) not in ("none", DEFAULT_STOPPING) and not function.takes_trial:
        raise InputError(
            f"--early-stopping {options.early_stopping} compares what trials report; {function.name} reports nothing.",
            fix="Give it an argument `trial`, and call trial.report(value, step) and trial.should_prune().",
        )
    names = (VALUE, *options.objectives)

    def objective(params: dict[str, Any], trial: optuna.Trial) -> Any:
        trial.set_user_attr(SEED, options.seed)
        return function(params, trial)

    return TuningProblem(
        function.name, _folder(options.out, function.name), objective, space,
        directions=("maximize" if options.maximize else "minimize", *("minimize" for _ in options.objectives)),
        metrics=names, units=names,
        about={"function": function.name, **({"also": options.objectives} if options.objectives else {})},
    )  # fmt: skip


def _check_options_of(options: TuneOptions) -> None:
    """Raise `InputError` for options that only a training has."""
    training_options = {
        "weights": options.weights, "input_size": options.input_size, "epochs": options.epochs, "folds": options.folds,
        "fidelity": options.fidelity != EPOCHS, "runtime": options.runtime != DEFAULT_RUNTIME,
        "threads": options.threads, **options.limits, **{name: getattr(options, name) for name in _HOW_OPENED},
        **{name: value for name, value in options.training.items() if value != "32"},
    }  # fmt: skip
    wrong = [f"--{name.replace('_', '-')}" for name, value in training_options.items() if value]
    if wrong:
        raise InputError("Options of trainings are given with a function.", fix=f"Leave out {' and '.join(wrong)}.")


def _folder(out: str | Path | None, name: str) -> Path:
    return Path(out) if out is not None else Path("runs") / f"tune-{name}"


def _space(space: Any) -> Space:
    if isinstance(space, Space):
        return space
    return read_space(space) if isinstance(space, (str, Path)) else make_space(space)


def early_stopping_of(options: TuneOptions) -> str:
    """The name of the rule of early stopping, which depends on folds and objectives where the user does not name one.

    Raises:
        InputError: the rule does not go with folds, or with several objectives.
    """
    rule, also, folds = options.early_stopping, options.objectives, options.folds
    if also and rule not in (None, "none"):
        raise InputError(
            f"--early-stopping {rule} is not possible with several objectives.",
            why="There is no single value that says which training has no hope.",
            fix="Leave it out.",
        )
    mismatched = (rule == FOLD_BY_FOLD) != bool(folds) and options.objective is None
    if rule not in (None, "none") and rule in STOPPING and mismatched:
        raise InputError(
            f"--early-stopping {rule} compares trials {'along their curves' if folds else 'fold by fold'}.",
            fix=f"Leave it out, or write {FOLD_BY_FOLD}." if folds else "Give --folds N, or another rule.",
        )
    return rule or ("none" if also else FOLD_BY_FOLD if folds else DEFAULT_STOPPING)
