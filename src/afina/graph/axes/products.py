"""How axes run through matrix products, einsum and attention."""

import math
from typing import Any

from torch.fx import Node

from afina.graph.axes.builder import Builder, Dims, NotUnderstood, broadcast
from afina.graph.axes.labels import FIXED, Expr
from afina.graph.ops import arguments, set_argument


def matmul(g: Builder, node: Node) -> None:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: [..., n, k] @ [..., k, m], leading dimensions broadcast."""
    a = arguments(node)
    right = next(a[name] for name in ("other", "mat2", "vec", "tensor") if name in a)
    g.put(node, _product(g, node, a["self"], right))


def added(g: Builder, node: Node) -> None:
    """`addmm`, `baddbmm`, `addmv`: a matrix product, and something broadcast to it."""
    a = arguments(node)
    left, right = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    product = (_product(g, node, left, right), g.shape(node))
    g.put(node, broadcast(g, node, [product, (g.dims(a["self"]), g.shape(a["self"]))]))


def _product(g: Builder, node: Node, left: Node, right: Node) -> Dims:
    """The dimensions of `left @ right`: the inner ones are united, the rows of `left` and columns of `right` remain."""
    one, two = g.dims(left), g.dims(right)
    row: Dims = () if len(one) == 1 else (one[-2],)
    column: Dims = () if len(two) == 1 else (two[-1],)
    inner = two[-1] if len(two) == 1 else two[-2]
    inner = g.unite(node, one[-1], inner)
    if len(two) > 1:
        g.mark(right, "hidden", produces=len(two) - 1)
    g.mark(right, "hidden", consumes=max(len(two) - 2, 0))
    g.mark(left, "hidden", produces=len(one) - 2 if len(one) > 1 else None, consumes=len(one) - 1)
    lead = (
        broadcast(g, node, [(one[:-2], g.shape(left)[:-2]), (two[:-2], g.shape(right)[:-2])]) if row or column else ()
    )
    if left.op != "get_attr" and right.op != "get_attr":
        g.tag("heads", *lead)
        g.tag("head-dim", inner, *column)
    return (*lead, *row, *column)


def einsum(g: Builder, node: Node) -> None:
    """Each letter is one dimension; what has no place in the output is summed over."""
    a = arguments(node)
    equation, tensors = a["equation"].replace(" ", ""), a["tensors"]
    if "." in equation or "->" not in equation:
        raise NotUnderstood("its equation has an ellipsis or no output")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    expr_of: dict[str, Expr] = {}
    for letters, tensor in zip(terms, tensors, strict=True):
        for letter, expr, size in zip(letters, g.dims(tensor), g.shape(tensor), strict=True):
            if letters.count(letter) > 1:
                g.fix(node, [expr], "its diagonal is taken")
            if size == 1:
                g.fix(node, [expr], "it must stay one")
            else:
                expr_of[letter] = g.unite(node, expr_of[letter], expr) if letter in expr_of else expr
    for letters, tensor in zip(terms, tensors, strict=True):
        for d, letter in enumerate(letters):
            alone = sum(letter in other for other in terms) == 1
            if letter not in output:
                g.mark(tensor, "hidden", consumes=d)
            elif alone:
                g.mark(tensor, "hidden", produces=d)
    if len(tensors) == 2 and all(tensor.op != "get_attr" for tensor in tensors):
        g.tag("heads", *(expr_of.get(c, FIXED) for c in output if all(c in term for term in terms)))
        g.tag("head-dim", *(expr_of.get(c, FIXED) for c in terms[0] if c in terms[1] and c not in output))
    g.put(node, tuple(expr_of.get(letter, FIXED) for letter in output))


def attention(g: Builder, node: Node) -> None:
    """`scaled_dot_product_attention`: q [..., L, E], k [..., S, E], v [..., S, V] give [..., L, V].

    The scale that E implies is written out before E shrinks.
    """
    a = arguments(node)
    names = ("query", "key", "value")
    query, key, value = (g.dims(a[name]) for name in names)
    shapes = [g.shape(a[name]) for name in names]
    inner = g.unite(node, query[-1], key[-1])
    g.fix(node, (key[-2], value[-2]), "attention runs along it")
    heads: list[tuple[Dims, tuple[int, ...]]] = [(query[:-2], shapes[0][:-2])]
    for dims, shape in zip((key, value), shapes[1:], strict=True):
        if a["enable_gqa"] and shape[-3] != shapes[0][-3]:
            shared, _ = g.labels.split(query[-3], shape[-3], shapes[0][-3] // shape[-3])
            g.unite(node, shared, dims[-3])
            dims, shape = (*dims[:-3], query[-3], *dims[-2:]), (*shape[:-3], shapes[0][-3], *shape[-2:])
        heads.append((dims[:-2], shape[:-2]))
    if g.is_tensor(a["attn_mask"]):
        mask, shape = g.dims(a["attn_mask"]), g.shape(a["attn_mask"])
        g.fix(node, mask[-1:], "attention runs along it")
        if len(mask) > 1 and shape[-2] > 1:
            query = (*query[:-2], g.unite(node, query[-2], mask[-2]), query[-1])
        heads.append((mask[:-2], shape[:-2]))
    lead = broadcast(g, node, heads)
    g.tag("heads", *lead)
    g.tag("head-dim", inner, value[-1])
    g.put(node, (*lead, query[-2], value[-1]))
    if a["scale"] is None:
        scale: Any = 1.0 / math.sqrt(shapes[0][-1])
        g.respell(node, lambda twin, _: set_argument(twin, "scale", scale))


RULES = {
    **dict.fromkeys("mm bmm matmul mv dot".split(), matmul),
    **dict.fromkeys(["addmm", "baddbmm"], added),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
