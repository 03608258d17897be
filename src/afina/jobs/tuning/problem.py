"""The problem that a search of `afina tune` solves: trainings of a model, or a Python function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from afina.errors import InputError
from afina.jobs.options.tune import DEFAULT_RUNTIME, EPOCHS, TuneOptions
from afina.jobs.tuning.user_function import VALUE, check_names, function_of
from afina.progress import Progress
from afina.search import DEFAULT_STOPPING, FOLD_BY_FOLD, STOPPING, Objective, Space, make_space, read_space
from afina.search.studies import SEED
from afina.types import Measurement

WORK = "work"

# How images and pixels are taken, where the user says it.
HOW_OPENED = ("mean", "std", "resize", "interpolation")


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
        judge: Measures the network in a file on the test images, which no trial saw; None where there are none.
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
    judge: Callable[[Path], Measurement] | None = None
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
    from afina.jobs.tuning.training_problem import of_training  # needs torch, which takes seconds to import

    return of_training(options, progress)


def _of_function(options: TuneOptions) -> TuningProblem:
    assert options.objective is not None
    if options.space is None:
        raise InputError("A function needs a search space.", fix="Give --space FILE.")
    _check_options_of(options)
    check_names(options.objectives)
    space = space_of(options.space)
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
        function.name, folder_of(options.out, function.name), objective, space,
        directions=("maximize" if options.maximize else "minimize", *("minimize" for _ in options.objectives)),
        metrics=names, units=names,
        about={"function": function.name, **({"also": options.objectives} if options.objectives else {})},
    )  # fmt: skip


def _check_options_of(options: TuneOptions) -> None:
    """Raise `InputError` for options that only a training has."""
    training_options = {
        "weights": options.weights, "input_size": options.input_size, "epochs": options.epochs, "folds": options.folds,
        "fidelity": options.fidelity != EPOCHS, "runtime": options.runtime != DEFAULT_RUNTIME,
        "threads": options.threads, "task": options.task, **options.limits,
        **{name: getattr(options, name) for name in HOW_OPENED},
        **{name: value for name, value in options.training.items() if value != "32"},
    }  # fmt: skip
    wrong = [f"--{name.replace('_', '-')}" for name, value in training_options.items() if value]
    if wrong:
        raise InputError("Options of trainings are given with a function.", fix=f"Leave out {' and '.join(wrong)}.")


def folder_of(out: str | Path | None, name: str) -> Path:
    """The run folder: `out`, or one in `runs/` by the name of the problem."""
    return Path(out) if out is not None else Path("runs") / f"tune-{name}"


def space_of(space: Any) -> Space:
    """The space that a user gives: as it is, in a file, or as a mapping of names to choices."""
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
