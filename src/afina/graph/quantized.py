"""Reads off the graph of a network whether it computes on quantized values, and in how many bits."""

import math

import torch

from afina.graph.network import Network

# The quantized networks of this library round with this one op; its arguments 3 and 4 are the least and largest code.
ROUNDING_OP = "quantized_decomposed.quantize_per_tensor.default"
_LEAST_CODE, _LARGEST_CODE = 3, 4


def is_quantized(network: Network) -> bool:
    """Whether the network computes on quantized values.

    Example:
        >>> import torch
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> is_quantized(capture(module, spec, TaskSpec("classification", ("cat", "dog"))))
        False
    """
    return any(str(node.target).startswith("quantized_decomposed.") for node in network.graph.nodes)


def activation_bits(network: Network) -> set[int]:
    """The numbers of bits that activations of the network are rounded to; empty where it computes in float.

    Codes from 0 to 255, or from -128 to 127, are 256 values: 8 bits.
    """
    rounding = (node for node in network.graph.nodes if str(node.target) == ROUNDING_OP)
    return {math.ceil(math.log2(node.args[_LARGEST_CODE] - node.args[_LEAST_CODE] + 1)) for node in rounding}


def holds_bf16(network: Network) -> bool:
    """Whether weights of the network are stored in bfloat16: a runtime may then compute in it."""
    return any(tensor.dtype == torch.bfloat16 for tensor in network.module.state_dict().values())
