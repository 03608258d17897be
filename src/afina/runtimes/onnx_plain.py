"""A network as the program that torch.onnx translates, without the two tracings that take most of an export.

torch.onnx has a network traced to a program, and traces that anew, op by op on symbolic shapes, to break up what ONNX
has no form for. A captured network in inference form has few such ops, and they are rewritten here in the graph as it
is; where something else is left, the general way is taken. The model is the same in both.
"""

import operator
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from afina.errors import Unsupported
from afina.graph.lifted import lifted
from afina.graph.writing import is_read_by_result, owns

if TYPE_CHECKING:
    from afina.graph import Network

_aten = torch.ops.aten


def plain_program(network: "Network") -> ExportedProgram:
    """The network as a program that is not traced, neither here nor by torch.onnx.

    Raises:
        Unsupported: the shapes in it cannot be followed; or, while torch.onnx reads the program, an op has to be broken
            up.
        SpecViolationError: an op writes into its input, and there is no other form of it.
    """
    program = lifted(network, _in_plain_ops)

    def decomposed(table: Container[Any]) -> ExportedProgram:
        left = [node.target for node in program.graph.nodes if node.target in _REWRITES or node.target in table]
        if left:
            raise Unsupported(f"{left[0]} has to be broken up.")
        return program

    # torch.onnx calls this to break ops up. It gets the program as it is, or a refusal: then the general way is taken.
    program.run_decompositions = decomposed
    return program


def _in_plain_ops(graph: Graph) -> None:
    """Rewrite the graph where it is: in-place ops become out-of-place ones, and ops of `_REWRITES` plain ones.

    A plain op is one that ONNX has a form for.
    """
    # In-place ops twice: `relu_` may become `relu` only where nobody else reads what it writes into. That reader may be
    # an op of `_REWRITES` that goes (a dropout), or such an op may stand between the write and its layer.
    for step in (_make_functional, _rewrite, _make_functional):
        for node in list(graph.nodes):
            step(node)


def _make_functional(node: Node) -> None:
    """Let an op give its result instead of writing it, where nobody reads it otherwise: `relu_` becomes `relu`."""
    source = node.args[0] if node.args else None
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable and isinstance(source, Node):
        twin = _functional(node.target)
        if twin is not None and owns(source) and is_read_by_result(node) and _is_one_type(node):
            node.target = twin


def _functional(op: OpOverload) -> OpOverload | None:
    """The op that gives a new tensor in the place of one that writes, where there is one with the same options."""
    name = op._schema.name.removeprefix("aten::")
    twin = getattr(getattr(_aten, name.removesuffix("_"), None), op._overloadname, None) if name.endswith("_") else None
    return twin if twin is not None and _options(twin) == _options(op) else None


def _is_one_type(node: Node) -> bool:
    """Whether nothing that an op reads would change the type of what it gives."""
    dtype = node.meta["val"].dtype
    return all(getattr(read.meta["val"], "dtype", dtype) == dtype for read in node.all_input_nodes)


def _options(op: OpOverload) -> list[str]:
    """The names of an op's arguments behind the first."""
    return [argument.name for argument in op._schema.arguments[1:]]


def _rewrite(node: Node) -> None:
    """Write an op in ops that torch.onnx need not break up, where `_REWRITES` says how."""
    rewrite = _REWRITES.get(node.target)
    if rewrite is not None:
        rewrite(node)


def _pool(node: Node) -> None:
    """Adaptive average pooling as a mean or an average pool, where all areas are of one size (6 pixels to 3, not 4)."""
    source: Any = node.args[0]
    before, after = source.meta["val"].shape[-2:], list(node.args[1])  # type: ignore[arg-type]
    if after == [1, 1]:
        node.target, node.args = _aten.mean.dim, (source, [-1, -2], True)
    elif after == list(before):
        _skip(node)
    elif not any(old % new for old, new in zip(before, after, strict=True)):
        sides = [old // new for old, new in zip(before, after, strict=True)]
        node.target, node.args = _aten.avg_pool2d.default, (source, sides, sides)


def _normalize(node: Node) -> None:
    """Batch norm by its running statistics, as the op that cannot train."""
    x, weight, bias, mean, variance, training, momentum, eps, _ = node.args
    if training or mean is None or variance is None:
        return
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            _aten._native_batch_norm_legit_no_training.default, (x, weight, bias, mean, variance, momentum, eps)
        )
    result = node.meta["val"]
    norm.meta["val"] = (result, result.new_empty(0), result.new_empty(0))
    node.target, node.args = operator.getitem, (norm, 0)


def _skip_dropout(node: Node) -> None:
    """Take out dropout, which does nothing in inference."""
    if not node.args[2]:
        _skip(node)


def _skip(node: Node) -> None:
    """Take out an op that does nothing: its readers read its input. The output of the network is left as it is."""
    if not any(user.op == "output" for user in node.users):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)


def _convert(node: Node) -> None:
    """A conversion to another type, as the op that copies."""
    node.target, node.args, node.kwargs = _aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}


def _subtract(node: Node) -> None:
    """A tensor from a number: `number - x`."""
    if len(node.args) == 2 and not node.kwargs:
        x, number = node.args
        with node.graph.inserting_before(node):
            negative = node.graph.call_function(_aten.neg.default, (x,))
        negative.meta["val"] = x.meta["val"]  # type: ignore[union-attr]
        node.target, node.args = _aten.add.Scalar, (negative, number)


def _squeeze(node: Node) -> None:
    """Several dimensions of one element taken out: one after the other, the last first."""
    source: Any = node.args[0]
    value, dims = source.meta["val"], node.args[1]
    for dim in sorted((dim % value.ndim for dim in dims), reverse=True)[:-1]:  # type: ignore[union-attr]
        with node.graph.inserting_before(node):
            source = node.graph.call_function(_aten.squeeze.dim, (source, dim))
        source.meta["val"] = value = value.squeeze(dim)
    node.target, node.args = _aten.squeeze.dim, (source, min(dim % value.ndim for dim in dims))  # type: ignore[union-attr]


_REWRITES: dict[Any, Callable[[Node], None]] = {
    _aten.adaptive_avg_pool2d.default: _pool,
    _aten.batch_norm.default: _normalize,
    _aten.dropout.default: _skip_dropout,
    _aten.dropout_.default: _skip_dropout,
    _aten.rsub.Scalar: _subtract,
    _aten.squeeze.dims: _squeeze,
    _aten.to.dtype: _convert,
}
