"""What every task promises, over the table of tasks."""

import numpy as np
import pytest
import torch

from afina.tasks import TASKS, Classification, Regression
from afina.testing.tasks import check_task
from afina.types import TaskSpec

SPEC = TaskSpec("classification", ("ant", "bee", "cow"))
NUMBERS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
OUTPUTS = {"outputs": NUMBERS}
TARGETS = {
    "classification": torch.arange(12) % 3,
    "regression": NUMBERS.flip(1) + 1,
    "multilabel": (NUMBERS.flip(1) > 0).float(),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_task_keeps_its_contract(name):
    check_task(TASKS[name](TaskSpec(name, SPEC.labels)), OUTPUTS, TARGETS[name])


class _NegativeLoss(Classification):
    def loss(self, outputs, targets, *, label_smoothing=0.0):
        return -super().loss(outputs, targets)


class _RowsOfAll(Classification):
    def evidence(self, predictions, targets):
        return super().evidence(predictions, targets) / len(predictions)


class _ForgivesNaN(Regression):
    def decode(self, outputs):
        return np.nan_to_num(super().decode(outputs), nan=1.0, posinf=1.0)

    def evidence(self, predictions, targets):
        return super().evidence(np.where(predictions == 1.0, targets, predictions), targets)


class _TakesAnything(Classification):
    def check_outputs(self, shapes):
        pass


class _Tensors(Classification):
    def plain(self, predictions):
        return list(torch.from_numpy(predictions))


@pytest.mark.parametrize(
    ("kind", "name", "promise"),
    [
        (_NegativeLoss, "classification", "makes the metric better"),
        (_RowsOfAll, "classification", "judges an image by itself"),
        (_ForgivesNaN, "regression", "no better metric to outputs that are"),
        (_TakesAnything, "classification", "refuses outputs that it cannot read"),
        (_Tensors, "classification", "predicts plain data"),
    ],
)
def test_a_contract_that_is_broken_is_told_by_the_promise(kind, name, promise):
    with pytest.raises(AssertionError, match=promise):
        check_task(kind(TaskSpec(name, SPEC.labels)), OUTPUTS, TARGETS[name])
