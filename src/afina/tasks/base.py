"""The contract of a task. A new one is a file with a subclass: `--task path/file.py:MyTask`, a row in `TASKS`, or an
entry point of a package.

What is measured goes three steps, each of which is the task's own:

    outputs -- decode --> predictions -- evidence --> one row for each image -- value --> the metric

For a classifier of 3 images and 2 classes:

    outputs       {"outputs": [[2, 1], [0, 3], [1, 4]]}
    predictions   [0, 1, 1]
    evidence      [[1, 0, 0], [1, 1, 1], [0, 1, 0]]       the targets are 0, 1, 0: a hit, the class given, the right one
    value         2 / 3

Since the value can be taken over any resampling of the rows, every metric has an honest error, also one that is no mean
over images, such as a mean average precision; and a drop between two files has a paired one (`tasks.standard_error`).

Agreement with another network needs nothing of its own: its predictions stand in the place of the targets.

Targets are classes, numbers or flags, which every kind of data can give (`tasks.forms`); or any objects, which the task
reads from the data's files itself (`read_targets`): boxes, points, masks. Those follow their image: `fit_target` is
told which part of it the network sees, and `collate` puts a batch of them together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError
from afina.tasks.targets import DataFiles, ReadTargets, View
from afina.types import LabelTable, MetricInfo, OutputGuide, TaskSpec

Shapes = Mapping[str, tuple[int, ...]]
Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, Tensor]

# What `reads` says of a task that reads targets of its own form.
OWN = "own"


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
            `multilabel` (any of several labels), `own` (`read_targets` reads them); empty where there are none.
        targets_follow: Whether `fit_target` follows its view wherever that lies, mirrored or not: then training images
            are varied (cut, shifted, mirrored), and targets go along.
        space: Parameters of its training that `tune` varies by default beside those of every training, as in a space
            file.
        meaning: What the outputs hold, as a sentence, for the model card.
        code: Lines of Python, as `OutputGuide.code`, that print the prediction for one image.
    """

    metric: ClassVar[MetricInfo]
    agreement: ClassVar[MetricInfo]
    label_word: ClassVar[str] = "outputs"
    has_classes: ClassVar[bool] = False
    reads: ClassVar[str] = ""
    targets_follow: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Any]] = {}
    meaning: ClassVar[str] = "One number for each label, in the order of the labels."
    code: ClassVar[str] = ""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def check_outputs(self, shapes: Shapes) -> None:
        """Raise `InputError`, saying what was expected and what came, where outputs of these shapes are none of it."""

    @abstractmethod
    def loss(self, outputs: Tensors, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss over the batch; `targets` as `collate` (of a form: `ImageData.targets`) gives them."""

    @abstractmethod
    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """How far outputs are from another network's for the same images, mean over the batch."""

    @abstractmethod
    def decode(self, outputs: Arrays) -> Any:
        """The predictions: one for each image, in the form that targets have where that can be."""

    @abstractmethod
    def evidence(self, predictions: Any, targets: Any) -> np.ndarray:
        """What each image says about the quality: one row (or object) for each, float64 `[N, k]` where it is numbers.

        Targets are an array `[N, ...]`, or a list of what `fit_target` gave where the task reads its own. Predictions
        that are not finite count as the worst.
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

    @classmethod
    def read_targets(cls, files: DataFiles) -> ReadTargets:
        """The targets in the data's files, where `reads` is `own`: labels, and a target for each image, any object.

        An image without a target is left out. Raises `InputError` where the files hold no such targets.
        """
        raise NotImplementedError

    def fit_target(self, target: Any, view: View) -> Any:
        """A target as read, for the part of its image that a network sees; by default as it is."""
        return target

    def collate(self, targets: Sequence[Any]) -> Any:
        """A batch of fitted targets for `loss`: one tensor where all have one shape, by default, else a list."""
        tensors = [torch.as_tensor(target) for target in targets]
        return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors

    def head_outputs(self) -> int | None:
        """Width of the one vector that the network is to give; None where the network's outputs stay as they are."""
        return self.spec.outputs

    def initial_bias(self, targets: Any) -> Tensor | None:
        """Bias with which a new last layer starts, from the training targets; None to start from zeros."""
        return None

    def chance(self, targets: Any) -> float | None:
        """The metric of the best answer that does not look at the images; None where that means nothing.

        Targets as in `evidence`.
        """
        return None

    def details(self, evidence: np.ndarray, outputs: Sequence[str]) -> dict[str, float]:
        """Further figures that the evidence holds, by their names; `outputs` are the names of the network's outputs."""
        return {}

    def by_label(self, evidence: np.ndarray) -> LabelTable | None:
        """What the evidence says of each label; None where it says nothing."""
        return None

    def agreement_words(self, evidence: np.ndarray, outputs: Sequence[str]) -> str:
        """How far two networks agree by this evidence, as the end of a sentence on both."""
        value = self.agreement_value(evidence)
        if self.agreement.share and self.agreement.mean_of_images:
            return f"agree on {value:.2%} of the images"
        return f"agree to {value:.2%}" if self.agreement.higher_is_better else f"differ by {value:.4g} on average"

    def guide(self, shapes: Shapes) -> OutputGuide:
        """What reports say of the outputs; `shapes` are those of one image, by name."""
        use = f"{self.spec.name} of images"
        if self.has_classes:
            use += f" into {self.spec.outputs} {self.label_word}"
        return OutputGuide(self.label_word, use, self.meaning, dict(shapes), self.code)


def only_output(outputs: Mapping[str, Any]) -> Any:
    """The tensor or array of a network that gives one."""
    (value,) = outputs.values()
    return value


def check_vector(task: Task, shapes: Shapes) -> None:
    """Raise `InputError` where the outputs are not one vector with a number for each label of `task`."""
    shape = next(iter(shapes.values()))
    if len(shapes) == 1 and len(shape) == 2 and shape[1] == task.spec.outputs:
        return
    raise misfit(
        task, f"one output [N, {task.spec.outputs}]", shapes, f"The data has {task.spec.outputs} {task.label_word}."
    )


def misfit(task: Task, expected: str, shapes: Shapes, why: str = "") -> InputError:
    """The error of outputs that are none of a task's: what was expected, what came.

    Example:
        >>> from afina.tasks import get_task
        >>> task = get_task(TaskSpec("classification", ("cat", "dog")))
        >>> misfit(task, "one output [N, 2]", {"map": (1, 3, 8, 8)}).what
        'classification needs one output [N, 2], and the network gives map [N, 3, 8, 8].'
    """
    came = ", ".join(f"{name} [{', '.join(['N', *map(str, shape[1:])])}]" for name, shape in shapes.items())
    return InputError(
        f"{task.spec.name} needs {expected}, and the network gives {came}.",
        why=why,
        fix="Give a model with such an output, data that matches the model, or --task outputs to compare what it gives "
        "with the original.",
    )
