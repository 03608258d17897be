"""`Builder`: the part of a graph that the rule for an op reads, and the conclusions that rules write down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from afina.graph.axes.labels import FIXED, Expr, Labels
from afina.graph.ops import describe, op_name
from afina.graph.stored import attribute

Dims = tuple[Expr, ...]
# One tensor's dimensions, or one entry for each tensor of an op that gives several.
NodeDims = Dims | list[Dims]
Mask = NDArray[np.bool_]
# Properties of a dimension that an op makes known, from which an axis gets its kind.
Tag = Literal["normalised", "embedding", "heads", "head-dim", "groups"]
Made = Literal["channels", "hidden"]

# How many ops a parameter may pass through before it is the weight of a layer, and ops that it may not pass through.
_DEPTH = 10
_LAYERS = frozenset("linear matmul conv1d conv2d conv3d".split())


class NotUnderstood(Exception):
    """A rule meets a form of its op that it does not know; the axes that reach the op are then fixed."""


@dataclass(frozen=True)
class RemainingPositions:
    """The positions that surgery leaves: `mask(expr)`, `[positions]` of a dimension, is True at those."""

    mask: Callable[[Expr], Mask]

    def count(self, expr: Expr) -> int:
        """How many positions of a dimension remain."""
        return int(self.mask(expr).sum())


@dataclass(frozen=True)
class RewrittenNumber:
    """A number spelled out in the graph that changes with the axes.

    Attributes:
        node: The node that spells the number out.
        write: `write(twin, remaining)` puts the number right in `twin`: in `node`, or in its copy in a copied graph.
    """

    node: Node
    write: Callable[[Node, RemainingPositions], None]


class Builder:
    """The expressions (`labels.Expr`) of the dimensions of all tensors that rules have visited so far.

    Args:
        module: The graph.
        values: Fake tensors of all nodes (`fake_values`).

    Attributes:
        labels: The union-find in which dimensions are united, split and fixed.
        rewritten_numbers: The numbers in the graph that surgery must rewrite.
        producers: `(weight, dimension)` in which a layer writes its output, with what kind of units it makes.
        consumers: `(weight, dimension)` over which a layer sums its input.
        tags: For each tag, the dimensions that carry it.
        stored_dims: For each parameter, buffer or constant that the graph reads, the expressions of its dimensions.
    """

    def __init__(self, module: GraphModule, values: dict[Node, Any]) -> None:
        self.module, self.labels = module, Labels()
        self.rewritten_numbers: list[RewrittenNumber] = []
        self.producers: dict[tuple[str, int], Made] = {}
        self.consumers: set[tuple[str, int]] = set()
        self.tags: dict[Tag, list[Expr]] = {tag: [] for tag in get_args(Tag)}
        self.stored_dims: dict[str, Dims] = {}
        self._values = values
        self._dims: dict[Node, NodeDims] = {}
        self._names: dict[int, str] = {}
        self._constants: dict[Node, Tensor | None] = {}

    def shape(self, node: Node) -> tuple[int, ...]:
        """The node's shape; raises `NotUnderstood` where it does not give one tensor."""
        value = self._values.get(node)
        if not isinstance(value, Tensor):
            raise NotUnderstood(f"{node.name} is not a tensor")
        return tuple(int(size) for size in value.shape)

    def shapes(self, node: Node) -> list[tuple[int, ...]] | None:
        """The shapes of the tensors that a node gives, or None where it gives no tensor."""
        value = self._values.get(node)
        if isinstance(value, Tensor):
            return [tuple(value.shape)]
        if isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
            return [tuple(v.shape) for v in value]
        return None

    def dtype(self, node: Node) -> torch.dtype | None:
        """The number type of the one tensor that the node gives; None where it does not give one."""
        return getattr(self._values.get(node), "dtype", None)

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, Node) and isinstance(self._values.get(value), Tensor)

    def is_multiple(self, node: Node) -> bool:
        """Whether the node gives a list of tensors."""
        return not isinstance(self._values.get(node), Tensor)

    def dims(self, node: Node) -> Dims:
        """The expressions of the one tensor that `node` gives."""
        dims = self._dims.get(node)
        if not isinstance(dims, tuple):
            raise NotUnderstood(f"{node.name} is not one tensor")
        return dims

    def parts(self, node: Node) -> list[Dims]:
        """The expressions of the tensors that `node` gives."""
        dims = self._dims.get(node, [])
        return [dims] if isinstance(dims, tuple) else dims

    def set_dims(self, node: Node, dims: NodeDims) -> None:
        """Note the expressions of the tensors that `node` gives; raises `NotUnderstood` where their shapes differ."""
        shapes = self.shapes(node)
        parts = [dims] if isinstance(dims, tuple) else dims
        if shapes is None or len(shapes) != len(parts):
            raise NotUnderstood("it gives another number of tensors than expected")
        for part, shape in zip(parts, shapes, strict=True):
            sizes = tuple(len(expr[0]) if expr else size for expr, size in zip(part, shape, strict=False))
            if len(part) != len(shape) or sizes != tuple(shape):
                raise NotUnderstood(f"its shape is {tuple(shape)}, which was not expected")
        self._dims[node] = dims

    def set_fixed(self, node: Node) -> None:
        """Note that no dimension of what `node` gives ever changes."""
        shapes = self.shapes(node)
        if shapes is not None:
            fixed = [(FIXED,) * len(shape) for shape in shapes]
            self._dims[node] = fixed if self.is_multiple(node) else fixed[0]

    def set_stored(self, node: Node) -> None:
        """A parameter, buffer or constant: each dimension gets labels of its own, the same for all its names."""
        target = str(node.target)
        value = attribute(self.module, target)
        if not isinstance(value, Tensor):
            return
        name = self._names.setdefault(id(value), target)
        if name not in self.stored_dims:
            self.stored_dims[name] = tuple(self.labels.fresh(size) if size > 1 else FIXED for size in value.shape)
        self._dims[node] = self.stored_dims[name]

    def unite(self, node: Node, a: Expr, b: Expr) -> Expr:
        """Note that the two dimensions are the same one, because of `node`; gives its expression."""
        return self.labels.unite(a, b, f"meets an axis that is fixed, at {describe(node)}")

    def fix(self, node: Node, exprs: Sequence[Expr], reason: str) -> None:
        """Note that these dimensions must stay, because of `node`."""
        for expr in exprs:
            self.labels.fix(expr, f"{reason} ({describe(node)})")

    def tag(self, tag: Tag, *exprs: Expr) -> None:
        """Mark these dimensions with a tag, from which axes get their `kind`."""
        self.tags[tag] += [expr for expr in exprs if expr]

    def mark(self, weight: Node, made: Made, *, produces: int | None = None, consumes: int | None = None) -> None:
        """Note the dimension along which `weight` makes a layer's units, and the one over which it sums its input."""
        shape, source_node = self.shapes(weight), weight
        for _ in range(_DEPTH):  # through what standardises or scales a weight
            sources = [source for source in source_node.all_input_nodes if self.is_tensor(source)]
            if source_node.op == "get_attr" or not sources or op_name(source_node) in _LAYERS:
                break
            source_node = sources[0]
        if source_node.op != "get_attr" or self.shapes(source_node) != shape:
            return
        name = self._names.get(id(attribute(self.module, str(source_node.target))), str(source_node.target))
        if produces is not None:
            self.producers[name, produces] = made
        if consumes is not None:
            self.consumers.add((name, consumes))

    def constant(self, node: Node) -> Tensor | None:
        """The value of a node that buffers and numbers alone decide; None where an image or a parameter does."""
        if node not in self._constants:
            self._constants[node] = self._compute(node)
        return self._constants[node]

    def _compute(self, node: Node) -> Tensor | None:
        if node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            return value if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        if node.target._schema.is_mutable or any(self.constant(source) is None for source in node.all_input_nodes):
            return None
        args, kwargs = map_arg(node.args, self._constants.get), map_arg(node.kwargs, self._constants.get)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        return value if isinstance(value, Tensor) else None

    def rewrite_on_removal(self, node: Node, write: Callable[[Node, RemainingPositions], None]) -> None:
        """Let surgery call `write(twin, remaining)` on the copy of the node, `twin`.

        The other nodes that `write` needs are those that the twin has as arguments: never ones of this graph.
        """
        self.rewritten_numbers.append(RewrittenNumber(node, write))


def broadcast(builder: Builder, node: Node, tensors: Sequence[tuple[Dims, tuple[int, ...]]]) -> Dims:
    """The dimensions of what broadcasts together: equal ones are united, size 1 gives way and must stay 1."""
    rank = max(len(shape) for _, shape in tensors)
    result: list[Expr] = []
    for back in range(rank, 0, -1):
        met = [(d[-back], shape[-back]) for d, shape in tensors if back <= len(shape)]
        wide = [expr for expr, size in met if size != 1]
        builder.fix(node, [expr for expr, size in met if size == 1 and wide], "it is broadcast")
        same = wide or [expr for expr, _ in met]
        expr = same[0]
        for other in same[1:]:
            expr = builder.unite(node, expr, other)
        result.append(expr)
    return tuple(result)
