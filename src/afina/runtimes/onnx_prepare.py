"""A captured graph as torch.onnx can translate it: what ONNX lacks is written with the ops that it has."""

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from afina.errors import Unsupported
from afina.graph.folding import fixed_nodes, is_code, store
from afina.graph.propagate import current_values
from afina.graph.recurrent import LSTM
from afina.graph.stored import is_stored
from afina.graph.writing import remove_writes

if TYPE_CHECKING:
    from afina.graph import Network

_aten = torch.ops.aten
_MATMUL = _aten.matmul.default
_ATTENTION = _aten.scaled_dot_product_attention.default
# Ops that torch.onnx has to break up, and that models apply to weights alone.
_LACKING = frozenset(
    (
        *(_aten._upsample_bicubic2d_aa.vec, _aten.meshgrid.indexing, _aten.batch_norm.default),
        *(_aten.reshape_as.default, _aten.to.device),
    )
)
_MATRICES = 4  # dimensions that torch.onnx translates attention of: batch, heads, tokens, features


def for_onnx(network: "Network") -> "Network":
    """The network in ops that torch.onnx can translate: the same answers and weights; `network` is left as it is.

    Raises:
        Unsupported: a layer has no form in ONNX.
    """
    _refuse_projections(network)
    return _with_plain_attention(_with_clamps(_with_plain_pooling(_with_stored_results(_with_stored_copies(network)))))


def _refuse_projections(network: "Network") -> None:
    """Raise `Unsupported` for an LSTM whose output is a projection of its cells, which torch.onnx gets wrong."""
    for node in network.graph.nodes:
        if node.target is LSTM:
            output, cells = (state.meta["val"].shape[-1] for state in node.args[1])
            if output != cells:
                raise Unsupported(
                    f"An LSTM that projects {cells} cells to {output} outputs (proj_size) has no form in ONNX.",
                    fix="Use one without proj_size and a linear layer behind it, or keep the network as .pt2.",
                )


def _with_stored_copies(network: "Network") -> "Network":
    """The network, with weights that are copied and written into stored as they are after that."""
    copies = _aten.clone.default
    if not any(node.target is copies and is_stored(node.args[0]) for node in network.graph.nodes):
        return network
    twin = network.copy(network.tensors)
    remove_writes(twin.module, frozen=True)
    return twin


def _with_stored_results(network: "Network") -> "Network":
    """The network, with the results of ops that ONNX lacks stored, where these read nothing but weights.

    Position embeddings are resampled, coordinates spread over a grid, weights standardized by a batch norm.
    """
    if not _lacking(network):
        return network
    twin = network.copy(network.tensors)
    with twin.inference():
        for node in _lacking(twin):
            store(twin, node)
    twin.graph.eliminate_dead_code()
    twin.module.recompile()
    return twin


def _lacking(network: "Network") -> list[Node]:
    """Nodes that torch.onnx would have to break up, that give a tensor, and that read weights alone, none in codes."""
    nodes = [node for node in network.graph.nodes if node.target in _LACKING or _is_part(node)]
    fixed = fixed_nodes(network.graph, lambda node: not is_code(network, node)) if nodes else set()
    return [node for node in nodes if node in fixed and isinstance(node.meta["val"], torch.Tensor)]


def _is_part(node: Node) -> bool:
    """Whether a node picks one of several tensors that an op of `_LACKING` gives."""
    source: Any = node.args[0] if node.args else None
    return node.target is operator.getitem and source.target in _LACKING


def _with_plain_pooling(network: "Network") -> "Network":
    """The network, with means over areas of more than one size as products with a matrix for each dimension.

    `[H, W]` pixels become `[h, w]` means as `rows @ x @ columns`, with `rows` of `[h, H]` and `columns` of `[W, w]`
    (see `_means`). torch.onnx gathers the pixels of each area instead, in dozens of ops.
    """
    pooled = [node for node in network.graph.nodes if _is_pooled(node)]
    values = current_values(network.module) if pooled else {}
    sizes = {node.name: list(zip(values[node.args[0]].shape[-2:], node.args[1], strict=True)) for node in pooled}
    uneven = {name: pairs for name, pairs in sizes.items() if any(size % areas for size, areas in pairs)}
    if not uneven:
        return network
    twin = network.copy(network.tensors)
    for node in [node for node in twin.graph.nodes if node.name in uneven]:
        x: Any = node.args[0]
        rows, columns = (_means(*pair).to(network.device) for pair in uneven[node.name])
        for part, matrix in (("rows", rows), ("columns", columns.t().contiguous())):
            twin.module.register_buffer(f"{node.name}_{part}", matrix)
        with twin.graph.inserting_before(node):
            left, right = (twin.graph.get_attr(f"{node.name}_{part}") for part in ("rows", "columns"))
            narrow = twin.graph.call_function(_MATMUL, (x, right))
            small = twin.graph.call_function(_MATMUL, (left, narrow))
        node.replace_all_uses_with(small)
        twin.graph.erase_node(node)
    twin.module.recompile()
    return twin


def _is_pooled(node: Node) -> bool:
    """Whether a node takes means over areas, not over all pixels."""
    return node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1]) != [1, 1]  # type: ignore[arg-type]


def _means(size: int, areas: int) -> torch.Tensor:
    """The matrix `[areas, size]` that takes means over areas that cover a dimension evenly, as adaptive pooling does.

    Example:
        >>> _means(5, 3)
        tensor([[0.5000, 0.5000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.3333, 0.3333, 0.3333, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.5000, 0.5000]])
    """
    matrix = torch.zeros(areas, size)
    for area in range(areas):
        start, end = area * size // areas, -(-(area + 1) * size // areas)
        matrix[area, start:end] = 1 / (end - start)
    return matrix


def _with_clamps(network: "Network") -> "Network":
    """The network, with a clamp in front of each quantization whose range is narrower than its type.

    QuantizeLinear saturates to the range of the type (0..255), and knows no other. Codes 0..15 of scale 0.1 and zero
    point 5 stand for -0.5 to 1.0, so values are clamped to that. The clamp keeps the answer right; it costs the fusion
    of that layer, so quantize activations to the full range.
    """

    def is_narrow(node: torch.fx.Node) -> bool:
        if str(node.target) != "quantized_decomposed.quantize_per_tensor.default":
            return False
        *_, low, high, dtype = node.args
        assert isinstance(dtype, torch.dtype)
        limits = torch.iinfo(dtype)
        return (low, high) != (limits.min, limits.max)

    if not any(is_narrow(node) for node in network.graph.nodes):
        return network
    twin = network.copy(network.tensors)
    for node in [node for node in twin.graph.nodes if is_narrow(node)]:
        source, scale, zero, low, high = node.args[:5]
        with twin.graph.inserting_before(node):
            bounds = ((low - zero) * scale, (high - zero) * scale)
            clamp = twin.graph.call_function(_aten.clamp.default, (source, *bounds))
        clamp.meta = dict(source.meta)
        node.update_arg(0, clamp)
    twin.module.recompile()
    return twin


def _with_plain_attention(network: "Network") -> "Network":
    """The network, with attention that torch.onnx can translate.

    A copy follows each attention: torch.onnx decides by the strides that one kernel gives whether a reshape needs a
    copy, and then decomposes attention to ops that give others. In ONNX a copy is nothing. Attention over more than
    batch and heads (windows) is written out as matrix products and a softmax. Views become reshapes, which fit all
    strides.
    """
    if not any(node.target is _ATTENTION for node in network.graph.nodes):
        return network
    twin = network.copy(network.tensors)
    for node in [node for node in twin.graph.nodes if node.target is _ATTENTION]:
        if node.args[0].meta["val"].ndim != _MATRICES and _write_out(node):
            continue
        whole: dict[str, Any] = {"memory_format": torch.contiguous_format}
        with twin.graph.inserting_after(node):
            copy = twin.graph.call_function(_aten.clone.default, (node,), whole)
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    for node in twin.graph.nodes:
        if node.target is _aten.view.default:  # it fitted the strides that the kernel gave, not those of a copy
            node.target = _aten.reshape.default
    twin.module.recompile()
    return twin


def _write_out(node: Node) -> bool:
    """Write attention out as `softmax(q k^T * scale + mask) v`, and say whether that was possible.

    It is where there is no dropout, no mask of booleans, no causal order, and no heads that are shared.
    """
    call = node.graph.call_function
    by_place = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args, strict=False))
    a: dict[str, Any] = {**by_place, **node.kwargs}
    mask = a.get("attn_mask")
    boolean = mask is not None and mask.meta["val"].dtype == torch.bool
    if a.get("is_causal") or a.get("dropout_p") or a.get("enable_gqa") or boolean:
        return False
    scale = a.get("scale") or 1 / math.sqrt(int(a["query"].meta["val"].shape[-1]))
    with node.graph.inserting_before(node):
        query = call(_aten.mul.Tensor, (a["query"], scale))
        scores = call(_MATMUL, (query, call(_aten.transpose.int, (a["key"], -2, -1))))
        if mask is not None:
            scores = call(_aten.add.Tensor, (scores, mask))
        mixed = call(_MATMUL, (call(_aten.softmax.int, (scores, -1)), a["value"]))
    node.replace_all_uses_with(mixed)
    node.graph.erase_node(node)
    return True
