"""From a graph to its axes: walk the ops, solve, and gather units that always go with the same weights.

For `fc(conv(x).flatten(1))` with 3 channels of 2 pixels:

1. `Builder` gives each dimension of each weight labels of its own: the outputs of `conv` 0 1 2, its input (the image's
   channels) 3 4 5, the rows of `fc` 6 7, its columns 8 9 10 11 12 13.
2. Each op, in the order of the graph, is given to its rule (`layers`, `elementwise`, `indexing`, `products`, `shapes`).
   `conv` gives a tensor whose channels are 0 1 2; `flatten` gives one whose columns are 0 0 1 1 2 2; `fc` says that
   these are its columns: 0 is 8, 0 is 9, 1 is 10 and so on. The image and the network's output fix what reaches them.
3. `Labels.solve` draws the conclusions: 8 and 9 are in the class of 0, and so on; 6 and 7 are fixed.
4. `grouping` gathers classes that stand in the same weights: {0, 1, 2} is one axis, `conv`, with the members
   `conv.weight` (dimension 0) and `fc.weight` (dimension 1, two positions for each unit).

Without step 2, an axis would have to be guessed from the modules: the columns that `flatten` makes of a channel are
written nowhere but in the graph.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from afina.graph.axes import elementwise, indexing, layers, products, shapes
from afina.graph.axes.builder import Builder, NotUnderstood, RewrittenNumber, Tag
from afina.graph.axes.grouping import group
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
        name: Name of the parameter or buffer, as in the user's model.
        dim: Number of its dimension.
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
    """The axes of a network, as `analyse` gives them.

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

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> axes = analyse(capture(module, InputSpec(8, 8), TaskSpec("classification", ("cat", "dog"))))
        >>> [(axis.name, axis.size, axis.kind) for axis in axes.free]
        [('0', 4, 'channels')]
        >>> [(axis.name, axis.reason) for axis in axes.fixed]
        [('3', "it reaches the network's output")]
    """
    return Analysis(network).axes


class Analysis:
    """The axes of a network with all that surgery needs. It is valid as long as the graph is not rewritten.

    Args:
        network: Any captured network.
        batch: The batch size that shapes are followed with.

    Raises:
        Unsupported: the shapes in the graph depend on the values of the data.
    """

    def __init__(self, network: Network, batch: int = _BATCH) -> None:
        self.graph = network.graph
        self.unknown: dict[str, str] = {}
        shape = (network.traced_batch(batch), *network.input.shape)
        builder = Builder(network.module, fake_values(network.module, shape))
        for node in self.graph.nodes:
            self._visit(builder, node)
        self._builder = builder
        self.rewritten_numbers: list[RewrittenNumber] = builder.rewritten_numbers
        self.solution: Solution = builder.labels.solve()
        # Statistics need one unit at least: of none they are not a number.
        self.needed: list[Expr] = [self.solution.expand(expr) for expr in builder.tags["normalised"]]
        self.stored_dims: dict[str, tuple[Expr, ...]] = {
            name: tuple(self.solution.expand(expr) for expr in dims) for name, dims in builder.stored_dims.items()
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

    def _visit(self, builder: Builder, node: Node) -> None:
        if node.op == "get_attr":
            if node.users:
                builder.set_stored(node)
        elif node.op == "placeholder":
            builder.set_fixed(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                for dims in builder.parts(source):
                    for expr in dims:
                        builder.labels.fix(expr, "it reaches the network's output")
        elif node.target is operator.getitem and isinstance(node.args[1], int):
            parts = builder.parts(node.all_input_nodes[0])
            if node.args[1] < len(parts):
                builder.set_dims(node, parts[node.args[1]])
            else:
                builder.set_fixed(node)
        else:
            self._visit_op(builder, node)

    def _visit_op(self, builder: Builder, node: Node) -> None:
        """Apply the rule for an op; without one, or in a form unknown to the rule, all that the op reads is fixed."""
        inputs = [dims for source in node.all_input_nodes for dims in builder.parts(source)]
        makes = isinstance(node.target, torch._ops.OpOverload) and op_name(node) in shapes.MAKERS
        if not makes and not any(expr for dims in inputs for expr in dims):
            builder.set_fixed(node)
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
            rule(builder, node)
        except NotUnderstood as reason:
            self.unknown[f"{op_name(node)} (node {node.name})"] = str(reason)
            builder.fix(node, [expr for dims in inputs for expr in dims], "it reaches an op that is not understood")
            builder.set_fixed(node)

    def _reason(self, classes: Array) -> str:
        index = int(self.solution.reason[classes[0]])
        return self.solution.reasons[index] if index >= 0 else ""

    @cached_property
    def _tagged(self) -> dict[Tag, NDArray[np.bool_]]:
        """For each tag, whether each class carries it."""
        carries: dict[Tag, NDArray[np.bool_]] = {}
        for tag, exprs in self._builder.tags.items():
            carries[tag] = np.zeros(len(self.solution.root), dtype=np.bool_)
            for array in (array for expr in exprs for array in self.solution.expand(expr)):
                carries[tag][array[array >= 0]] = True
        return carries

    def _kind(self, classes: Array, members: list[Member]) -> Kind:
        for tag in _KIND_TAGS:
            if self._tagged[tag][classes[0]]:
                return tag
        kinds = {self._builder.producers.get((m.name, m.dim)) for m in members}
        return "channels" if "channels" in kinds else "hidden"

    def _groups(self) -> list[tuple[Array, list[Member]]]:
        """The classes of each axis, fixed ones too, with the dimensions of weights that they stand in."""
        slots = [
            (name, d, array) for name, dims in self.stored_dims.items() for d, expr in enumerate(dims) for array in expr
        ]
        kinds = (self.solution.family, self.solution.reason, *(self._tagged[tag] for tag in get_args(Tag)))
        return [
            (
                gathered.classes,
                [Member(*slots[slot][:2], units, self._role(*slots[slot][:2])) for slot, units in gathered.places],
            )
            for gathered in group([array for _, _, array in slots], kinds)
        ]

    def _role(self, name: str, dim: int) -> Role:
        if (name, dim) in self._builder.producers:
            return "producer"
        return "consumer" if (name, dim) in self._builder.consumers else "other"


def _axis_name(members: list[Member]) -> str:
    names = _layer_names(members, "producer") or _layer_names(members, "other") or _layer_names(members, "consumer")
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _layer_names(members: "list[Member] | tuple[Member, ...]", role: Role) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m.name.rpartition(".")[0] or m.name for m in members if m.role == role))


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name} #{taken[name]}"
