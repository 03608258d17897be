"""One class for each image."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Arrays, Shapes, Task, Tensors, check_vector, only_output
from afina.types import LabelTable, MetricInfo

_NONE = -1  # the class of outputs that are not finite
AGREEMENT = MetricInfo(
    "agreement",
    higher_is_better=True,
    share=True,
    mean_of_images=True,
    words="agreement with the original",
    of_original=True,
)
COLUMNS = (
    MetricInfo("recall", higher_is_better=True, share=True),
    MetricInfo("precision", higher_is_better=True, share=True),
    MetricInfo("images", higher_is_better=True),
)


class Classification(Task):
    """Outputs are logits, one per class; targets are class numbers (int64 `[N]`). Quality is accuracy."""

    metric = MetricInfo("accuracy", higher_is_better=True, share=True, mean_of_images=True)
    agreement = AGREEMENT
    reads = "classification"
    label_word = "classes"
    has_classes = True
    space: ClassVar[Mapping[str, Any]] = {"label_smoothing": {"type": "float", "low": 0.0, "high": 0.2}}
    meaning = "One score (logit) for each class, in the order of the labels; the largest is the answer."
    code = "print(labels[next(iter(outputs.values()))[0].argmax()])"

    def check_outputs(self, shapes: Shapes) -> None:
        check_vector(self, shapes)

    def loss(self, outputs: Tensors, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7)."""
        return F.cross_entropy(only_output(outputs), targets, label_smoothing=label_smoothing)

    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """KL divergence of softened probabilities, times T² (Hinton et al. 2015, section 2)."""
        student, teacher = (F.log_softmax(only_output(o) / temperature, dim=1) for o in (outputs, reference))
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    def decode(self, outputs: Arrays) -> np.ndarray:
        """The class with the largest logit, int64 `[N]`; -1 where a logit is not finite."""
        logits: np.ndarray = only_output(outputs)
        # argmax picks a NaN when there is one: a broken network must not score by it.
        return np.asarray(np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), _NONE))

    def evidence(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """A hit (1 where the class is that of the target, else 0), the class, and that of the target: `[N, 3]`."""
        wanted = np.asarray(targets).reshape(-1)
        hits = (predictions == wanted) & (predictions != _NONE)
        return np.stack([hits, predictions, wanted], axis=1).astype(np.float64)

    def value(self, evidence: np.ndarray) -> float:
        """The share of images whose class is right."""
        return float(evidence[:, 0].mean())

    def chance(self, targets: np.ndarray) -> float:
        """The share of the most frequent class."""
        return float(np.bincount(np.asarray(targets).reshape(-1)).max() / len(targets))

    def by_label(self, evidence: np.ndarray) -> LabelTable | None:
        """For each class: the share of its images that are found, the share of its answers that are right, images."""
        if evidence.shape[1] != 3:  # of a task that is judged in another way
            return None
        hits, given, wanted = evidence.T
        rows: dict[str, tuple[float | None, ...]] = {}
        for number, label in enumerate(self.spec.labels):
            images, answers = hits[wanted == number], hits[given == number]
            means = (float(part.mean()) if len(part) else None for part in (images, answers))
            rows[label] = (*means, float(len(images)))
        return LabelTable(COLUMNS, rows)

    def plain(self, predictions: np.ndarray) -> list[str | None]:
        """The name of the class; None where the outputs are not finite."""
        return [self.spec.labels[i] if i != _NONE else None for i in predictions]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(self.spec.outputs)
