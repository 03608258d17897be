"""From a graph to its axes: walk the ops, solve, and gather units that always go with the same weights."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from afina.graph.axes import elementwise, indexing, layers, products, shapes
from afina.graph.axes.builder import Builder, NotUnderstood, Respelling, Tag
from afina.graph.axes.labels import Array, Expr, Solution
from afina.graph.network import Network
from afina.graph.ops import op_name
from afina.graph.propagate import fake_values

Role = Literal["producer", "consumer", "other"]
Kind = Literal["channels", "hidden", "heads", "head-dim", "embedding", "groups"]

# A prime, so that a view never takes the batch for something else.
_BATCH = 13
# In the order of what an axis is called where it is several of them.
_KIND_TAGS: tuple[Literal["heads", "head-dim", "groups", "embedding"], ...] = (
    "heads",
    "head-dim",
    "groups",
    "embedding",
)
_RULES: dict[str, Callable[[Builder, Node], None]] = {
    **elementwise.RULES,
    **indexing.RULES,
    **layers.RULES,
    **products.RULES,
    **shapes.RULES,
}


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of a parameter or buffer that shrinks with an axis.

    Attributes:
        name: Of the parameter or buffer, as in the user's model.
        dim: Which dimension of it.
        units: For each position in that dimension, the number of the unit that it goes with, or -1.
        role: `producer` where a layer writes its output, `consumer` where it sums its input, else `other`.
    """

    name: str
    dim: int
    units: NDArray[np.int64]
    role: Role


@dataclass(frozen=True)
class Axis:
    """Units that can be removed one by one, all from the same weights. Axes of one graph differ in `name`.

    Where the members of two axes cover the same positions (groups, and channels of a group), a position stays
    when both of its units stay.

    Attributes:
        name: The layers that produce it, such as `layer1.0.conv1`.
        size: How many units it has.
        members: What shrinks with it.
        reason: Why it is fixed; empty where it is free.
        kind: `heads` and `head-dim` of attention; `groups`, whole groups of a grouped convolution or group norm;
            `embedding`, what a layer, RMS or group norm takes statistics over; else `channels` where a convolution
            makes it, and `hidden` where only linear layers do.
        normalised: Statistics are taken over it (by such a norm, a mean or the like, a standardised weight): removing
            a unit is taking them over the units that are left, and not the same as zeroing what reads the unit.
    """

    name: str
    size: int
    members: tuple[Member, ...] = field(compare=False, repr=False)
    reason: str = field(default="", compare=False)
    kind: Kind = field(default="channels", compare=False)
    normalised: bool = field(default=False, compare=False)

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers that produce it, by name."""
        return _layer_names(self.members, "producer")

    @property
    def consumers(self) -> tuple[str, ...]:
        """The layers that sum over it, by name."""
        return _layer_names(self.members, "consumer")

    def crosses(self, other: "Axis") -> bool:
        """Whether some position of a weight goes with a unit of either axis."""
        mine = {(m.name, m.dim): m.units for m in self.members}
        return any(
            bool(((mine[m.name, m.dim] >= 0) & (m.units >= 0)).any()) for m in other.members if (m.name, m.dim) in mine
        )


@dataclass(frozen=True)
class Axes:
    """What `analyse` found in a network.

    Attributes:
        free: Axes whose units can be removed.
        fixed: Axes that layers produce and that must stay, each with its `reason`.
        unknown: Ops that were not understood, described, with why; the axes that reach them are fixed.
    """

    free: tuple[Axis, ...]
    fixed: tuple[Axis, ...]
    unknown: dict[str, str]


def analyse(network: Network) -> Axes:
    """The axes of a network, from its graph alone. Cost is linear in the size of the graph.

    An op that is not understood fixes the axes that reach it and is listed; it is never an error.

    Raises:
        Unsupported: the shapes in the graph depend on the values of the data.
    """
    return Analysis(network).axes


class Analysis:
    """The axes of a network with all that surgery needs to know. It is of use as long as the graph is not rewritten.

    Args:
        network: Any captured network.
        batch: The batch size that shapes are followed with.

    Raises:
        Unsupported: the shapes in the graph depend on the values of the data.
    """

    def __init__(self, network: Network, batch: int = _BATCH) -> None:
        self.graph = network.graph
        self.unknown: dict[str, str] = {}
        builder = Builder(network.module, fake_values(network.module, (batch, *network.input.shape)))
        for node in self.graph.nodes:
            self._visit(builder, node)
        self._builder = builder
        self.respellings: list[Respelling] = builder.respellings
        self.solution: Solution = builder.labels.solve()
        # Statistics need one unit at least: of none they are not a number.
        self.needed: list[Expr] = [self.solution.expand(expr) for expr in builder.tags["normalised"]]
        self.held: dict[str, tuple[Expr, ...]] = {
            name: tuple(self.solution.expand(expr) for expr in dims) for name, dims in builder.held.items()
        }
        self.classes: dict[str, Array] = {}

    @cached_property
    def axes(self) -> Axes:
        """The axes; also fills `classes`, the class of each unit of each axis by the axis's name."""
        free: list[Axis] = []
        fixed: list[Axis] = []
        taken: dict[str, int] = {}
        for classes, members in self._groups():
            reason = self._reason(classes)
            if reason and not any(m.role == "producer" for m in members):
                continue
            name = _unique(_axis_name(members), taken)
            normalised = bool(self._tagged["normalised"][classes[0]])
            axis = Axis(name, len(classes), tuple(members), reason, self._kind(classes, members), normalised)
            (fixed if reason else free).append(axis)
            self.classes[name] = classes
        return Axes(tuple(free), tuple(fixed), self.unknown)

    def dims(self, node: Node) -> list[tuple[Expr, ...]]:
        """For each tensor that a node gives for a batch, its dimensions in atomic classes."""
        return [tuple(self.solution.expand(expr) for expr in dims) for dims in self._builder.parts(node)]

    def _visit(self, g: Builder, node: Node) -> None:
        if node.op == "get_attr":
            if node.users:
                g.put_attribute(node)
        elif node.op == "placeholder":
            g.put_fixed(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                for dims in g.parts(source):
                    for expr in dims:
                        g.labels.fix(expr, "reaches the network's output")
        elif node.target is operator.getitem and isinstance(node.args[1], int):
            parts = g.parts(node.all_input_nodes[0])
            if node.args[1] < len(parts):
                g.put(node, parts[node.args[1]])
            else:
                g.put_fixed(node)
        else:
            self._visit_op(g, node)

    def _visit_op(self, g: Builder, node: Node) -> None:
        inputs = [dims for source in node.all_input_nodes for dims in g.parts(source)]
        makes = isinstance(node.target, torch._ops.OpOverload) and op_name(node) in shapes.MAKERS
        if not makes and not any(expr for dims in inputs for expr in dims):
            g.put_fixed(node)
            return
        rule: Callable[[Builder, Node], None] | None = None
        if makes:
            rule = shapes.MAKERS[op_name(node)]
        elif elementwise.is_pointwise(node):
            rule = elementwise.pointwise
        elif isinstance(node.target, torch._ops.OpOverload):
            rule = _RULES.get(op_name(node))
        try:
            if rule is None:
                raise NotUnderstood("there is no rule for this op")
            rule(g, node)
        except NotUnderstood as reason:
            self.unknown[f"{op_name(node)} (node {node.name})"] = str(reason)
            g.fix(node, [expr for dims in inputs for expr in dims], "reaches an op that is not understood")
            g.put_fixed(node)

    def _reason(self, classes: Array) -> str:
        index = int(self.solution.reason[classes[0]])
        return self.solution.reasons[index] if index >= 0 else ""

    @cached_property
    def _tagged(self) -> dict[Tag, NDArray[np.bool_]]:
        """For each tag, whether each class carries it."""
        found: dict[Tag, NDArray[np.bool_]] = {}
        for tag, exprs in self._builder.tags.items():
            found[tag] = np.zeros(len(self.solution.root), dtype=np.bool_)
            for array in (array for expr in exprs for array in self.solution.expand(expr)):
                found[tag][array[array >= 0]] = True
        return found

    def _kind(self, classes: Array, members: list[Member]) -> Kind:
        for tag in _KIND_TAGS:
            if self._tagged[tag][classes[0]]:
                return tag
        made = {self._builder.producers.get((m.name, m.dim)) for m in members}
        return "channels" if "channels" in made else "hidden"

    def _groups(self) -> list[tuple[Array, list[Member]]]:
        """Classes gathered into axes: same family, tags, and as often in the same dimensions of the same weights."""
        slots = [(n, d, a) for n, dims in self.held.items() for d, expr in enumerate(dims) for a in expr]
        count = len(self.solution.root)
        signature = np.zeros(count, dtype=np.uint64)
        marks = np.random.default_rng(0).integers(1, 2**63, size=len(slots), dtype=np.uint64)
        for mark, (_, _, array) in zip(marks, slots, strict=True):
            np.add.at(signature, array[array >= 0], mark)
        present = np.flatnonzero(signature)
        keys = np.stack(
            (
                self.solution.family[present].astype(np.uint64),
                signature[present],
                self.solution.reason[present].astype(np.uint64),
                *(self._tagged[tag][present].astype(np.uint64) for tag in get_args(Tag)),
            )
        )
        _, axis_of_present = np.unique(keys, axis=1, return_inverse=True)
        axis_of_present = _by_first(axis_of_present.reshape(-1))
        axis = np.full(count, -1, dtype=np.int64)
        axis[present] = axis_of_present
        unit = np.full(count, -1, dtype=np.int64)
        order = np.argsort(axis_of_present, kind="stable")
        sizes = np.bincount(axis_of_present) if present.size else np.empty(0, dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1])) if present.size else sizes
        unit[present[order]] = np.arange(len(present)) - np.repeat(starts, sizes)
        members: list[list[Member]] = [[] for _ in sizes]
        for name, dim, array in slots:
            here = np.where(array >= 0, axis[array], -1)
            for number in np.unique(here[here >= 0]):
                units = np.where(here == number, unit[array], -1)
                members[number].append(Member(name, dim, units, self._role(name, dim)))
        return [(present[order[s : s + n]], m) for s, n, m in zip(starts, sizes, members, strict=True)]

    def _role(self, name: str, dim: int) -> Role:
        if (name, dim) in self._builder.producers:
            return "producer"
        return "consumer" if (name, dim) in self._builder.consumers else "other"


def _by_first(groups: NDArray[Any]) -> Array:
    """Group numbers in the order in which the groups appear."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[numbers.reshape(-1)]


def _axis_name(members: list[Member]) -> str:
    names = _layer_names(members, "producer") or _layer_names(members, "other") or _layer_names(members, "consumer")
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _layer_names(members: "list[Member] | tuple[Member, ...]", role: Role) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m.name.rpartition(".")[0] or m.name for m in members if m.role == role))


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name} #{taken[name]}"
