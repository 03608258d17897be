"""How axes run through ops that take a part: slices, splits, padding, and positions by number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from afina.graph.axes.builder import Builder, NotUnderstood, RemainingPositions
from afina.graph.axes.elementwise import reduced_dimensions
from afina.graph.axes.labels import FIXED, Array, Expr, concatenate, take
from afina.graph.ops import arguments, set_argument

aten = torch.ops.aten


def cut(builder: Builder, node: Node) -> None:
    """`split` and `chunk`: runs of a dimension, their sizes spelled out."""
    args = arguments(node)
    source = builder.dims(args["self"])
    d = args["dim"] % len(source)
    sizes = [shape[d] for shape in builder.shapes(node) or []]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    runs = [take(source[d], slice(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    builder.set_dims(node, [(*source[:d], run, *source[d + 1 :]) for run in runs])
    if source[d]:

        def write(twin: Node, remaining: RemainingPositions) -> None:
            source = arguments(twin)["self"]
            twin.target = aten.split_with_sizes.default
            twin.args, twin.kwargs = (source, [remaining.count(run) for run in runs], d), {}

        builder.rewrite_on_removal(node, write)


def cut_out(builder: Builder, node: Node) -> None:
    """`slice` and `narrow`: one run of a dimension."""
    args = arguments(node)
    source = builder.dims(args["self"])
    d = args["dim"] % len(source)
    size, run_length = builder.shape(args["self"])[d], builder.shape(node)[d]
    if args.get("step", 1) != 1:
        _pick(builder, node, d, np.arange(size)[args["start"] : args["end"] : args["step"]] if source[d] else None)
        return
    start = args["start"] or 0
    if source[d] and not isinstance(start, int):
        raise NotUnderstood("it starts at a number that is not constant")
    start = min(max(start + size if start < 0 else start, 0), size) if source[d] else 0
    run = take(source[d], slice(start, start + run_length))
    builder.set_dims(node, (*source[:d], run, *source[d + 1 :]))
    if run:

        def write(twin: Node, remaining: RemainingPositions) -> None:
            first, length = remaining.count(take(source[d], slice(0, start))), remaining.count(run)
            set_argument(twin, "start", first)
            set_argument(twin, *(("length", length) if "length" in args else ("end", first + length)))

        builder.rewrite_on_removal(node, write)


def select(builder: Builder, node: Node) -> None:
    """One position of a dimension, which is fixed."""
    args = arguments(node)
    source = builder.dims(args["self"])
    d = args["dim"] % len(source)
    builder.fix(node, [source[d]], "one of it is taken by its number")
    rest = (*source[:d], *source[d + 1 :])
    builder.set_dims(node, [rest for _ in builder.shapes(node) or []] if builder.is_multiple(node) else rest)


def pad(builder: Builder, node: Node) -> None:
    """Constant padding adds new units at both ends of a dimension; other kinds of padding fix it."""
    args = arguments(node)
    source, amounts = builder.dims(args["self"]), list(args["pad"])
    dims = list(source)
    runs: dict[int, tuple[Expr, Expr]] = {}
    for k in range(len(amounts) // 2):
        d, (before, after) = len(dims) - 1 - k, amounts[2 * k : 2 * k + 2]
        if (before, after) == (0, 0) or not dims[d]:
            continue
        if args.get("mode", "constant") != "constant" or not isinstance(before, int) or min(before, after) < 0:
            builder.fix(node, [dims[d]], "it is padded")
            dims[d] = FIXED
            continue
        runs[k] = (builder.labels.fresh(before), builder.labels.fresh(after))
        dims[d] = concatenate([runs[k][0], dims[d], runs[k][1]], [before, len(dims[d][0]), after])
    builder.set_dims(node, tuple(dims))

    def write(twin: Node, remaining: RemainingPositions) -> None:
        new = list(amounts)
        for k, (before, after) in runs.items():
            new[2 * k : 2 * k + 2] = [remaining.count(before), remaining.count(after)]
        set_argument(twin, "pad", new)

    if runs:
        builder.rewrite_on_removal(node, write)


def index(builder: Builder, node: Node) -> None:
    """`x[:, positions]`: constant positions along one dimension are renumbered; otherwise what is indexed is fixed."""
    args = arguments(node)
    source, indices = builder.dims(args["self"]), args["indices"]
    where = [d for d, positions in enumerate(indices) if positions is not None]
    if any(builder.dtype(indices[d]) in (torch.bool, torch.uint8) for d in where):
        raise NotUnderstood("it is indexed by a mask")
    builder.fix(node, [expr for d in where for expr in builder.dims(indices[d])], "it holds positions")
    if len(where) == 1 and len(builder.shape(indices[where[0]])) == 1:
        _pick(builder, node, where[0], _values(builder, indices[where[0]]))
        return
    builder.fix(node, [source[d] for d in where], "positions of it are taken by number")
    taken = (FIXED,) * max(len(builder.shape(indices[d])) for d in where)
    adjacent = where == list(range(where[0], where[-1] + 1))
    first = where[0] if adjacent else 0
    rest = [expr for d, expr in enumerate(source) if d not in where]
    builder.set_dims(node, (*rest[:first], *taken, *rest[first:]))


def index_select(builder: Builder, node: Node) -> None:
    """As `index`, along one dimension."""
    args = arguments(node)
    builder.fix(node, builder.dims(args["index"]), "it holds positions")
    _pick(builder, node, args["dim"] % len(builder.dims(args["self"])), _values(builder, args["index"]))


def gather(builder: Builder, node: Node) -> None:
    """Positions along one dimension, which is fixed; where the others are taken whole, they are the same."""
    args = arguments(node)
    source, positions = builder.dims(args["self"]), builder.dims(args["index"])
    d = args["dim"] % len(source)
    builder.fix(node, (source[d], positions[d]), "positions of it are taken by number")
    dims: list[Expr] = []
    for k, size in enumerate(builder.shape(args["index"])):
        if k != d and size == builder.shape(args["self"])[k]:
            dims.append(builder.unite(node, source[k], positions[k]))
        else:
            builder.fix(node, (source[k], positions[k]), "a part of it is taken")
            dims.append(FIXED)
    builder.set_dims(node, tuple(dims))


def flip(builder: Builder, node: Node) -> None:
    """Dimensions back to front."""
    args = arguments(node)
    dims = list(builder.dims(args["self"]))
    for d in reduced_dimensions(args["dims"], len(dims)):
        dims[d] = take(dims[d], slice(None, None, -1))
    builder.set_dims(node, tuple(dims))


def triangle(builder: Builder, node: Node) -> None:
    """`tril`, `triu`: a position stays or not by its number."""
    dims = builder.dims(arguments(node)["self"])
    builder.fix(node, dims[-2:], "its triangle is taken")
    builder.set_dims(node, (*dims[:-2], FIXED, FIXED))


def _values(builder: Builder, node: Node) -> Array | None:
    value = builder.constant(node)
    return None if value is None else value.cpu().numpy().astype(np.int64)


def _pick(builder: Builder, node: Node, d: int, positions: Array | None) -> None:
    """Put an output with some positions of dimension `d`, which is fixed where the positions are not constant.

    When channel 2 of `x[:, [3, 0, 2]]` goes, the channels 0, 1 and 3 are numbered anew as 0, 1 and 2 (`number` is
    `0 1 1 2`), and the op becomes `x[:, [2, 0]]`.
    """
    source = builder.dims(arguments(node)["self"])
    if positions is None or not source[d]:
        builder.fix(node, [source[d]], "positions of it are taken by number")
        builder.set_dims(node, (*source[:d], FIXED, *source[d + 1 :]))
        return
    picked = take(source[d], positions)
    builder.set_dims(node, (*source[:d], picked, *source[d + 1 :]))
    places = np.arange(len(source[d][0]))[positions]

    def write(twin: Node, remaining: RemainingPositions) -> None:
        number = np.cumsum(remaining.mask(source[d])) - 1
        _select_positions(twin, d, torch.from_numpy(number[places[remaining.mask(picked)]]))

    builder.rewrite_on_removal(node, write)


def _select_positions(twin: Node, d: int, positions: torch.Tensor) -> None:
    """Turn `twin` into an `index_select` of constant positions."""
    source, before = arguments(twin)["self"], twin.all_input_nodes
    module, name = twin.graph.owning_module, f"_positions_{twin.name}"
    assert module is not None
    module.register_buffer(name, positions)
    with twin.graph.inserting_before(twin):
        positions_node = twin.graph.get_attr(name)
    positions_node.meta["val"] = positions
    twin.target = aten.index_select.default
    twin.args, twin.kwargs = (source, d, positions_node), {}
    _erase_unused(before)


def _erase_unused(nodes: Sequence[Node]) -> None:
    for node in nodes:
        if not node.users and node.op != "placeholder":
            sources: list[Any] = node.all_input_nodes
            node.graph.erase_node(node)
            _erase_unused(sources)


RULES = {
    **dict.fromkeys("split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split".split(), cut),
    **dict.fromkeys(["slice", "narrow"], cut_out),
    **dict.fromkeys(["select", "unbind"], select),
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    "index": index,
    "index_select": index_select,
    "gather": gather,
    "flip": flip,
    **dict.fromkeys(["tril", "triu"], triangle),
}
