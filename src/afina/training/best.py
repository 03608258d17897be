"""The best network of a training so far, and how long ago it was found."""

import math
from typing import Any

from torch import Tensor

from afina.graph.network import Network
from afina.types import MetricInfo


class Best:
    """Keeps the weights with the best quality; of equals the later ones, which were trained for longer.

    Args:
        metric: Says which way is better.

    Attributes:
        weights: State of the best network; None before there is one.
        stale: Epochs since quality last rose.
    """

    def __init__(self, metric: MetricInfo) -> None:
        self.weights: dict[str, Tensor] | None = None
        self.stale = 0
        self._quality = math.nan
        self._sign = 1 if metric.higher_is_better else -1

    def rank(self, network: Network, quality: float) -> None:
        """Take in the network of one more epoch; a quality that is not finite is worse than any."""
        rises = math.isfinite(quality) and (self.weights is None or self._sign * quality > self._sign * self._quality)
        if rises or quality == self._quality:
            self._quality = quality
            self.weights = {name: t.detach().clone() for name, t in network.module.state_dict().items()}
        self.stale = 0 if rises else self.stale + 1

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` makes it again."""
        return {"weights": self.weights, "quality": self._quality, "stale": self.stale}

    def restore(self, state: dict[str, Any]) -> None:
        """Be as it was when `state` was taken."""
        self.weights, self._quality, self.stale = state["weights"], state["quality"], state["stale"]
