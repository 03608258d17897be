"""Exponential moving average of a network: what is judged and returned in place of the last, noisy weights."""

from typing import Any

import torch
from torch import Tensor

from afina.graph.network import Network


class Average:
    """A twin of a network that holds the moving average of its weights and buffers (Polyak & Juditsky 1992).

    At step `t` (from 1) the decay is `min(decay, t / (t + 9))`: a window over about the last tenth of the steps
    until that is longer than the decay's own, so that the initial weights are forgotten at once and a training of
    thirty steps gains like one of thirty thousand. The running statistics of batch norm are averaged with the same
    weights, since they belong to them; counters are copied. The cost is a second copy of the network in memory.

    Args:
        network: The network to follow; it is left as it is.
        decay: Share of the average that a step keeps.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = network.copy().eval()
        self.steps = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Move the average towards the weights that `network` has after a step."""
        self.steps += 1
        weight = 1 - min(self._decay, self.steps / (self.steps + 9))
        followed = network.module.state_dict()
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, average in self.network.module.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(followed[name])
            else:
                average.copy_(followed[name])
        torch._foreach_lerp_(averages, values, weight)

    def state(self) -> dict[str, Any]:
        """Plain data (tensors and numbers), from which `restore` recovers this state."""
        return {"weights": self.network.module.state_dict(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        self.network.module.load_state_dict(state["weights"])
        self.steps = state["steps"]
