"""The table of tasks, and how the one of a network is looked up.

Other packages add tasks by entry points of the group `afina.tasks`, which name a subclass of `Task`.
"""

from typing import Any

from afina.extensions import Table, concrete_class
from afina.tasks.base import Task
from afina.tasks.classification import Classification
from afina.tasks.multilabel import MultiLabel
from afina.tasks.outputs import Outputs
from afina.tasks.regression import Regression
from afina.types import MetricInfo, TaskSpec


def _accept(value: Any) -> type[Task]:
    """The class that another package's entry point names. Raises `BrokenContract`."""
    kind: type[Task] = concrete_class(value, Task, {"metric": MetricInfo, "agreement": MetricInfo})  # type: ignore[type-abstract]
    return kind


TASKS: Table[type[Task]] = Table(
    "task",
    "afina.tasks",
    {"classification": Classification, "regression": Regression, "multilabel": MultiLabel, "outputs": Outputs},
    accept=_accept,
)


def get_task(spec: TaskSpec) -> Task:
    """The task that `spec` names.

    Raises:
        InputError: there is no task of that name, or its package is broken.

    Example:
        >>> get_task(TaskSpec("classification", ("cat", "dog"))).metric.name
        'accuracy'
    """
    return TASKS.get(spec.name)(spec)
