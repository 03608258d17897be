"""A task: classification that is judged by whether the class is among the two most likely ones."""

import numpy as np

from afina.tasks import Classification
from afina.types import MetricInfo


class Top2(Classification):
    """Targets, loss and distance are those of classification. Quality is top-2 accuracy."""

    metric = MetricInfo("top2_accuracy", higher_is_better=True, share=True, mean_of_images=True)
    agreement = MetricInfo("top2_agreement", higher_is_better=True, share=True, mean_of_images=True)

    def decode(self, outputs):
        """The two classes with the largest logits, int64 `[N, 2]`, the larger first; -1 where one is not finite."""
        (logits,) = outputs.values()
        finite = np.isfinite(logits).all(axis=1, keepdims=True)
        return np.where(finite, np.argsort(-logits, axis=1)[:, :2], -1)

    def evidence(self, predictions, targets):
        """1 where the target is one of the two, else 0."""
        hits = (predictions == targets.reshape(-1, 1)).any(axis=1) & (predictions >= 0).all(axis=1)
        return hits.astype(np.float64)[:, None]

    def as_targets(self, predictions):
        """The most likely class."""
        return predictions[:, 0]

    def plain(self, predictions):
        """The names of the two classes."""
        return [[self.spec.labels[i] for i in row if i >= 0] for row in predictions]
