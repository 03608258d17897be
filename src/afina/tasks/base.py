"""The contract of a task. A new one is a file with a subclass, and a row in `TASKS` or an entry point."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from afina.types import MetricInfo, TaskSpec


class Task(ABC):
    """The meaning of a network's outputs `[N, outputs]`, with the losses and the metric that belong to it.

    Attributes:
        metric: What `scores` measures; the quality of a network is the mean of its scores.
        agreement: What `agreements` measures; it stands in for the metric where there are no labels.
    """

    metric: ClassVar[MetricInfo]
    agreement: ClassVar[MetricInfo]

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss over the batch; `targets` as `ImageData.targets` gives them."""

    @abstractmethod
    def distillation(self, student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
        """Distance of the student's outputs from the teacher's, both `[N, outputs]`; mean over the batch, a scalar."""

    @abstractmethod
    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The metric for each image, float64 `[N]`; outputs that are not finite get the worst score."""

    @abstractmethod
    def agreements(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Agreement of each image's outputs with those of the reference network, both `[N, outputs]`; float64 `[N]`."""

    @abstractmethod
    def predictions(self, outputs: np.ndarray) -> list[Any]:
        """The prediction for each image in the user's terms: the name of a class, a number, or a list of numbers."""

    @abstractmethod
    def initial_bias(self, targets: Tensor) -> Tensor:
        """Bias `[outputs]` with which a new head starts, from the training targets."""


def mean_with_error(scores: np.ndarray) -> tuple[float, float | None]:
    """The mean of scores `[N]`, one for each image, and its standard error; None where one image has none.

    The standard error is the standard deviation over images (with N - 1) divided by the root of N.

    Example:
        >>> mean_with_error(np.array([1.0, 0.0, 1.0, 0.0]))
        (0.5, 0.28867513459481287)
        >>> mean_with_error(np.array([1.0]))
        (1.0, None)
    """
    count = len(scores)
    error = float(np.std(scores, ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(np.mean(scores)), error
