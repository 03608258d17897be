"""What every task promises, over the table of tasks."""

import numpy as np
import pytest
import torch

from afina.tasks import TASKS, Classification, Regression
from afina.testing.tasks import check_task
from afina.types import TaskSpec

SPEC = TaskSpec("classification", ("ant", "bee", "cow"))
OUTPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = {"classification": torch.arange(12) % 3, "regression": OUTPUTS.flip(1) + 1}


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_a_task_keeps_its_contract(name):
    check_task(TASKS[name](TaskSpec(name, SPEC.labels)), OUTPUTS, TARGETS[name])


class _NegativeLoss(Classification):
    def loss(self, outputs, targets, *, label_smoothing=0.0):
        return -super().loss(outputs, targets)


class _SingleScores(Classification):
    def scores(self, outputs, targets):
        return super().scores(outputs, targets).astype("float32")


class _ForgivesNaN(Regression):
    def scores(self, outputs, targets):
        return super().scores(np.nan_to_num(outputs, posinf=0), targets)


class _Tensors(Classification):
    def predictions(self, outputs):
        return list(torch.from_numpy(outputs).argmax(1))


@pytest.mark.parametrize(
    ("kind", "name", "promise"),
    [
        (_NegativeLoss, "classification", "makes scores better"),
        (_SingleScores, "classification", "scores as float64"),
        (_ForgivesNaN, "regression", "worst score to outputs that are"),
        (_Tensors, "classification", "predicts plain data"),
    ],
)
def test_a_contract_that_is_broken_is_told_by_the_promise(kind, name, promise):
    with pytest.raises(AssertionError, match=promise):
        check_task(kind(TaskSpec(name, SPEC.labels)), OUTPUTS, TARGETS[name])
