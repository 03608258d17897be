"""How axes run through ops that keep each position on its own: pointwise ops, pooling, reductions, softmax."""

import re
from typing import Any

import torch
from torch.fx import Node

from afina.graph.axes.builder import Builder, NotUnderstood, broadcast
from afina.graph.axes.labels import FIXED, take
from afina.graph.ops import arguments, op_name


def is_pointwise(node: Node) -> bool:
    """ATen tags most of its pointwise ops; those that it forgets (which ones, changes with torch) are listed here."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or op_name(node) in _MORE_POINTWISE


def pointwise(builder: Builder, node: Node) -> None:
    """An op on any number of tensors, which are broadcast together."""
    tensors = [n for n in node.all_input_nodes if builder.is_tensor(n)]
    if len(tensors) < len([n for n in node.all_input_nodes if builder.shapes(n) is not None]):
        raise NotUnderstood("it takes lists of tensors")
    dims = broadcast(builder, node, [(builder.dims(n), builder.shape(n)) for n in tensors])
    builder.set_dims(node, dims)


def same(builder: Builder, node: Node) -> None:
    """The output has the axes of the first argument: copies, casts, dropout."""
    builder.set_dims(node, builder.dims(node.all_input_nodes[0]))


def pooling(builder: Builder, node: Node) -> None:
    """Pooling, resizing and padding of the last dimensions only, as many as the op's name says."""
    spatial = int(re.findall(r"(\d)d", op_name(node))[0])
    dims = builder.dims(node.all_input_nodes[0])
    builder.fix(node, dims[-spatial:], "it is pooled or resized")
    out = (*dims[:-spatial], *(FIXED,) * spatial)
    shapes = builder.shapes(node) or []
    builder.set_dims(node, [out for _ in shapes] if builder.is_multiple(node) else out)


def resize(builder: Builder, node: Node) -> None:
    """`upsample_*`: all dimensions but batch and channels."""
    dims = builder.dims(node.all_input_nodes[0])
    builder.fix(node, dims[2:], "it is resized")
    builder.set_dims(node, (*dims[:2], *(FIXED,) * (len(dims) - 2)))


def reduction(builder: Builder, node: Node) -> None:
    """Mean, sum and the like over some dimensions; the number of a position, or a product, needs all of them."""
    args = arguments(node)
    dims = builder.dims(args["self"])
    reduced = reduced_dimensions(args.get("dim"), len(dims))
    if op_name(node) in _NEEDS_ALL or (builder.is_multiple(node) and _reads_positions(node)):
        builder.fix(node, [dims[d] for d in reduced], "it is reduced")
    builder.tag("normalised", *(dims[d] for d in reduced))
    if args.get("keepdim"):
        out: tuple[Any, ...] = tuple(FIXED if d in reduced else expr for d, expr in enumerate(dims))
    else:
        out = tuple(expr for d, expr in enumerate(dims) if d not in reduced)
    shapes = builder.shapes(node) or []
    builder.set_dims(node, [out for _ in shapes] if builder.is_multiple(node) else out)


def _reads_positions(node: Node) -> bool:
    """Whether the second result of `max`, `min` or `median` is used: the numbers of the positions of the first."""
    return op_name(node) in ("max", "min", "median") and any(user.args[1] == 1 and user.users for user in node.users)


def along(builder: Builder, node: Node) -> None:
    """Softmax, cumulative sums and rolls: the dimension that they run along is fixed, the others pass."""
    args = arguments(node)
    dims = builder.dims(args["self"])
    where = args.get("dim", args.get("dims"))
    if where is None or where == []:
        raise NotUnderstood("it runs along all dimensions")
    run = reduced_dimensions(where, len(dims))
    builder.fix(node, [dims[d] for d in run], f"{op_name(node)} runs along it")
    builder.set_dims(node, tuple(FIXED if d in run else expr for d, expr in enumerate(dims)))


def ordered(builder: Builder, node: Node) -> None:
    """`topk`, `sort`: the dimension that is put in order is fixed, the others pass; values and positions."""
    args = arguments(node)
    dims = list(builder.dims(args["self"]))
    d = args["dim"] % len(dims) if dims else 0
    builder.fix(node, dims[d : d + 1], "it is put in order")
    dims[d : d + 1] = [FIXED] * len(dims[d : d + 1])
    builder.set_dims(
        node, [tuple(dims) for _ in builder.shapes(node) or []] if builder.is_multiple(node) else tuple(dims)
    )


def sampled(builder: Builder, node: Node) -> None:
    """`grid_sample`: images `[N, C, *sizes]` read at points `[N, *places, 2]` give `[N, C, *places]`."""
    args = arguments(node)
    images, points = builder.dims(args["input"]), builder.dims(args["grid"])
    builder.fix(node, images[2:], "it is read at points")
    builder.fix(node, points[-1:], "it holds the coordinates of points")
    builder.set_dims(node, (builder.unite(node, images[0], points[0]), images[1], *points[1:-1]))


def gated(builder: Builder, node: Node) -> None:
    """`glu`: the first half of a dimension gates the second."""
    args = arguments(node)
    dims, shape = list(builder.dims(args["self"])), builder.shape(args["self"])
    d = args["dim"] % len(dims)
    half = shape[d] // 2
    dims[d] = builder.unite(node, take(dims[d], slice(0, half)), take(dims[d], slice(half, None)))
    builder.set_dims(node, tuple(dims))


def reduced_dimensions(dim: Any, rank: int) -> list[int]:
    """A `dim` argument as a list of dimensions counted from the front; none means all."""
    if dim is None or dim == []:
        return list(range(rank))
    return [d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


_MORE_POINTWISE = frozenset(
    "hardswish hardswish_ relu6_ gelu_ log_sigmoid logsigmoid masked_fill_ copy_ zeros_like ones_like full_like "
    "empty_like rand_like randn_like bernoulli type_as fill fill_ zero_ floor_divide true_divide multiply subtract "
    "divide expand_as clamp_min clamp_max".split()
)
_SAME = (
    "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout clone "
    "contiguous alias detach detach_ lift_fresh_copy lift_fresh to _to_copy"
)
_REDUCTIONS = (
    "mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm prod argmax argmin logsumexp any all "
    "median"
)
_NEEDS_ALL = frozenset("prod argmax argmin".split())
_ALONG = "softmax _softmax log_softmax _log_softmax cumsum cumprod roll"
_POOLING = [
    *(f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool") for n in (1, 2, 3)),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
]
_RESIZING = [
    *(f"upsample_{kind}{n}d" for kind in ("nearest", "_nearest_exact") for n in (1, 2, 3)),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"_upsample_{kind}_aa" for kind in ("bilinear2d", "bicubic2d")),
]

RULES = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_REDUCTIONS.split(), reduction),
    **dict.fromkeys(_ALONG.split(), along),
    **dict.fromkeys(_POOLING, pooling),
    **dict.fromkeys(_RESIZING, resize),
    **dict.fromkeys("topk sort argsort".split(), ordered),
    **dict.fromkeys("grid_sampler grid_sampler_2d grid_sampler_3d".split(), sampled),
    "glu": gated,
}
