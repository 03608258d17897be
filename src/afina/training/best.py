"""The best network of a training so far, and the epochs since quality last rose."""

import math
from typing import Any

from torch import Tensor

from afina.graph.network import Network
from afina.types import MetricInfo


class Best:
    """Keeps the weights with the best quality; of equals the later ones, which were trained for longer.

    A plateau is common at the end of a training (accuracy on a few hundred images takes few values), and there the
    later weights have seen more; but an equal quality is no rise, so that early stopping still counts it as stale.

    Args:
        metric: The metric of the qualities, with the direction that is better.

    Attributes:
        weights: State of the best network; None before there is one.
        stale: Epochs since quality last rose.

    Example: qualities 0.5, 0.7, 0.7, 0.6 in four epochs keep the weights of the third, and leave `stale` at 2.
    """

    def __init__(self, metric: MetricInfo) -> None:
        self.weights: dict[str, Tensor] | None = None
        self.stale = 0
        self._quality = math.nan
        self._sign = 1 if metric.higher_is_better else -1

    def rank(self, network: Network, quality: float) -> None:
        """Compare the network of one more epoch with the best; a quality that is not finite is worse than any."""
        rises = math.isfinite(quality) and (self.weights is None or self._sign * quality > self._sign * self._quality)
        if rises or quality == self._quality:
            self._quality = quality
            self.weights = {name: t.detach().clone() for name, t in network.module.state_dict().items()}
        self.stale = 0 if rises else self.stale + 1

    def state(self) -> dict[str, Any]:
        """Plain data (tensors and numbers), from which `restore` recovers this state."""
        return {"weights": self.weights, "quality": self._quality, "stale": self.stale}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        self.weights, self._quality, self.stale = state["weights"], state["quality"], state["stale"]
