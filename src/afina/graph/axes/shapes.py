"""How axes run through ops that only move numbers about: views, permutations, cat, slices, padding.

These are the ops that spell sizes out as integers, so most rules leave a respelling for surgery.
"""

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from afina.graph.axes.builder import Builder, Count, Dims, NotUnderstood, arguments, op_name, set_argument
from afina.graph.axes.elementwise import reduced_dimensions
from afina.graph.axes.labels import FIXED, Expr, concatenate, join, take

aten = torch.ops.aten


def view(g: Builder, node: Node) -> None:
    """`view`, `reshape`, `flatten`, `unflatten`: row-major regrouping of dimensions, sizes respelled."""
    a = arguments(node)
    dims = reshaped(g, a["self"], g.shape(node))
    name = "size" if "size" in a else "shape" if "shape" in a else "sizes" if "sizes" in a else None
    if name is not None:
        first = a["dim"] % len(g.dims(a["self"])) if name == "sizes" else 0
        _respell_sizes(g, node, name, dims[first : first + len(a[name])], may_infer=True)
    g.put(node, dims)


def reshaped(g: Builder, source: Node, shape: tuple[int, ...]) -> Dims:
    """The dimensions of `source` regrouped to `shape`.

    Dimensions are cut into the smallest runs of equal size on both sides; a run is joined, then split.
    """
    before = [(expr, size) for expr, size in zip(g.dims(source), g.shape(source), strict=True) if size != 1]
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
            result[index], whole = g.labels.split(whole, shape[index], rest)
    return tuple(result)


def expand(g: Builder, node: Node) -> None:
    """Dimensions of size 1 (or new ones in front) are repeated to a size that is spelled out, and so fixed."""
    a = arguments(node)
    source, old, new = g.dims(a["self"]), g.shape(a["self"]), g.shape(node)
    added = len(new) - len(old)
    dims = (FIXED,) * added + tuple(
        expr if size == new[added + d] else FIXED for d, (expr, size) in enumerate(zip(source, old, strict=True))
    )
    _respell_sizes(g, node, "size", dims)
    g.put(node, dims)


def repeat(g: Builder, node: Node) -> None:
    """Dimensions tiled; the counts stay as they are."""
    a = arguments(node)
    source, repeats = g.dims(a["self"]), a["repeats"]
    added = len(repeats) - len(source)
    if not all(isinstance(times, int) for times, expr in zip(repeats[added:], source, strict=True) if expr):
        raise NotUnderstood("it repeats an axis by a number that is not constant")
    tiled = tuple(
        join((FIXED, expr), (times, len(expr[0]))) if expr else FIXED
        for times, expr in zip(repeats[added:], source, strict=True)
    )
    g.put(node, (FIXED,) * added + tiled)


def permute(g: Builder, node: Node) -> None:
    """`permute`, `transpose`, `movedim` and the like: the dimensions in another order."""
    a = arguments(node)
    source = g.dims(a["self"])
    order = list(range(len(source)))
    match op_name(node):
        case "permute":
            order = [d % len(source) for d in a["dims"]]
        case "transpose" | "transpose_" | "swapaxes" | "swapdims":
            one, two = (a["dim0"], a["dim1"]) if "dim0" in a else (a["axis0"], a["axis1"])
            one, two = one % len(source), two % len(source)
            order[one], order[two] = order[two], order[one]
        case "t":
            order = order[::-1]
        case "movedim" | "moveaxis":
            start, end = (reduced_dimensions(a[name], len(source)) for name in ("source", "destination"))
            order = _moved(start, end, len(source))
    g.put(node, tuple(source[d] for d in order))


def squeeze(g: Builder, node: Node) -> None:
    """Drops dimensions of size 1; which ones is spelled out, since others may shrink to 1."""
    a = arguments(node)
    source, shape = g.dims(a["self"]), g.shape(a["self"])
    dropped = [d for d in reduced_dimensions(a.get("dim"), len(shape)) if shape[d] == 1]
    g.put(node, tuple(expr for d, expr in enumerate(source) if d not in dropped))

    def write(twin: Node, _: Count) -> None:
        source = arguments(twin)["self"]
        twin.target = aten.squeeze.dims
        twin.args, twin.kwargs = (source, dropped), {}

    g.respell(node, write)


def unsqueeze(g: Builder, node: Node) -> None:
    """A new dimension of size 1."""
    a = arguments(node)
    source = g.dims(a["self"])
    d = a["dim"] % (len(source) + 1)
    g.put(node, (*source[:d], FIXED, *source[d:]))


def cat(g: Builder, node: Node) -> None:
    """The sum of the dimensions that are laid end to end; the others are the same."""
    a = arguments(node)
    tensors = [g.dims(n) for n in a["tensors"]]
    shapes = [g.shape(n) for n in a["tensors"]]
    rank = len(tensors[0])
    if any(len(dims) != rank for dims in tensors):
        raise NotUnderstood("it joins tensors of different rank")
    d = a["dim"] % rank
    dims = list(_united(g, node, tensors, skip=d))
    dims[d] = concatenate([t[d] for t in tensors], [s[d] for s in shapes])
    g.put(node, tuple(dims))


def stack(g: Builder, node: Node) -> None:
    """A new dimension; all the others are the same."""
    a = arguments(node)
    dims = list(_united(g, node, [g.dims(n) for n in a["tensors"]], skip=-1))
    dims.insert(a["dim"] % (len(dims) + 1), FIXED)
    g.put(node, tuple(dims))


def cut(g: Builder, node: Node) -> None:
    """`split` and `chunk`: runs of a dimension, their sizes spelled out."""
    a = arguments(node)
    source = g.dims(a["self"])
    d = a["dim"] % len(source)
    sizes = [shape[d] for shape in g.shapes(node) or []]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    runs = [take(source[d], slice(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    g.put(node, [(*source[:d], run, *source[d + 1 :]) for run in runs])
    if source[d]:

        def write(twin: Node, count: Count) -> None:
            source = arguments(twin)["self"]
            twin.target = aten.split_with_sizes.default
            twin.args, twin.kwargs = (source, [count(run) for run in runs], d), {}

        g.respell(node, write)


def cut_out(g: Builder, node: Node) -> None:
    """`slice` and `narrow`: one run of a dimension."""
    a = arguments(node)
    source = g.dims(a["self"])
    d = a["dim"] % len(source)
    size, kept = g.shape(a["self"])[d], g.shape(node)[d]
    if a.get("step", 1) != 1:
        g.fix(node, [source[d]], "every so many of it are taken")
        g.put(node, (*source[:d], FIXED, *source[d + 1 :]))
        return
    start = a["start"] or 0
    if source[d] and not isinstance(start, int):
        raise NotUnderstood("it starts at a number that is not constant")
    start = min(max(start + size if start < 0 else start, 0), size) if source[d] else 0
    run = take(source[d], slice(start, start + kept))
    g.put(node, (*source[:d], run, *source[d + 1 :]))
    if run:

        def write(twin: Node, count: Count) -> None:
            first, length = count(take(source[d], slice(0, start))), count(run)
            set_argument(twin, "start", first)
            set_argument(twin, *(("length", length) if "length" in a else ("end", first + length)))

        g.respell(node, write)


def select(g: Builder, node: Node) -> None:
    """One position of a dimension, which is fixed."""
    a = arguments(node)
    source = g.dims(a["self"])
    d = a["dim"] % len(source)
    g.fix(node, [source[d]], "one of it is taken by its number")
    rest = (*source[:d], *source[d + 1 :])
    g.put(node, [rest for _ in g.shapes(node) or []] if g.is_multiple(node) else rest)


def pad(g: Builder, node: Node) -> None:
    """Constant padding adds new units at both ends of a dimension; other kinds of padding fix it."""
    a = arguments(node)
    source, amounts = g.dims(a["self"]), list(a["pad"])
    dims = list(source)
    runs: dict[int, tuple[Expr, Expr]] = {}
    for k in range(len(amounts) // 2):
        d, (before, after) = len(dims) - 1 - k, amounts[2 * k : 2 * k + 2]
        if (before, after) == (0, 0) or not dims[d]:
            continue
        if a.get("mode", "constant") != "constant" or not isinstance(before, int) or min(before, after) < 0:
            g.fix(node, [dims[d]], "it is padded")
            dims[d] = FIXED
            continue
        runs[k] = (g.labels.fresh(before), g.labels.fresh(after))
        dims[d] = concatenate([runs[k][0], dims[d], runs[k][1]], [before, len(dims[d][0]), after])
    g.put(node, tuple(dims))

    def write(twin: Node, count: Count) -> None:
        new = list(amounts)
        for k, (before, after) in runs.items():
            new[2 * k : 2 * k + 2] = [count(before), count(after)]
        set_argument(twin, "pad", new)

    if runs:
        g.respell(node, write)


def pixel_shuffle(g: Builder, node: Node) -> None:
    """[.., C * r * r, H, W] to [.., C, H * r, W * r]: whole output channels can go."""
    a = arguments(node)
    source, block = g.dims(a["self"]), a["upscale_factor"] ** 2
    channels, inner = g.labels.split(source[-3], g.shape(a["self"])[-3] // block, block)
    g.fix(node, (inner, *source[-2:]), "it becomes pixels")
    g.put(node, (*source[:-3], channels, FIXED, FIXED))


def size(g: Builder, node: Node) -> None:
    """A size read off as a number: what is done with the number is not followed, so the dimension is fixed."""
    a = arguments(node)
    dims = g.dims(a["self"])
    g.fix(node, [dims[a["dim"]]] if "dim" in a else dims, "its size is read")


def claim(g: Builder, node: Node) -> None:
    """An assertion about a tensor: of no effect unless it spells sizes out."""
    a = arguments(node)
    if a.get("size") is not None or a.get("stride") is not None:
        raise NotUnderstood("it asserts a size")


def _respell_sizes(g: Builder, node: Node, name: str, dims: Sequence[Expr], *, may_infer: bool = False) -> None:
    sizes = list(arguments(node)[name])
    symbolic = [index for index, size in enumerate(sizes) if not isinstance(size, int) and dims[index]]
    if symbolic and (not may_infer or len(symbolic) > 1 or -1 in sizes):
        raise NotUnderstood("it spells out a size that mixes the batch with an axis")

    def write(twin: Node, count: Count) -> None:
        # Sizes that are not constant are nodes: those of the twin.
        new = list(arguments(twin)[name])
        for index, expr in enumerate(dims):
            if expr and sizes[index] != -1:
                new[index] = -1 if index in symbolic else count(expr)
        set_argument(twin, name, new)

    if any(dims):
        g.respell(node, write)


def _united(g: Builder, node: Node, tensors: Sequence[Dims], skip: int) -> Dims:
    dims = list(tensors[0])
    for other in tensors[1:]:
        for d in range(len(dims)):
            if d != skip:
                dims[d] = g.unite(node, dims[d], other[d])
    return tuple(dims)


def _moved(source: list[int], destination: list[int], rank: int) -> list[int]:
    rest = iter(d for d in range(rank) if d not in source)
    placed = dict(zip(destination, source, strict=True))
    return [placed[d] if d in placed else next(rest) for d in range(rank)]


RULES = {
    **dict.fromkeys("view reshape _unsafe_view flatten unflatten view_copy".split(), view),
    **dict.fromkeys("permute transpose transpose_ swapaxes swapdims t movedim moveaxis".split(), permute),
    **dict.fromkeys(["squeeze", "squeeze_"], squeeze),
    **dict.fromkeys(["unsqueeze", "unsqueeze_"], unsqueeze),
    **dict.fromkeys("cat concat concatenate".split(), cat),
    "stack": stack,
    **dict.fromkeys("split split_with_sizes chunk".split(), cut),
    **dict.fromkeys(["slice", "narrow"], cut_out),
    **dict.fromkeys(["select", "unbind"], select),
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    "expand": expand,
    "repeat": repeat,
    "pixel_shuffle": pixel_shuffle,
    **dict.fromkeys(["sym_size", "sym_numel"], size),
    "_assert_tensor_metadata": claim,
}
