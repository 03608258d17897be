"""How axes run through ops that change shapes: views, permutations, cat, repeats, pixels to channels and back.

These are the ops that spell sizes out as integers, so most rules leave numbers for surgery to rewrite.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch.fx import Node

from afina.graph.axes.builder import Builder, Dims, NotUnderstood, RemainingPositions
from afina.graph.axes.elementwise import reduced_dimensions
from afina.graph.axes.labels import FIXED, Expr, concatenate, join
from afina.graph.ops import arguments, op_name, set_argument

aten = torch.ops.aten


def view(builder: Builder, node: Node) -> None:
    """`view`, `reshape`, `flatten`, `unflatten`, `view_as`: row-major regrouping of dimensions, sizes rewritten."""
    args = arguments(node)
    _fix_ones(builder, node, range(len(builder.shape(args["self"]))))
    dims = reshaped(builder, args["self"], builder.shape(node))
    name = "size" if "size" in args else "shape" if "shape" in args else "sizes" if "sizes" in args else None
    if name is not None:
        first = args["dim"] % len(builder.dims(args["self"])) if name == "sizes" else 0
        _rewrite_sizes(builder, node, name, dims[first : first + len(args[name])], may_infer=True)
    elif builder.is_tensor(args.get("other")):
        dims = tuple(builder.unite(node, one, two) for one, two in zip(dims, builder.dims(args["other"]), strict=True))
    builder.set_dims(node, dims)


def reshaped(builder: Builder, source: Node, shape: tuple[int, ...]) -> Dims:
    """The dimensions of `source` regrouped to `shape`.

    Dimensions are cut into the smallest runs of equal size on both sides; a run is joined, then split:

        [4, 6, 5] to [4, 2, 3, 5]    4 is 4, 6 is split into 2 and 3, 5 is 5
        [4, 2, 3] to [4, 6]          4 is 4, 2 and 3 are joined
        [6, 4] to [8, 3]             6 and 4 are joined to 24, which is split into 8 and 3
    """
    before = [(expr, size) for expr, size in zip(builder.dims(source), builder.shape(source), strict=True) if size != 1]
    after = [index for index, size in enumerate(shape) if size != 1]
    result: list[Expr] = [FIXED] * len(shape)
    i = j = 0
    while i < len(before) and j < len(after):
        left, right, first_i, first_j = before[i][1], shape[after[j]], i, j
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i][1], i + 1
            else:
                right, j = right * shape[after[j]], j + 1
        run = before[first_i:i]
        whole = join([expr for expr, _ in run], [size for _, size in run])
        for position, index in enumerate(after[first_j:j]):
            rest = math.prod(shape[other] for other in after[first_j + position + 1 : j])
            result[index], whole = builder.labels.split(whole, shape[index], rest)
    return tuple(result)


def expand(builder: Builder, node: Node) -> None:
    """Dimensions of size 1, or new ones in front, are repeated to a size that is spelled out: any size would do."""
    args = arguments(node)
    source, old, new = builder.dims(args["self"]), builder.shape(args["self"]), builder.shape(node)
    added = len(new) - len(old)
    _fix_ones(builder, node, [d for d, size in enumerate(old) if size != new[added + d]])
    dims: list[Expr] = []
    for d, size in enumerate(args["size"]):
        same = d >= added and old[d - added] == new[d]
        dims.append(source[d - added] if same else _any_size(builder, size, new[d]))
    _rewrite_sizes(builder, node, "size", dims)
    builder.set_dims(node, tuple(dims))


def repeat(builder: Builder, node: Node) -> None:
    """Dimensions tiled; those of size 1 (or new) could be of any size, which is rewritten."""
    args = arguments(node)
    source, old, name = (
        builder.dims(args["self"]),
        builder.shape(args["self"]),
        "repeats" if "repeats" in args else "dims",
    )
    whole = max(len(source) - len(args[name]), 0)  # `tile` may name only the last dimensions
    _fix_ones(builder, node, range(len(old)))
    repeats = [1] * whole + list(args[name])
    added = len(repeats) - len(source)
    spelled: list[Expr] = [FIXED] * len(repeats)
    dims: list[Expr] = []
    for d, times in enumerate(repeats):
        size = old[d - added] if d >= added else 1
        if size == 1:
            spelled[d] = _any_size(builder, times, builder.shape(node)[d])
            dims.append(spelled[d])
        elif source[d - added] and not isinstance(times, int):
            raise NotUnderstood("it repeats an axis by a number that is not constant")
        else:
            dims.append(join((FIXED, source[d - added]), (times, size)) if source[d - added] else FIXED)
    _rewrite_sizes(builder, node, name, spelled[whole:])
    builder.set_dims(node, tuple(dims))


def repeat_each(builder: Builder, node: Node) -> None:
    """`repeat_interleave`: each position several times in a row."""
    args = arguments(node)
    if not isinstance(args.get("repeats"), int) or args.get("dim") is None:
        raise NotUnderstood("it repeats by numbers that are not constant, or flattens")
    dims = list(builder.dims(args["self"]))
    d = args["dim"] % len(dims)
    dims[d] = join((dims[d], FIXED), (builder.shape(args["self"])[d], args["repeats"])) if dims[d] else FIXED
    builder.set_dims(node, tuple(dims))


def fill(builder: Builder, node: Node) -> None:
    """`zeros`, `ones`, `full` and the like: any size would do; it is spelled out."""
    sizes, shape = arguments(node)["size"], builder.shape(node)
    dims = tuple(_any_size(builder, size, n) for size, n in zip(sizes, shape, strict=True))
    _rewrite_sizes(builder, node, "size", dims)
    builder.set_dims(node, dims)


def _any_size(builder: Builder, spelled: object, size: int) -> Expr:
    return builder.labels.fresh(size) if isinstance(spelled, int) and size > 1 else FIXED


def permute(builder: Builder, node: Node) -> None:
    """`permute`, `transpose`, `movedim` and the like: the dimensions in another order."""
    args = arguments(node)
    source = builder.dims(args["self"])
    order = list(range(len(source)))
    match op_name(node):
        case "permute":
            order = [d % len(source) for d in args["dims"]]
        case "transpose" | "transpose_" | "swapaxes" | "swapdims":
            one, two = (args["dim0"], args["dim1"]) if "dim0" in args else (args["axis0"], args["axis1"])
            one, two = one % len(source), two % len(source)
            order[one], order[two] = order[two], order[one]
        case "t":
            order = order[::-1]
        case "adjoint" | "mT":
            order[-2:] = order[:-3:-1]
        case "movedim" | "moveaxis":
            start, end = (reduced_dimensions(args[name], len(source)) for name in ("source", "destination"))
            order = _moved(start, end, len(source))
    builder.set_dims(node, tuple(source[d] for d in order))


def squeeze(builder: Builder, node: Node) -> None:
    """Drops dimensions of size 1; which ones is spelled out, since others may shrink to 1."""
    args = arguments(node)
    source, shape = builder.dims(args["self"]), builder.shape(args["self"])
    dropped = [d for d in reduced_dimensions(args.get("dim"), len(shape)) if shape[d] == 1]
    _fix_ones(builder, node, dropped)
    builder.set_dims(node, tuple(expr for d, expr in enumerate(source) if d not in dropped))

    def write(twin: Node, _: RemainingPositions) -> None:
        source = arguments(twin)["self"]
        twin.target = aten.squeeze.dims
        twin.args, twin.kwargs = (source, dropped), {}

    builder.rewrite_on_removal(node, write)


def unsqueeze(builder: Builder, node: Node) -> None:
    """A new dimension of size 1."""
    args = arguments(node)
    source = builder.dims(args["self"])
    d = args["dim"] % (len(source) + 1)
    builder.set_dims(node, (*source[:d], FIXED, *source[d:]))


def cat(builder: Builder, node: Node) -> None:
    """The sum of the dimensions that are laid end to end; the others are the same."""
    args = arguments(node)
    tensors = [builder.dims(n) for n in args["tensors"]]
    shapes = [builder.shape(n) for n in args["tensors"]]
    rank = len(tensors[0])
    if any(len(dims) != rank for dims in tensors):
        raise NotUnderstood("it joins tensors of different rank")
    d = args["dim"] % rank
    dims = list(_united(builder, node, tensors, skip=d))
    dims[d] = concatenate([t[d] for t in tensors], [s[d] for s in shapes])
    builder.set_dims(node, tuple(dims))


def stack(builder: Builder, node: Node) -> None:
    """A new dimension; all the others are the same."""
    args = arguments(node)
    dims = list(_united(builder, node, [builder.dims(n) for n in args["tensors"]], skip=-1))
    dims.insert(args["dim"] % (len(dims) + 1), FIXED)
    builder.set_dims(node, tuple(dims))


def pixel_shuffle(builder: Builder, node: Node) -> None:
    """[.., C * r * r, H, W] to [.., C, H * r, W * r]: whole output channels can go."""
    args = arguments(node)
    source, block = builder.dims(args["self"]), args["upscale_factor"] ** 2
    channels, inner = builder.labels.split(source[-3], builder.shape(args["self"])[-3] // block, block)
    builder.fix(node, (inner, *source[-2:]), "it becomes pixels")
    builder.set_dims(node, (*source[:-3], channels, FIXED, FIXED))


def pixel_unshuffle(builder: Builder, node: Node) -> None:
    """[.., C, H * r, W * r] to [.., C * r * r, H, W]."""
    args = arguments(node)
    source, block = builder.dims(args["self"]), args["downscale_factor"] ** 2
    builder.fix(node, source[-2:], "it becomes channels")
    channels = join((source[-3], FIXED), (builder.shape(args["self"])[-3], block)) if source[-3] else FIXED
    builder.set_dims(node, (*source[:-3], channels, FIXED, FIXED))


def channel_shuffle(builder: Builder, node: Node) -> None:
    """Channels viewed as groups x channels of a group, and those two swapped."""
    args = arguments(node)
    dims, groups = list(builder.dims(args["self"])), args["groups"]
    inner = builder.shape(args["self"])[1] // groups
    group, channel = builder.labels.split(dims[1], groups, inner)
    dims[1] = join((channel, group), (inner, groups))
    builder.set_dims(node, tuple(dims))
    builder.rewrite_on_removal(
        node, lambda twin, remaining: set_argument(twin, "groups", remaining.count(group) if group else groups)
    )


def patches(builder: Builder, node: Node) -> None:
    """`im2col`: [B, C, H, W] to [B, C * k * k, L]."""
    args = arguments(node)
    dims, block = builder.dims(args["self"]), math.prod(args["kernel_size"])
    if len(dims) != 4:
        raise NotUnderstood("its input has no batch dimension")
    builder.fix(node, dims[2:], "it is cut into patches")
    channels = join((dims[1], FIXED), (builder.shape(args["self"])[1], block)) if dims[1] else FIXED
    builder.set_dims(node, (dims[0], channels, FIXED))


def unpatched(builder: Builder, node: Node) -> None:
    """`col2im`: [B, C * k * k, L] to [B, C, H, W]."""
    args = arguments(node)
    dims, block = builder.dims(args["self"]), math.prod(args["kernel_size"])
    channels, inner = builder.labels.split(dims[1], builder.shape(args["self"])[1] // block, block)
    builder.fix(node, (inner, dims[2]), "it is put together from patches")
    builder.set_dims(node, (dims[0], channels, FIXED, FIXED))


def windows(builder: Builder, node: Node) -> None:
    """`unfold` of one dimension: windows of it in a new last dimension."""
    args = arguments(node)
    dims = list(builder.dims(args["self"]))
    d = args["dimension"] % len(dims)
    builder.fix(node, [dims[d]], "windows of it are taken")
    dims[d] = FIXED
    builder.set_dims(node, (*dims, FIXED))


def size(builder: Builder, node: Node) -> None:
    """A size read off as a number: what is done with the number is not followed, so the dimension is fixed."""
    args = arguments(node)
    dims = builder.dims(args["self"])
    builder.fix(node, [dims[args["dim"]]] if "dim" in args else dims, "its size is read")


def claim(builder: Builder, node: Node) -> None:
    """An assertion about a tensor: of no effect unless it spells sizes out."""
    args = arguments(node)
    if args.get("size") is not None or args.get("stride") is not None:
        raise NotUnderstood("it asserts a size")


def _rewrite_sizes(builder: Builder, node: Node, name: str, dims: Sequence[Expr], *, may_infer: bool = False) -> None:
    """Let surgery write how many positions of `dims` are left into the argument `name`, a list of sizes.

    Where half of 4 channels go, `view(x, [s0, 4, 36])` becomes `view(x, [s0, 2, 36])`; `s0` is the node that reads the
    batch size. In `view(x, [4 * s0, 36])` the first size is computed from the batch and shrinks with the channels too:
    it becomes -1, which torch infers.
    """
    sizes = list(arguments(node)[name])
    symbolic = [index for index, size in enumerate(sizes) if not isinstance(size, int) and dims[index]]
    spelled: dict[int, int] = {}
    if symbolic and -1 in sizes:
        other = sizes.index(-1)
        size = node.meta["val"].shape[other] if "val" in node.meta else None
        if not isinstance(size, int):
            raise NotUnderstood("it spells out two sizes that go with the batch")
        spelled[other] = size
    if symbolic and (not may_infer or len(symbolic) > 1):
        raise NotUnderstood("it spells out a size that mixes the batch with an axis")

    def write(twin: Node, remaining: RemainingPositions) -> None:
        # Sizes that are not constant are nodes: those of the twin.
        new = list(arguments(twin)[name])
        for index, expr in enumerate(dims):
            if expr and (sizes[index] != -1 or index in spelled):
                new[index] = -1 if index in symbolic else remaining.count(expr)
            elif index in spelled:
                new[index] = spelled[index]
        set_argument(twin, name, new)

    if any(dims):
        builder.rewrite_on_removal(node, write)


def _fix_ones(builder: Builder, node: Node, where: Iterable[int]) -> None:
    """Fix the dimensions of size 1 among those of the input: one may be a single unit that was sliced out."""
    source = arguments(node)["self"]
    builder.fix(node, [builder.dims(source)[d] for d in where if builder.shape(source)[d] == 1], "it must stay one")


def _united(builder: Builder, node: Node, tensors: Sequence[Dims], skip: int) -> Dims:
    dims = list(tensors[0])
    for other in tensors[1:]:
        for d in range(len(dims)):
            if d != skip:
                dims[d] = builder.unite(node, dims[d], other[d])
    return tuple(dims)


def _moved(source: list[int], destination: list[int], rank: int) -> list[int]:
    rest = iter(d for d in range(rank) if d not in source)
    placed = dict(zip(destination, source, strict=True))
    return [placed[d] if d in placed else next(rest) for d in range(rank)]


RULES = {
    **dict.fromkeys("view reshape _unsafe_view flatten unflatten view_copy view_as reshape_as".split(), view),
    **dict.fromkeys("permute transpose transpose_ swapaxes swapdims t movedim moveaxis adjoint mT".split(), permute),
    **dict.fromkeys(["squeeze", "squeeze_"], squeeze),
    **dict.fromkeys(["unsqueeze", "unsqueeze_"], unsqueeze),
    **dict.fromkeys("cat concat concatenate".split(), cat),
    "stack": stack,
    "expand": expand,
    **dict.fromkeys(["repeat", "tile"], repeat),
    "repeat_interleave": repeat_each,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], channel_shuffle),
    "im2col": patches,
    "col2im": unpatched,
    "unfold": windows,
    **dict.fromkeys(["sym_size", "sym_numel"], size),
    "_assert_tensor_metadata": claim,
}
# They give dimensions that any axis can be tied to, so they count also where nothing that goes in has an axis.
MAKERS = {
    **dict.fromkeys("zeros ones full empty rand randn".split(), fill),
    **dict.fromkeys("new_zeros new_ones new_full new_empty".split(), fill),
    "expand": expand,
    "repeat": repeat,
}
