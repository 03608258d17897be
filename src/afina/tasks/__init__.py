"""What a network is for: loss, predictions, evidence and metric, one file per task and one table of them."""

from afina.tasks.base import Task
from afina.tasks.classification import Classification
from afina.tasks.errors import drop_with_error, value_with_error
from afina.tasks.multilabel import MultiLabel
from afina.tasks.outputs import Outputs
from afina.tasks.regression import Regression
from afina.tasks.table import TASKS, get_task

__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "Outputs",
    "Regression",
    "Task",
    "drop_with_error",
    "get_task",
    "value_with_error",
]
