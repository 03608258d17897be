"""One class for each image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Arrays, Shapes, Task, Tensors, check_vector, only_output
from afina.types import MetricInfo

_NONE = -1  # the class of outputs that are not finite


class Classification(Task):
    """Outputs are logits, one per class; targets are class numbers (int64 `[N]`). Quality is accuracy."""

    metric = MetricInfo("accuracy", higher_is_better=True, share=True, mean_of_images=True)
    agreement = MetricInfo("agreement", higher_is_better=True, share=True, mean_of_images=True)
    reads = "classification"
    label_word = "classes"
    has_classes = True

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
        """1 where the class is that of the target, else 0."""
        hits = (predictions == np.asarray(targets).reshape(-1)) & (predictions != _NONE)
        return np.asarray(hits, dtype=np.float64)[:, None]

    def value(self, evidence: np.ndarray) -> float:
        """The share of images whose class is right."""
        return float(evidence[:, 0].mean())

    def plain(self, predictions: np.ndarray) -> list[str | None]:
        """The name of the class; None where the outputs are not finite."""
        return [self.spec.labels[i] if i != _NONE else None for i in predictions]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(self.spec.outputs)
