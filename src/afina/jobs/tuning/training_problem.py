"""The problem of a search over trainings of a model: its images and model opened, and one training for each trial."""

from typing import Any

import optuna

from afina.capacity import available_cores
from afina.data import ImageData
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import check_source, name_of
from afina.jobs.common.subject import open_images
from afina.jobs.options.tune import TuneOptions
from afina.jobs.tuning.costs import COSTS, Costs
from afina.jobs.tuning.problem import HOW_OPENED, WORK, TuningProblem, folder_of, space_of
from afina.jobs.tuning.settings import check_space
from afina.jobs.tuning.training_trials import Training, default_space
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.search import Space
from afina.search.studies import SEED
from afina.tasks.table import identity_of
from afina.training import FitConfig


def of_training(options: TuneOptions, progress: Progress) -> TuningProblem:
    """The problem that the options describe.

    Raises:
        InputError: the model, the images or the space cannot be used.
    """
    assert options.model is not None
    check_source(options.model, options.weights, options.input_size)
    space = None if options.space is None else space_of(options.space)
    if space is not None:
        check_space(space)
    costs = Costs(
        Exporter(get_runtime(options.runtime), options.threads or available_cores()), options.objectives, options.limits
    )
    FitConfig(**{name: value for name, value in options.training.items() if value is not None})
    images = open_images(options.data, options, shares=1 + (options.workers or 0))
    return _problem(options, space, costs, images, progress)


def _problem(
    options: TuneOptions, space: Space | None, costs: Costs, images: ImageData, progress: Progress
) -> TuningProblem:
    assert options.model is not None
    training = Training(options, images, costs, progress)
    space = default_space(training) if space is None else space
    training.check(space)
    name, metric = f"{name_of(options.model)}-{name_of(images.name)}", training.metric
    folder = folder_of(options.out, name)

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
        judge=training.on_test if images.judging == "test" else None,
        about={
            "model": name_of(options.model, full=True), "data": images.fingerprint, "weights": options.weights,
            "input_size": options.input_size, "epochs": options.epochs, **options.training, "also": options.objectives,
            "limits": options.limits, "fidelity": options.fidelity,
            **({} if options.folds is None else {"folds": options.folds}),
            **{name: value for name in HOW_OPENED if (value := getattr(options, name)) is not None},
            **_about_task(options, images),
        },
    )  # fmt: skip


def _about_task(options: TuneOptions, images: ImageData) -> dict[str, Any]:
    """The task that was asked for; of a user's own the content of its file counts, wherever that is."""
    if options.task is None:
        return {}
    spec = images.task
    return {"own_task": f"{spec.name} {identity_of(spec)['file']}"} if spec.file else {"task": options.task}
