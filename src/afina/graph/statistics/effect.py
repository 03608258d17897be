"""What a change of a network does to its outputs, on one scale for all techniques."""

import gc

import torch
from torch import Tensor

from afina.graph.network import Network

_BATCH = 32
_TINY = 1e-9


class Effect:
    """The outputs of a network on some images, to compare those of changed ones with.

    Args:
        network: The network as it is.
        images: `[N, C, H, W]`.
    """

    def __init__(self, network: Network, images: Tensor) -> None:
        self._images = images
        self._whole = self._outputs(network)
        self._varies = (self._whole - self._whole.mean(0)).square().sum().clamp_min(_TINY)

    def of(self, changed: Network) -> float:
        """Mean squared change of the outputs, as a share of what they vary over the images."""
        # Graphs hold cycles of references: without this, the networks compared before would fill the memory.
        gc.collect()
        return float((self._outputs(changed) - self._whole).square().sum() / self._varies)

    def _outputs(self, network: Network) -> Tensor:
        with network.inference():
            return torch.cat([network(part.to(network.device)) for part in self._images.split(_BATCH)]).double()
