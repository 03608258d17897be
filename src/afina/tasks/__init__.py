"""What a network is for: loss, predictions, evidence and metric, one file per task and one table of them."""

from afina.tasks.base import OWN, Task, misfit
from afina.tasks.classification import Classification
from afina.tasks.multilabel import MultiLabel
from afina.tasks.outputs import Outputs
from afina.tasks.regression import Regression
from afina.tasks.standard_error import drop_with_error, value_with_error
from afina.tasks.table import TASKS, get_task, named_task, task_class
from afina.tasks.targets import DataFiles, ReadTargets, View

__all__ = [
    "OWN",
    "TASKS",
    "Classification",
    "DataFiles",
    "MultiLabel",
    "Outputs",
    "ReadTargets",
    "Regression",
    "Task",
    "View",
    "drop_with_error",
    "get_task",
    "misfit",
    "named_task",
    "task_class",
    "value_with_error",
]
