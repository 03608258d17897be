"""Residual blocks: branches of an addition that can be left out whole, so that the shortcut alone goes on."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from afina.errors import InputError, did_you_mean
from afina.graph.network import Network
from afina.graph.propagate import refresh_meta

_ADDITIONS = frozenset([torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor])


@dataclass(frozen=True)
class Block:
    """A branch that only an addition reads.

    Attributes:
        name: What its layers are called together, such as `layer1.0`.
        layers: The names of its weights.
        addition: Name of the node that adds it to its shortcut.
        shortcut: Name of the node that stays.
        branch: Names of the nodes that go with it, in the order of the graph.
    """

    name: str
    layers: tuple[str, ...]
    addition: str
    shortcut: str
    branch: tuple[str, ...]


def find_blocks(network: Network) -> dict[str, Block]:
    """The residual blocks whose removal the graph allows, by name, in the order of the graph.

    A branch can go when it starts from its shortcut, which holds no weights beside it, has the same shape, and nothing
    else reads what the branch computes on the way.
    """
    blocks: dict[str, Block] = {}
    for node in network.graph.nodes:
        if node.target not in _ADDITIONS or node.kwargs.get("alpha", 1) != 1:
            continue
        sides = [side for side in node.args[:2] if isinstance(side, Node)]
        if len(sides) != 2:
            continue
        for shortcut, branch in (sides, sides[::-1]):
            inside = _branch(branch, shortcut, node)
            layers = tuple(str(n.target) for n in inside if n.op == "get_attr")
            if layers and _same_shape(shortcut, node):
                name = _name(layers)
                twins = sum(known.partition(" #")[0] == name for known in blocks)
                name = f"{name} #{twins + 1}" if twins else name
                order = tuple(n.name for n in network.graph.nodes if n in inside)
                blocks[name] = Block(name, layers, node.name, shortcut.name, order)
                break
    return blocks


def remove_blocks(network: Network, names: Iterable[str]) -> Network:
    """A new network without some of its residual blocks; the network itself is left as it was.

    Raises:
        InputError: there is no such block.
    """
    twin, blocks = network.copy(), find_blocks(network)
    nodes = {node.name: node for node in twin.graph.nodes}
    for name in names:
        if name not in blocks:
            raise InputError(f"There is no residual block {name!r} that can go.", fix=did_you_mean(name, blocks))
        addition, shortcut = nodes[blocks[name].addition], nodes[blocks[name].shortcut]
        # The shortcut may itself be an addition whose block went before.
        addition.replace_all_uses_with(shortcut)
        nodes = {other: shortcut if node is addition else node for other, node in nodes.items()}
        for gone in (addition, *(nodes[inner] for inner in reversed(blocks[name].branch))):
            twin.graph.erase_node(gone)
    _drop_unused(twin)
    twin.module.recompile()
    refresh_meta(twin.module)
    return twin


def _branch(end: Node, start: Node, addition: Node) -> list[Node]:
    """The nodes between `start` and `end`, with the weights that they read; none where anything else reads them.

    For `add(conv2(relu(conv1(x))), x)` the walk goes back from `conv2`, the end: it takes `conv2` with its weight,
    `relu`, `conv1` with its weight, and reaches `x`, the start. A node is taken when all its readers are taken: if
    another head read `relu` too, the block could not go, because that head would lose its input.
    """
    inside: list[Node] = []
    waiting, seen = [end], {start, addition}
    reaches = False
    while waiting:
        node = waiting.pop()
        if node is start:
            reaches = True
            continue
        if node in seen:
            continue
        if node.op == "placeholder" or any(user not in seen and user not in inside for user in node.users):
            return []
        seen.add(node)
        inside.append(node)
        for source in node.all_input_nodes:
            if source is start:
                reaches = True
            elif not _is_number(source) and all(user in seen for user in source.users):
                waiting.append(source)
    # What is read inside and never entered has readers elsewhere: the branch is not closed.
    closed = all(source in seen or _is_number(source) for node in inside for source in node.all_input_nodes)
    changed = any(_in_place(node) and start in node.all_input_nodes[:1] for node in inside)
    return inside if reaches and closed and not changed else []


def _is_number(node: Node) -> bool:
    """A size that was read off somewhere: it may be shared with the rest of the graph."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _in_place(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _same_shape(shortcut: Node, addition: Node) -> bool:
    one, two = shortcut.meta.get("val"), addition.meta.get("val")
    return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and str(one.shape) == str(two.shape)


def _name(layers: tuple[str, ...]) -> str:
    """The part that the names of all layers begin with."""
    owners = [layer.rpartition(".")[0] or layer for layer in layers]
    parts = zip(*(owner.split(".") for owner in owners), strict=False)
    common = list(itertools.takewhile(lambda names: len(set(names)) == 1, parts))
    return ".".join(names[0] for names in common) or owners[-1]


def _drop_unused(network: Network) -> None:
    """Take the weights that nothing reads any more out of the module."""
    used = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    for owner_name, owner in network.module.named_modules():
        for store in (owner._parameters, owner._buffers):
            for key in [key for key in store if (f"{owner_name}.{key}" if owner_name else key) not in used]:
                del store[key]
