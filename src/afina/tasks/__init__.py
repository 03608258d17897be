"""What a network is for: loss, metric, agreement and predictions, one file per task and one table of them."""

from afina.errors import InputError, did_you_mean
from afina.tasks.base import Task, mean_with_error
from afina.tasks.classification import Classification
from afina.tasks.regression import Regression
from afina.types import TaskSpec

TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression}


def get_task(spec: TaskSpec) -> Task:
    """The task that `spec` names; an unknown name raises `InputError`."""
    if spec.name not in TASKS:
        raise InputError(f"There is no task {spec.name!r}.", fix=did_you_mean(spec.name, TASKS))
    return TASKS[spec.name](spec)


__all__ = ["TASKS", "Classification", "Regression", "Task", "get_task", "mean_with_error"]
