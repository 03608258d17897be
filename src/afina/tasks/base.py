"""The contract of a task. A new one is a file with a subclass, and a row in `TASKS` or an entry point.

What is measured goes three steps, each of which is the task's own:

    outputs -- decode --> predictions -- evidence --> one row for each image -- value --> the metric

For a classifier of 3 images and 2 classes:

    outputs       {"outputs": [[2, 1], [0, 3], [1, 4]]}
    predictions   [0, 1, 1]
    evidence      [[1], [1], [0]]       the targets are 0, 1, 0
    value         2 / 3

Since the value can be taken over any resampling of the rows, every metric has an honest error, also one that is no mean
over images, such as a mean average precision; and a drop between two files has a paired one (`tasks.errors`).

Agreement with another network needs nothing of its own: its predictions stand in the place of the targets.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from afina.errors import InputError
from afina.types import MetricInfo, TaskSpec

Shapes = Mapping[str, tuple[int, ...]]
Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, Tensor]


class Task(ABC):
    """What a network's outputs mean, how they are trained and how they are judged.

    Outputs come as named tensors (`[N, ...]` each), as `Network` and `Session` give them.

    Attributes:
        metric: What `value` measures.
        agreement: The same where the predictions of another network stand in the place of the targets.
        label_word: What the labels of its specification are called, in the plural.
        has_classes: Whether the labels are classes, which a trained head knows by their names: then other labels need
            another head.
        reads: The form in which targets are read: `classification` (a class for each image), `regression` (numbers),
            `multilabel` (any of several labels); empty where there are none.
    """

    metric: ClassVar[MetricInfo]
    agreement: ClassVar[MetricInfo]
    label_word: ClassVar[str] = "outputs"
    has_classes: ClassVar[bool] = False
    reads: ClassVar[str] = ""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def check_outputs(self, shapes: Shapes) -> None:
        """Raise `InputError`, saying what was expected and what came, where outputs of these shapes are none of it."""

    @abstractmethod
    def loss(self, outputs: Tensors, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss over the batch; `targets` as `ImageData.targets` gives them."""

    @abstractmethod
    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """How far outputs are from another network's for the same images, mean over the batch."""

    @abstractmethod
    def decode(self, outputs: Arrays) -> Any:
        """The predictions: one for each image, in the form that targets have where that can be."""

    @abstractmethod
    def evidence(self, predictions: Any, targets: Any) -> np.ndarray:
        """What each image says about the quality: one row (or object) for each, float64 `[N, k]` where it is numbers.

        Predictions that are not finite count as the worst.
        """

    @abstractmethod
    def value(self, evidence: np.ndarray) -> float:
        """The metric over any collection of rows of evidence."""

    @abstractmethod
    def plain(self, predictions: Any) -> list[Any]:
        """What a user reads for each image, as plain data: the name of a class, a number, or a list of numbers."""

    def as_targets(self, predictions: Any) -> Any:
        """Predictions in the place of targets: those of the network that another one is to agree with."""
        return predictions

    def agreement_evidence(self, outputs: Arrays, reference: Arrays) -> np.ndarray:
        """What each image says about how well outputs agree with those of the reference network."""
        return self.evidence(self.decode(outputs), self.as_targets(self.decode(reference)))

    def agreement_value(self, evidence: np.ndarray) -> float:
        """The agreement over any collection of rows of its evidence."""
        return self.value(evidence)

    def initial_bias(self, targets: Tensor) -> Tensor | None:
        """Bias with which a new last layer starts, from the training targets; None to start from zeros."""
        return None

    def details(self, evidence: np.ndarray, outputs: Sequence[str]) -> dict[str, float]:
        """Further figures that the evidence holds, by their names; `outputs` are the names of the network's outputs."""
        return {}

    def agreement_words(self, evidence: np.ndarray, outputs: Sequence[str]) -> str:
        """How far two networks agree by this evidence, as the end of a sentence on both."""
        value = self.agreement_value(evidence)
        if self.agreement.share and self.agreement.mean_of_images:
            return f"agree on {value:.2%} of the images"
        return f"agree to {value:.2%}" if self.agreement.higher_is_better else f"differ by {value:.4g} on average"


def only_output(outputs: Mapping[str, Any]) -> Any:
    """The tensor or array of a network that gives one."""
    (value,) = outputs.values()
    return value


def check_vector(task: Task, shapes: Shapes) -> None:
    """Raise `InputError` where the outputs are not one vector with a number for each label of `task`."""
    shape = next(iter(shapes.values()))
    if len(shapes) == 1 and len(shape) == 2 and shape[1] == task.spec.outputs:
        return
    came = ", ".join(f"{name} {_shown(shape)}" for name, shape in shapes.items())
    raise InputError(
        f"{task.spec.name} needs one output [N, {task.spec.outputs}], and the network gives {came}.",
        why=f"The data has {task.spec.outputs} {task.label_word}.",
        fix="Give a model with an output of that width, data that matches the model, or --task outputs to compare what "
        "it gives with the original.",
    )


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"
