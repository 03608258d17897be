"""A task: classification that is judged by whether the class is among the two most likely ones."""

import numpy as np

from afina.tasks import Classification
from afina.types import MetricInfo


class Top2(Classification):
    """Targets, loss, agreement and predictions are those of classification. Quality is top-2 accuracy."""

    metric = MetricInfo("top2_accuracy", higher_is_better=True)

    def scores(self, outputs, targets):
        """1 where fewer than two logits are above that of the target, else 0."""
        finite = np.isfinite(outputs).all(axis=1)
        of_target = np.take_along_axis(outputs, targets.reshape(-1, 1), axis=1)
        return np.asarray(((outputs > of_target).sum(axis=1) < 2) & finite, dtype=np.float64)
