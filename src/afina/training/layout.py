"""Memory layout: channels last (NHWC), in which convolutions run faster, where the network can take it."""

import torch

from afina.graph.network import Network


def fitting_layout(network: Network, channels_last: bool) -> torch.memory_format:
    """Channels last if that is asked for and the network runs in it, else the ordinary layout.

    A `view` that was written for the ordinary layout (`x.view(n, -1)` after a convolution) fails in the other, and a
    convolution over three dimensions has none.
    """
    if not channels_last:
        return torch.contiguous_format
    twin = network.copy()
    try:
        twin.module.to(memory_format=torch.channels_last)
        with twin.inference():
            twin(twin.example().to(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def place(network: Network, device: torch.device, layout: torch.memory_format) -> Network:
    """Move the network's weights to the device and layout, in place; returns it."""
    network.module.to(device=device)
    network.module.to(memory_format=layout)
    return network
