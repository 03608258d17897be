"""One class for each image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Task
from afina.types import MetricInfo


class Classification(Task):
    """Outputs are logits, one per class; targets are class numbers (int64 `[N]`). Quality is accuracy."""

    metric = MetricInfo("accuracy", higher_is_better=True)
    agreement = MetricInfo("agreement", higher_is_better=True)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7)."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def distillation(self, student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
        """KL divergence of softened probabilities, times T² (Hinton et al. 2015, section 2)."""
        teacher_log_probs = F.log_softmax(teacher / temperature, dim=1)
        student_log_probs = F.log_softmax(student / temperature, dim=1)
        return F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True) * temperature**2

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """1 where the largest logit is that of the target, else 0."""
        return _hits(outputs, targets.reshape(-1))

    def agreements(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """1 where both networks choose the same class, else 0."""
        hits = _hits(outputs, reference.argmax(axis=1))
        return np.where(np.isfinite(reference).all(axis=1), hits, 0.0)

    def predictions(self, outputs: np.ndarray) -> list[str]:
        """The name of the class with the largest logit."""
        return [self.spec.labels[i] for i in outputs.argmax(axis=1)]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """Zeros `[outputs]`: at the start no class is more likely than another."""
        return torch.zeros(self.spec.outputs)


def _hits(outputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    # argmax picks a NaN when there is one: a broken network must not score by it.
    finite = np.isfinite(outputs).all(axis=1)
    return np.asarray((outputs.argmax(axis=1) == classes) & finite, dtype=np.float64)
