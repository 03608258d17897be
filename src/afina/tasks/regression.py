"""One or more numbers for each image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Arrays, Shapes, Task, Tensors, check_vector, only_output
from afina.types import LabelTable, MetricInfo


class Regression(Task):
    """Outputs and targets are numbers in the user's unit (float32 `[N, outputs]`).

    Quality is the mean absolute error, lower is better.
    """

    metric = MetricInfo("mae", higher_is_better=False, mean_of_images=True, words="mean absolute error")
    agreement = MetricInfo(
        "mae_to_original",
        higher_is_better=False,
        mean_of_images=True,
        words="mean difference from the original",
        of_original=True,
    )
    reads = "regression"
    label_word = "targets"
    meaning = "One number for each target, in the order of the labels."
    code = "print(dict(zip(labels, next(iter(outputs.values()))[0].tolist())))"

    def check_outputs(self, shapes: Shapes) -> None:
        check_vector(self, shapes)

    def loss(self, outputs: Tensors, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Smooth L1 (Girshick 2015, equation 3): near the metric, and steady on targets of any scale."""
        return F.smooth_l1_loss(only_output(outputs), targets)

    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """Smooth L1 between the two outputs; the temperature has no meaning here."""
        return F.smooth_l1_loss(only_output(outputs), only_output(reference))

    def decode(self, outputs: Arrays) -> np.ndarray:
        """The outputs themselves, `[N, outputs]`."""
        return np.asarray(only_output(outputs))

    def evidence(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The absolute error, mean over the outputs, then that of each: `[N, 1 + outputs]`.

        Infinite where an output is not finite.
        """
        errors = np.abs(predictions.astype(np.float64) - np.asarray(targets).reshape(predictions.shape))
        errors = np.where(np.isfinite(errors), errors, np.inf)
        return np.concatenate([errors.mean(axis=1, keepdims=True), errors], axis=1)

    def value(self, evidence: np.ndarray) -> float:
        """The mean error."""
        return float(evidence[:, 0].mean())

    def chance(self, targets: np.ndarray) -> float:
        """The error of the median, the best constant answer."""
        numbers = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
        return float(np.abs(numbers - np.median(numbers, axis=0)).mean())

    def by_label(self, evidence: np.ndarray) -> LabelTable | None:
        """The error of each output, where there are several."""
        if self.spec.outputs < 2:
            return None
        means = evidence[:, 1:].mean(axis=0)
        return LabelTable((self.metric,), {name: (float(m),) for name, m in zip(self.spec.labels, means, strict=True)})

    def plain(self, predictions: np.ndarray) -> list[float] | list[list[float]]:
        """A number for each image; a list of numbers where there is more than one output."""
        if predictions.shape[1] == 1:
            return [float(value) for value in predictions[:, 0]]
        return [[float(value) for value in row] for row in predictions]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """The mean target: training starts from the best constant answer instead of walking to it."""
        return targets.float().mean(dim=0).reshape(-1).to(torch.float32)
