"""One or more numbers for each image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Task
from afina.types import MetricInfo


class Regression(Task):
    """Outputs and targets are numbers in the user's unit (float32 `[N, outputs]`). Quality is the mean
    absolute error, lower is better."""

    metric = MetricInfo("mae", higher_is_better=False)
    agreement = MetricInfo("mae_to_original", higher_is_better=False)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Smooth L1 (Girshick 2015, equation 3): near the metric, and steady on targets of any scale."""
        return F.smooth_l1_loss(outputs, targets)

    def distillation(self, student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
        """Smooth L1 between the two outputs; the temperature has no meaning here."""
        return F.smooth_l1_loss(student, teacher)

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Absolute error, mean over the outputs; infinite where an output is not finite."""
        return _errors(outputs, targets)

    def agreements(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Absolute difference between the two networks, mean over the outputs."""
        return _errors(outputs, reference)

    def predictions(self, outputs: np.ndarray) -> list[float] | list[list[float]]:
        """A number for each image; a list of numbers where there is more than one output."""
        if outputs.shape[1] == 1:
            return [float(value) for value in outputs[:, 0]]
        return [[float(value) for value in row] for row in outputs]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """The mean target: training starts from the best constant answer instead of walking to it."""
        return targets.float().mean(dim=0).reshape(-1).to(torch.float32)


def _errors(outputs: np.ndarray, expected: np.ndarray) -> np.ndarray:
    errors = np.abs(outputs.astype(np.float64) - expected.reshape(outputs.shape)).mean(axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)
