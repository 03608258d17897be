"""Memory layout: channels last (NHWC), in which convolutions run faster, where the network can take it."""

import torch
from torch.fx import Node

from afina.graph.network import Network
from afina.graph.ops import arguments, op_name

# Channels that oneDNN's kernels take at once, at most.
_BLOCK = 16


def fitting_layout(network: Network, device: torch.device, channels_last: bool) -> torch.memory_format:
    """Channels last where `channels_last` is true and the network can be trained in it, else the ordinary layout.

    A `view` that was written for the ordinary layout (`x.view(n, -1)` after a convolution) fails in the other, and a
    convolution over three dimensions has none.

    Args:
        network: The network to train.
        device: Where it is trained.
        channels_last: Whether channels last is to be used where it can be.
    """
    if not channels_last or (device.type == "cpu" and any(_overruns(node) for node in network.graph.nodes)):
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


def _overruns(node: Node) -> bool:
    """Whether the gradient of a convolution's weights may be written past its memory in channels last.

    oneDNN 3.12 (its issue 6035) does that for strided 1x1 convolutions of fewer channels than it takes at once: the
    process dies, or not. It was seen to on processors with AVX2 and without AVX-512.
    """
    if node.op != "call_function" or op_name(node) != "conv2d":
        return False
    a = arguments(node)
    weight = a["weight"]
    while "val" not in weight.meta:  # what simulates integers keeps the shape of what it reads
        weight = weight.args[0]
    channels, *kernel = weight.meta["val"].shape[1:]
    return bool(max(kernel) == 1 and max(a["stride"]) > 1 and channels < _BLOCK)
