"""How axes run through layers with weights, matrix products and attention."""

import math
from typing import Any

from torch.fx import Node

from afina.graph.axes.builder import Builder, Count, NotUnderstood, arguments, set_argument
from afina.graph.axes.labels import FIXED, Expr, join


def convolution(g: Builder, node: Node) -> None:
    """Plain, grouped, depthwise and transposed convolution of any number of spatial dimensions."""
    a = arguments(node)
    x, weight, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    dims, kernel = g.dims(x), g.dims(weight)
    if len(dims) != len(kernel):
        raise NotUnderstood("its input has no batch dimension")
    transposed = a.get("transposed", "transpose" in str(node.target))
    g.fix(node, (*dims[2:], *kernel[2:]), "a convolution runs along it")
    if groups == 1:
        source, target = (0, 1) if transposed else (1, 0)
        g.unite(node, dims[1], kernel[source])
        g.mark(weight, "channels", produces=target, consumes=source)
        out = kernel[target]
    else:
        out = _grouped(g, node, transposed)
    if g.is_tensor(bias):
        out = g.unite(node, out, g.dims(bias)[0])
    g.put(node, (dims[0], out, *(FIXED,) * (len(dims) - 2)))


def _grouped(g: Builder, node: Node, transposed: bool) -> Expr:
    """Channels are groups x channels of a group; whole groups can go, or the same channels of every group."""
    a = arguments(node)
    x, weight, groups = a["input"], a["weight"], a["groups"]
    channels, (first, second) = g.dims(x)[1], g.dims(weight)[:2]
    sizes = g.shape(weight)
    group, inner = g.labels.split(channels, groups, g.shape(x)[1] // groups)
    if transposed:
        g.unite(node, channels, first)
        out = join((group, second), (groups, sizes[1]))
        g.mark(weight, "channels", produces=1, consumes=0)
    else:
        if sizes[1] > 1:
            g.unite(node, inner, second)
        own, _ = g.labels.split(first, groups, sizes[0] // groups)
        group = g.unite(node, group, own)
        out = first
        g.mark(weight, "channels", produces=0, consumes=1)
    if groups < max(g.shape(x)[1], sizes[0]):
        g.tag("groups", group)

    def write(twin: Node, count: Count) -> None:
        set_argument(twin, "groups", count(group) if group else groups)

    g.respell(node, write)
    return out


def linear(g: Builder, node: Node) -> None:
    """`x @ weight.T + bias` over the last dimension."""
    a = arguments(node)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    dims, (out, into) = g.dims(x), g.dims(weight)
    g.unite(node, dims[-1], into)
    g.mark(weight, "hidden", produces=0, consumes=1)
    if g.is_tensor(bias):
        out = g.unite(node, out, g.dims(bias)[0])
    g.put(node, (*dims[:-1], out))


def batch_norm(g: Builder, node: Node) -> None:
    """Batch and instance norm: each channel on its own."""
    a = arguments(node)
    dims = g.dims(a["input"])
    channel = dims[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if g.is_tensor(a[name]):
            channel = g.unite(node, channel, g.dims(a[name])[0])
    g.put(node, (dims[0], channel, *dims[2:]))


def group_norm(g: Builder, node: Node) -> None:
    """Whole groups can go, or the same channels of every group: statistics are then taken over the others."""
    a = arguments(node)
    x, groups = a["input"], a["num_groups"]
    dims = g.dims(x)
    group, inner = g.labels.split(dims[1], groups, g.shape(x)[1] // groups)
    g.tag("groups", group)
    g.tag("normalised", inner, *dims[2:])
    channel = dims[1]
    for name in ("weight", "bias"):
        if g.is_tensor(a[name]):
            channel = g.unite(node, channel, g.dims(a[name])[0])

    def write(twin: Node, count: Count) -> None:
        set_argument(twin, "num_groups", count(group) if group else groups)

    g.put(node, (dims[0], channel, *dims[2:]))
    g.respell(node, write)


def layer_norm(g: Builder, node: Node) -> None:
    """Layer and RMS norm: statistics are taken over the units that are left, whose number is spelled out."""
    a = arguments(node)
    dims, shape = list(g.dims(a["input"])), a["normalized_shape"]
    first = len(dims) - len(shape)
    for name in ("weight", "bias"):
        if g.is_tensor(a.get(name)):
            for d, expr in enumerate(g.dims(a[name])):
                dims[first + d] = g.unite(node, dims[first + d], expr)
    run = tuple(dims[first:])
    g.tag("normalised", *run)

    def write(twin: Node, count: Count) -> None:
        sizes = [count(expr) if expr else size for expr, size in zip(run, shape, strict=True)]
        set_argument(twin, "normalized_shape", sizes)

    g.put(node, tuple(dims))
    if any(run):
        g.respell(node, write)


def prelu(g: Builder, node: Node) -> None:
    """One slope for all channels, or one for each."""
    a = arguments(node)
    dims = g.dims(a["self"])
    if g.shape(a["weight"])[0] > 1:
        dims = (dims[0], g.unite(node, dims[1], g.dims(a["weight"])[0]), *dims[2:])
    g.put(node, dims)


def matmul(g: Builder, node: Node) -> None:
    """`mm`, `bmm`, `matmul` and `addmm`: [..., n, k] @ [..., k, m], leading dimensions broadcast."""
    a = arguments(node)
    left, right = (a["mat1"], a["mat2"]) if "mat1" in a else (a["self"], a.get("other", a.get("mat2")))
    assert isinstance(right, Node)
    one, two = g.dims(left), g.dims(right)
    if len(one) < 2 or len(two) < 2:
        raise NotUnderstood("it multiplies by a vector")
    g.unite(node, one[-1], two[-2])
    lead = broadcast(g, node, [(one[:-2], g.shape(left)[:-2]), (two[:-2], g.shape(right)[:-2])])
    dims = (*lead, one[-2], two[-1])
    if "mat1" in a:
        shape = g.shape(node)
        dims = broadcast(g, node, [(dims, shape), (g.dims(a["self"]), g.shape(a["self"]))])
    g.put(node, dims)


def attention(g: Builder, node: Node) -> None:
    """`scaled_dot_product_attention`: q [..., L, E], k [..., S, E], v [..., S, V] give [..., L, V].

    The scale that E implies is written out before E shrinks.
    """
    a = arguments(node)
    if a["enable_gqa"]:
        raise NotUnderstood("its heads are shared by groups")
    query, key, value = (g.dims(a[name]) for name in ("query", "key", "value"))
    shapes = [g.shape(a[name]) for name in ("query", "key", "value")]
    lead = [(dims[:-2], shape[:-2]) for dims, shape in zip((query, key, value), shapes, strict=True)]
    g.unite(node, query[-1], key[-1])
    g.fix(node, (query[-2], key[-2], value[-2]), "attention runs along it")
    if g.is_tensor(a["attn_mask"]):
        mask, shape = g.dims(a["attn_mask"]), g.shape(a["attn_mask"])
        g.fix(node, mask[-2:], "attention runs along it")
        lead.append((mask[:-2], shape[:-2]))
    g.put(node, (*broadcast(g, node, lead), FIXED, value[-1]))
    if a["scale"] is None:
        scale = 1.0 / math.sqrt(shapes[0][-1])
        g.respell(node, lambda twin, _: set_argument(twin, "scale", scale))


def broadcast(g: Builder, node: Node, tensors: list[tuple[Any, tuple[int, ...]]]) -> tuple[Expr, ...]:
    """The dimensions of what broadcasts together: equal ones are united, size 1 gives way."""
    rank = max(len(shape) for _, shape in tensors)
    result: list[Expr] = []
    for back in range(rank, 0, -1):
        met = [d[-back] for d, shape in tensors if back <= len(shape) and shape[-back] != 1]
        expr = met[0] if met else FIXED
        for other in met[1:]:
            expr = g.unite(node, expr, other)
        result.append(expr)
    return tuple(result)


RULES = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "convolution": convolution,
    "linear": linear,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "prelu": prelu,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "addmm": matmul,
    "scaled_dot_product_attention": attention,
}
