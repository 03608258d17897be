"""Finds where numbers stop being finite: in the first layer of a forward pass, else in the first gradient backwards."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.graph.cost import float_name, layer_of
from afina.graph.network import Network


def find_overflow(
    network: Network, images: Tensor, autocast: AbstractContextManager[Any], backward: Callable[[], None]
) -> str:
    """A sentence that names the layer or the gradient that overflowed first; empty where all is finite.

    Runs the network once more, in the mode that it is in: the caller puts running statistics back.

    Args:
        network: The network of the step that failed.
        images: The images `[N, C, H, W]` of that step.
        autocast: A context that gives the precision of that step.
        backward: Gives each parameter its gradient anew: clipping spreads one that is not a number to all.
    """
    try:
        with torch.no_grad(), autocast:
            for part in network.parts(images):
                _Finite(network).run(part)
    except _Overflow as overflow:
        return overflow.sentence
    backward()
    return _gradient(network)


class _Overflow(Exception):
    """Stops the run at the first value that is not finite; torch adds to an exception's own text on its way."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class _Finite(Interpreter):
    """Runs a graph up to the first node that gives a value that is not finite."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.module)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "output" or _is_finite(value):
            return value
        if n.op == "placeholder":
            raise _Overflow("The images hold values that are not finite.")
        if n.op == "get_attr":
            raise _Overflow(f"{n.target} holds values that are not finite.")
        read = (self.env[source] for source in n.all_input_nodes if source.op != "get_attr")
        reach = max((float(v.abs().amax()) for v in read if _is_floating(v) and v.numel()), default=0.0)
        raise _Overflow(
            f"{layer_of(n)} overflows first: in {float_name(value.dtype)} it gives values that are not finite, for "
            f"inputs of at most {reach:.3g}."
        )


def _gradient(network: Network) -> str:
    """The parameter nearest to the output whose gradient is not finite: a backward pass comes to that one first."""
    parameters = dict(network.module.named_parameters(remove_duplicate=False))
    for node in reversed(network.graph.nodes):
        for source in node.all_input_nodes:
            gradient = parameters[name].grad if (name := str(source.target)) in parameters else None
            if gradient is not None and not _is_finite(gradient):
                return f"The forward pass is finite; backwards, the gradient of {name} is the first that is not."
    return ""


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_finite(value: Any) -> bool:
    return not _is_floating(value) or bool(torch.isfinite(value).all())
