"""Any number of labels for each image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.tasks.base import Arrays, Shapes, Task, Tensors, check_vector, only_output
from afina.types import LabelTable, MetricInfo

COLUMNS = (
    MetricInfo("average precision", higher_is_better=True, share=True),
    MetricInfo("images", higher_is_better=True),
)


class MultiLabel(Task):
    """Outputs are logits, one per label; targets say which labels an image has (float32 `[N, labels]`, 0 or 1).

    Quality is the mean average precision over the labels that the images have (Everingham et al. 2010, section 4.2,
    with the area under the whole precision-recall curve).
    """

    metric = MetricInfo("map", higher_is_better=True, share=True, words="mean average precision")
    agreement = MetricInfo(
        "map_to_original",
        higher_is_better=True,
        share=True,
        words="mean average precision against the answers of the original",
        of_original=True,
    )
    reads = "multilabel"
    label_word = "labels"
    has_classes = True
    meaning = (
        "One score (logit) for each label, in the order of the labels; a label is given where it is more than 0, which "
        "is a probability of one half."
    )
    code = "print([label for label, score in zip(labels, next(iter(outputs.values()))[0]) if score > 0])"

    def check_outputs(self, shapes: Shapes) -> None:
        check_vector(self, shapes)

    def loss(self, outputs: Tensors, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy of each label, with its target moved towards 1/2 by the smoothing."""
        smooth = targets * (1 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(only_output(outputs), smooth)

    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """KL divergence of the softened probability of each label, times T² (Hinton et al. 2015, section 2)."""
        student, teacher = only_output(outputs) / temperature, only_output(reference) / temperature
        likely = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, likely)
        return (F.binary_cross_entropy_with_logits(student, likely) - entropy) * temperature**2

    def decode(self, outputs: Arrays) -> np.ndarray:
        """The logits themselves, `[N, labels]`; minus infinity where one is not finite."""
        logits = np.asarray(only_output(outputs), dtype=np.float64)
        return np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, -np.inf)

    def evidence(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The logits of an image, then its targets: `[N, 2 * labels]`."""
        return np.concatenate([predictions, np.asarray(targets, dtype=np.float64)], axis=1)

    def value(self, evidence: np.ndarray) -> float:
        """The mean over labels of the average precision."""
        scores, targets = np.split(evidence, 2, axis=1)
        precisions = [average_precision(scores[:, k], targets[:, k] > 0) for k in range(scores.shape[1])]
        known = [value for value in precisions if value is not None]
        return float(np.mean(known)) if known else 0.0

    def details(self, evidence: np.ndarray, outputs: Sequence[str]) -> dict[str, float]:
        """`f1`: over all labels of all images, where a label is given with a probability of one half or more."""
        scores, targets = np.split(evidence, 2, axis=1)
        given, right = scores >= 0, targets > 0
        both = float((given & right).sum())
        return {"f1": 2 * both / max(1.0, float(given.sum() + right.sum()))}

    def chance(self, targets: np.ndarray) -> float:
        """The mean over labels of the share of images that have each: the average precision of a random order."""
        shares = (np.asarray(targets) > 0).mean(axis=0)
        return float(shares[shares > 0].mean()) if (shares > 0).any() else 0.0

    def by_label(self, evidence: np.ndarray) -> LabelTable:
        """Average precision of each label, and the images that have it."""
        scores, targets = np.split(evidence, 2, axis=1)
        return LabelTable(
            COLUMNS,
            {
                label: (average_precision(scores[:, k], targets[:, k] > 0), float((targets[:, k] > 0).sum()))
                for k, label in enumerate(self.spec.labels)
            },
        )

    def as_targets(self, predictions: np.ndarray) -> np.ndarray:
        """The labels that the network gives with a probability of one half or more."""
        return (predictions >= 0).astype(np.float64)

    def plain(self, predictions: np.ndarray) -> list[list[str]]:
        """The names of the labels that are given."""
        return [[self.spec.labels[k] for k in np.flatnonzero(row >= 0)] for row in predictions]

    def initial_bias(self, targets: Tensor) -> Tensor:
        """The logit of how often each label is there."""
        share = targets.float().mean(dim=0).clamp(1e-3, 1 - 1e-3)
        return torch.logit(share).to(torch.float32)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The area under the precision-recall curve of one label; None where no image has it.

    With images sorted by falling score, AP = (1 / positives) * sum over positives of the precision down to there.
    Images of the same score count as one step, so that the order among them does not matter.

    Args:
        scores: float `[N]`.
        positive: bool `[N]`.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))  # (1/1 + 2/3) / 2
        0.8333333333333333
    """
    total = int(positive.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # the end of each step
    precision, found = hits[last] / (last + 1), np.diff(hits[last], prepend=0)
    return float((precision * found).sum() / total)
