"""How axes run through matrix products, einsum and attention."""

import math
from typing import Any

from torch.fx import Node

from afina.graph.axes.builder import Builder, Dims, NotUnderstood, broadcast
from afina.graph.axes.labels import FIXED, Expr
from afina.graph.ops import arguments, set_argument


def matmul(builder: Builder, node: Node) -> None:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: [..., n, k] @ [..., k, m], leading dimensions broadcast."""
    args = arguments(node)
    right = next(args[name] for name in ("other", "mat2", "vec", "tensor") if name in args)
    builder.set_dims(node, _product(builder, node, args["self"], right))


def added(builder: Builder, node: Node) -> None:
    """`addmm`, `baddbmm`, `addmv`: a matrix product, and something broadcast to it."""
    args = arguments(node)
    left, right = (args["mat1"], args["mat2"]) if "mat1" in args else (args["batch1"], args["batch2"])
    product = (_product(builder, node, left, right), builder.shape(node))
    builder.set_dims(
        node, broadcast(builder, node, [product, (builder.dims(args["self"]), builder.shape(args["self"]))])
    )


def _product(builder: Builder, node: Node, left: Node, right: Node) -> Dims:
    """The dimensions of `left @ right`: the inner ones are united, the rows of `left` and columns of `right` remain."""
    one, two = builder.dims(left), builder.dims(right)
    row: Dims = () if len(one) == 1 else (one[-2],)
    column: Dims = () if len(two) == 1 else (two[-1],)
    inner = two[-1] if len(two) == 1 else two[-2]
    inner = builder.unite(node, one[-1], inner)
    if len(two) > 1:
        builder.mark(right, "hidden", produces=len(two) - 1)
    builder.mark(right, "hidden", consumes=max(len(two) - 2, 0))
    builder.mark(left, "hidden", produces=len(one) - 2 if len(one) > 1 else None, consumes=len(one) - 1)
    lead = (
        broadcast(builder, node, [(one[:-2], builder.shape(left)[:-2]), (two[:-2], builder.shape(right)[:-2])])
        if row or column
        else ()
    )
    if left.op != "get_attr" and right.op != "get_attr":
        builder.tag("heads", *lead)
        builder.tag("head-dim", inner, *column)
    return (*lead, *row, *column)


def einsum(builder: Builder, node: Node) -> None:
    """Each letter is one dimension; what has no place in the output is summed over."""
    args = arguments(node)
    equation, tensors = args["equation"].replace(" ", ""), args["tensors"]
    if "." in equation or "->" not in equation:
        raise NotUnderstood("its equation has an ellipsis or no output")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    expr_of: dict[str, Expr] = {}
    for letters, tensor in zip(terms, tensors, strict=True):
        for letter, expr, size in zip(letters, builder.dims(tensor), builder.shape(tensor), strict=True):
            if letters.count(letter) > 1:
                builder.fix(node, [expr], "its diagonal is taken")
            if size == 1:
                builder.fix(node, [expr], "it must stay one")
            else:
                expr_of[letter] = builder.unite(node, expr_of[letter], expr) if letter in expr_of else expr
    for letters, tensor in zip(terms, tensors, strict=True):
        for d, letter in enumerate(letters):
            alone = sum(letter in other for other in terms) == 1
            if letter not in output:
                builder.mark(tensor, "hidden", consumes=d)
            elif alone:
                builder.mark(tensor, "hidden", produces=d)
    if len(tensors) == 2 and all(tensor.op != "get_attr" for tensor in tensors):
        builder.tag("heads", *(expr_of.get(c, FIXED) for c in output if all(c in term for term in terms)))
        builder.tag("head-dim", *(expr_of.get(c, FIXED) for c in terms[0] if c in terms[1] and c not in output))
    builder.set_dims(node, tuple(expr_of.get(letter, FIXED) for letter in output))


def attention(builder: Builder, node: Node) -> None:
    """`scaled_dot_product_attention`: q [..., L, E], k [..., S, E], v [..., S, V] give [..., L, V].

    The scale that E implies is written out before E shrinks.
    """
    args = arguments(node)
    names = ("query", "key", "value")
    query, key, value = (builder.dims(args[name]) for name in names)
    shapes = [builder.shape(args[name]) for name in names]
    inner = builder.unite(node, query[-1], key[-1])
    builder.fix(node, (key[-2], value[-2]), "attention runs along it")
    heads: list[tuple[Dims, tuple[int, ...]]] = [(query[:-2], shapes[0][:-2])]
    for dims, shape in zip((key, value), shapes[1:], strict=True):
        if args["enable_gqa"] and shape[-3] != shapes[0][-3]:
            shared, _ = builder.labels.split(query[-3], shape[-3], shapes[0][-3] // shape[-3])
            builder.unite(node, shared, dims[-3])
            dims, shape = (*dims[:-3], query[-3], *dims[-2:]), (*shape[:-3], shapes[0][-3], *shape[-2:])
        heads.append((dims[:-2], shape[:-2]))
    if builder.is_tensor(args["attn_mask"]):
        mask, shape = builder.dims(args["attn_mask"]), builder.shape(args["attn_mask"])
        builder.fix(node, mask[-1:], "attention runs along it")
        if len(mask) > 1 and shape[-2] > 1:
            query = (*query[:-2], builder.unite(node, query[-2], mask[-2]), query[-1])
        heads.append((mask[:-2], shape[:-2]))
    lead = broadcast(builder, node, heads)
    builder.tag("heads", *lead)
    builder.tag("head-dim", inner, value[-1])
    builder.set_dims(node, (*lead, query[-2], value[-1]))
    if args["scale"] is None:
        scale: Any = 1.0 / math.sqrt(shapes[0][-1])
        builder.rewrite_on_removal(node, lambda twin, _: set_argument(twin, "scale", scale))


RULES = {
    **dict.fromkeys("mm bmm matmul mv dot".split(), matmul),
    **dict.fromkeys(["addmm", "baddbmm"], added),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
