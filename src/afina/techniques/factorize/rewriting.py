"""Chains written into a graph, in the place of the layers that they stand for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.statistics import Reader
from afina.graph.stored import attribute, set_parameter
from afina.techniques.factorize.forms import FORMS


def write_chain(network: Network, reader: Reader, form: str, factors: Sequence[Sequence[Tensor]]) -> None:
    """Put a chain in the place of a layer, in `network` itself; the caller has to call `refresh_meta` afterwards.

    The layers of the chain are `NAME.0`, `NAME.1` and so on (see `chain_name`), in the order in which they run; the
    bias goes to the last.

    Args:
        network: Changed in place.
        reader: The layer.
        form: The name of the form.
        factors: The factors of each group, in the order of the form.
    """
    like = attribute(network.module, reader.weight)
    stages = _stages(reader, form, factors)
    names = [f"{chain_name(reader)}.{number}.weight" for number in range(len(stages))]
    nodes = [node for node in network.graph.nodes if node.name in reader.nodes]
    for name, (weight, _, _) in zip(names, stages, strict=True):
        set_parameter(network.module, name, weight.to(like).contiguous())
    for node in nodes:
        _replace(network, node, names, stages)
    network.graph.eliminate_dead_code()
    _remove_unread(network, reader.weight)


def chain_name(reader: Reader) -> str:
    """The name of the module that holds a layer's chain: that of the layer, or one beside a weight of another name.

    Example:
        >>> chain_name(Reader("conv.weight", None, (12, 8, 3, 3), ("conv",)))
        'conv'
        >>> chain_name(Reader("attention.in_proj_weight", None, (24, 8), ("linear",)))
        'attention.in_proj_chain'
    """
    return reader.name if reader.name != reader.weight else f"{reader.weight.removesuffix('_weight')}_chain"


def _stages(reader: Reader, form: str, factors: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, int, str]]:
    """The layers of the chain, in the order in which they run: weight, groups, and the letters of the kernel it has.

    Example:
        >>> conv = Reader("conv.weight", None, (12, 8, 3, 3), ("conv",))
        >>> shapes = FORMS["cp"].shapes(conv.shape, (5,))
        >>> for weight, groups, spatial in _stages(conv, "cp", [[torch.zeros(shape) for shape in shapes]]):
        ...     print(tuple(weight.shape), groups, repr(spatial))
        (5, 8, 1, 1) 1 ''
        (5, 1, 3, 1) 5 'h'
        (5, 1, 1, 3) 5 'w'
        (12, 5, 1, 1) 1 ''
    """
    stages = []
    letters_of = FORMS[form].factors
    for place in reversed(range(len(letters_of))):
        letters = letters_of[place]
        weight = torch.cat([_as_weight(letters, group[place]) for group in factors])
        by_channel = letters in ("rh", "rw")
        groups = len(weight) if by_channel else reader.groups
        spatial = "".join(letter for letter in letters if letter in "hw")
        if len(reader.shape) == 2:
            weight = weight.flatten(1)
        elif len(reader.shape) != 4:
            kernel = reader.shape[2:] if spatial else (1,) * len(reader.shape[2:])
            weight = weight.reshape(*weight.shape[:2], *kernel)
        stages.append((weight, groups, spatial))
    return stages


def _as_weight(letters: str, factor: Tensor) -> Tensor:
    """A factor as the weight `[outputs, inputs of a group, height, width]` of its layer."""
    channels = letters.rstrip("hw")
    inputs = factor.shape[1] if len(channels) > 1 else 1
    kernel = dict(zip(letters[len(channels) :], factor.shape[len(channels) :], strict=True))
    return factor.reshape(factor.shape[0], inputs, kernel.get("h", 1), kernel.get("w", 1))


def _replace(network: Network, node: Node, names: Sequence[str], stages: Sequence[tuple[Tensor, int, str]]) -> None:
    """Put the nodes of a chain in the place of one node; the last of them adds its bias."""
    a, last = arguments(node), len(stages) - 1
    value: Node = a["input"]
    with network.graph.inserting_before(node):
        for number, (name, (weight, groups, spatial)) in enumerate(zip(names, stages, strict=True)):
            weight_node = network.graph.get_attr(name)
            weight_node.meta["val"] = torch.empty_like(weight, device="meta")
            bias = a["bias"] if number == last else None
            geometry = () if op_name(node) == "linear" else _geometry(a, spatial, weight.ndim - 2, groups)
            value = network.graph.call_function(node.target, (value, weight_node, bias, *geometry))  # type: ignore[arg-type]
            value.meta = dict(node.meta)
    node.replace_all_uses_with(value)
    network.graph.erase_node(node)


def _geometry(a: dict[str, Any], spatial: str, rank: int, groups: int) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups of one layer of the chain.

    They are those of the original along the dimensions that this layer's kernel has, and 1, 0 and 1 along the others.

    Args:
        a: The arguments of the original's node.
        spatial: The letters of the kernel that this layer has.
        rank: How many dimensions the original's kernel has.
        groups: The groups of this layer.

    Example:
        >>> _geometry({"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1]}, "h", rank=2, groups=1)
        ([2, 1], [1, 0], [1, 1], 1)
    """
    dims = {"hw".index(letter) for letter in spatial} if rank == 2 or not spatial else set(range(rank))

    def each(value: Any, else_: int) -> list[int]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        values = values * rank if len(values) == 1 else values
        return [number if dim in dims else else_ for dim, number in enumerate(values)]

    padding = a["padding"] if isinstance(a["padding"], str) else each(a["padding"], 0)
    return each(a["stride"], 1), padding, each(a["dilation"], 1), groups


def _remove_unread(network: Network, name: str) -> None:
    """Remove a weight that no node reads any more."""
    if any(node.op == "get_attr" and node.target == name for node in network.graph.nodes):
        return
    owner, _, leaf = name.rpartition(".")
    delattr(network.module.get_submodule(owner), leaf)
