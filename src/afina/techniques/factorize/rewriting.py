"""Chains written into a graph, in the place of the layers that they stand for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.statistics import Reader
from afina.graph.stored import attribute, put_parameter
from afina.techniques.factorize.forms import FORMS


def write_chain(network: Network, reader: Reader, form: str, factors: Sequence[Sequence[Tensor]]) -> None:
    """Put a chain in the place of a layer, in `network` itself; `refresh_meta` is the caller's.

    The layers of the chain are `NAME.0`, `NAME.1` and so on (see `chain_name`), in the order in which they run; the
    bias goes to the last.

    Args:
        network: Changed.
        reader: The layer.
        form: Name of the form.
        factors: Of each group, in the order of the form.
    """
    like = attribute(network.module, reader.weight)
    stages = _stages(reader, form, factors)
    names = [f"{chain_name(reader)}.{number}.weight" for number in range(len(stages))]
    nodes = [node for node in network.graph.nodes if node.name in reader.nodes]
    for name, (weight, _, _) in zip(names, stages, strict=True):
        put_parameter(network.module, name, weight.to(like).contiguous())
    for node in nodes:
        _replace(network, node, names, stages)
    network.graph.eliminate_dead_code()
    _forget(network, reader.weight)


def chain_name(reader: Reader) -> str:
    """The module that a layer's chain is in: the layer's own, or one beside a weight that is not called `weight`."""
    return reader.name if reader.name != reader.weight else f"{reader.weight.removesuffix('_weight')}_chain"


def _stages(reader: Reader, form: str, factors: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, int, str]]:
    """Of each layer of the chain, in the order in which they run: weight, groups, and its letters of the kernel."""
    found = []
    letters = FORMS[form].factors
    for place in reversed(range(len(letters))):
        own = letters[place]
        weight = torch.cat([_as_weight(own, group[place]) for group in factors])
        by_channel = own in ("rh", "rw")
        groups = len(weight) if by_channel else reader.groups
        spatial = "".join(letter for letter in own if letter in "hw")
        if len(reader.shape) == 2:
            weight = weight.flatten(1)
        elif len(reader.shape) != 4:
            kernel = reader.shape[2:] if spatial else (1,) * len(reader.shape[2:])
            weight = weight.reshape(*weight.shape[:2], *kernel)
        found.append((weight, groups, spatial))
    return found


def _as_weight(letters: str, factor: Tensor) -> Tensor:
    """A factor as the weight `[outputs, inputs of a group, height, width]` of its layer."""
    held = letters.rstrip("hw")
    inputs = factor.shape[1] if len(held) > 1 else 1
    kernel = dict(zip(letters[len(held) :], factor.shape[len(held) :], strict=True))
    return factor.reshape(factor.shape[0], inputs, kernel.get("h", 1), kernel.get("w", 1))


def _replace(network: Network, node: Node, names: Sequence[str], stages: Sequence[tuple[Tensor, int, str]]) -> None:
    a, last = arguments(node), len(stages) - 1
    value: Node = a["input"]
    with network.graph.inserting_before(node):
        for number, (name, (weight, groups, spatial)) in enumerate(zip(names, stages, strict=True)):
            held = network.graph.get_attr(name)
            held.meta["val"] = torch.empty_like(weight, device="meta")
            bias = a["bias"] if number == last else None
            rest = () if op_name(node) == "linear" else _geometry(a, spatial, weight.ndim - 2, groups)
            value = network.graph.call_function(node.target, (value, held, bias, *rest))  # type: ignore[arg-type]
            value.meta = dict(node.meta)
    node.replace_all_uses_with(value)
    network.graph.erase_node(node)


def _geometry(a: dict[str, Any], spatial: str, rank: int, groups: int) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of one layer of the chain: those of the original, along its own kernel."""
    own = {"hw".index(letter) for letter in spatial} if rank == 2 or not spatial else set(range(rank))

    def each(value: Any, else_: int) -> list[int]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        values = values * rank if len(values) == 1 else values
        return [number if dim in own else else_ for dim, number in enumerate(values)]

    padding = a["padding"] if isinstance(a["padding"], str) else each(a["padding"], 0)
    return each(a["stride"], 1), padding, each(a["dilation"], 1), groups


def _forget(network: Network, name: str) -> None:
    """Remove a weight that no node reads any more."""
    if any(node.op == "get_attr" and node.target == name for node in network.graph.nodes):
        return
    owner, _, leaf = name.rpartition(".")
    delattr(network.module.get_submodule(owner), leaf)
