"""The tasks of networks (loss, metric, agreement and predictions): one module for each, and one table of them."""

from afina.tasks.base import Task, mean_with_error
from afina.tasks.classification import Classification
from afina.tasks.regression import Regression
from afina.tasks.table import TASKS, get_task

__all__ = ["TASKS", "Classification", "Regression", "Task", "get_task", "mean_with_error"]
