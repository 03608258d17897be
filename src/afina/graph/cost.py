"""The cost of a network, exactly and from its graph alone: parameters, multiply-accumulates, bytes, activations."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from afina.graph.network import Network
from afina.graph.ops import arguments, module_path, op_name
from afina.graph.propagate import fake_values
from afina.types import LayerRow


@dataclass(frozen=True)
class Cost:
    """Sums over a network, for one image.

    Attributes:
        parameters: Numbers held in weights, biases and norms (running statistics are not counted).
        macs: Multiply-accumulates of convolutions, linear layers and matrix products.
        bytes: What the parameters take at the precision that each is held in.
        peak_activations: Bytes; the largest sum of activations alive at once, run in the order of the graph.
    """

    parameters: int
    macs: int
    bytes: int
    peak_activations: int


def cost_of(network: Network) -> Cost:
    """The cost of a network for one image.

    Raises:
        Unsupported: the shapes in the graph depend on the values of the data.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> cost_of(capture(module, spec, TaskSpec("classification", ("cat", "dog"))))
        Cost(parameters=130, macs=128, bytes=520, peak_activations=264)
    """
    values = _values(network)
    rows = list(_rows(network, values))
    return Cost(
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        bytes=sum(row.bytes for row in rows),
        peak_activations=_peak(network, values),
    )


def layer_rows(network: Network, original: Network | None = None) -> tuple[LayerRow, ...]:
    """One row for each layer that holds weights or multiplies, in the order of the graph.

    Args:
        network: Any network, also one with int8 weights.
        original: The network that `network` was pruned from. With it, `kept` of a layer that has fewer outputs now is
            their number now and before.
    """
    rows = tuple(_rows(network, _values(network)))
    if original is None:
        return rows
    before = {row.name: row for row in layer_rows(original)}
    return tuple(_with_kept(row, before.get(row.name)) for row in rows)


def layer_of(node: Node) -> str:
    """Name of the layer that a node computes, as in the user's model; of a node without weights, its module's."""
    sources = _weights(node) if isinstance(node.target, torch._ops.OpOverload) else node.all_input_nodes
    return _layer_name(node, [source for source in map(_stored_source, sources) if source is not None])


def float_name(dtype: torch.dtype) -> str:
    """`fp32` for `torch.float32`."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def macs_by_weight(network: Network) -> tuple[dict[str, float], float]:
    """Multiply-accumulates for one image, by the name of the weight, and the sum of those without a weight.

    Products of two activations, as in attention, have no weight.
    """
    values = _values(network)
    macs_of: dict[str, float] = {}
    rest = 0.0
    for node in network.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        stored = [
            source for source in map(_stored_source, _weights(node)) if source is not None and values[source].ndim > 1
        ]
        if stored:
            macs_of[str(stored[0].target)] = macs_of.get(str(stored[0].target), 0.0) + _macs(node, values)
        else:
            rest += _macs(node, values)
    return macs_of, rest


def _values(network: Network) -> dict[Node, Any]:
    with network.inference():
        return fake_values(network.module, (network.traced_batch(1), *network.input.shape))


def _with_kept(row: LayerRow, before: LayerRow | None) -> LayerRow:
    if before is None or row.kind != before.kind or row.output == before.output or not row.parameters:
        return row
    channel = -1 if row.kind == "linear" else 0
    widths = (row.output[channel], before.output[channel])
    return LayerRow(**{**vars(row), "kept": widths}) if widths[0] < widths[1] else row


def _rows(network: Network, values: dict[Node, Any]) -> Iterator[LayerRow]:
    """One row for each node that multiplies or reads weights; a weight that is read twice counts in the first row."""
    counted: set[str] = set()
    for node in network.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if op_name(node).startswith(("dequantize", "quantize", "choose_qparams")) or _stored_source(node) is not None:
            continue  # what a weight passes through on its way is not a layer
        stored = [source for source in (_stored_source(n) for n in _weights(node)) if source is not None]
        new = [source for source in dict.fromkeys(stored) if str(source.target) not in counted]
        macs = _macs(node, values)
        if not macs and not new:
            continue
        counted.update(str(source.target) for source in new)
        tensors = [values[source] for source in new]
        first = values[stored[0]] if stored else values[node]
        yield LayerRow(
            name=layer_of(node),
            kind=_kind(node, bool(macs)),
            macs=macs,
            parameters=sum(t.numel() for t in tensors),
            bytes=sum(_bytes(source, values) for source in new),
            output=_output_shape(values[node]),
            precision=_precision(first.dtype, _bits(stored[0]) if stored else None),
        )


def _bytes(source: Node, values: dict[Node, Any]) -> int:
    """Bytes of a stored tensor at its precision; of codes in their bits, with the bytes of their scales."""
    tensor, dequantization = values[source], _dequantization(source)
    if dequantization is None:
        return int(tensor.numel() * tensor.element_size())
    scale = dequantization.args[1]
    scales = values[scale].numel() * values[scale].element_size() if isinstance(scale, Node) else 0
    return math.ceil(int(tensor.numel()) * (_bits(source) or 8) / 8) + int(scales)


def _dequantization(source: Node) -> Node | None:
    """The node that dequantizes stored codes."""
    return next((user for user in source.users if op_name(user).startswith("dequantize")), None)


def _bits(source: Node) -> int | None:
    """Bits that stored codes need, from the limits that their dequantization notes; None where there are no codes."""
    dequantization = _dequantization(source)
    if dequantization is None:
        return None
    named = arguments(dequantization)
    low, high = int(named["quant_min"]), int(named["quant_max"])
    signed = low < 0
    return next(
        bits for bits in (2, 3, 4, 5, 6, 8, 16, 32) if high < 2 ** (bits - signed) and low >= -(2 ** (bits - 1))
    )


def _weights(node: Node) -> Iterable[Node]:
    """The inputs of a node that can be weights: not the running statistics of a norm."""
    named = arguments(node)
    if "running_mean" in named:
        return [named[name] for name in ("weight", "bias") if isinstance(named[name], Node)]
    return node.all_input_nodes


def _stored_source(node: Node) -> Node | None:
    """The `get_attr` node behind a weight, also where it passes through a dequantization, a cast or a view."""
    while node.op == "call_function" and (op_name(node) in _THROUGH or op_name(node).startswith("dequantize")):
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" else None


def _layer_name(node: Node, stored: list[Node]) -> str:
    """The owner of the weight in the user's model; of folded int8 weights, the module that the op came from."""
    for source in stored:
        owner, _, leaf = str(source.target).rpartition(".")
        if owner:
            return owner
        if not leaf.startswith("_"):
            return leaf
    return module_path(node) or node.name


def _kind(node: Node, multiplies: bool) -> str:
    name = op_name(node)
    if multiplies:
        return {"scaled_dot_product_attention": "attention"}.get(name, name)
    return name if "norm" in name or name == "prelu" else "parameter"


def _precision(dtype: torch.dtype, bits: int | None) -> str:
    return float_name(dtype) if bits is None else f"int{bits}"


def _output_shape(value: Any) -> tuple[int, ...]:
    tensor = value if isinstance(value, Tensor) else value[0]
    return tuple(int(size) for size in tensor.shape[1:])


def _macs(node: Node, values: dict[Node, Any]) -> int:
    """Multiply-accumulates of one node."""
    name, a, out = op_name(node), arguments(node), values[node]
    if name.startswith("conv"):
        weight, image = values[a["weight"]], values[a["input"]]
        transposed = a.get("transposed", "transpose" in name)
        # Each number that comes in (transposed) or goes out (plain) meets one slice of the weight.
        return int((image if transposed else out).numel() * weight[0].numel())
    if name == "linear":
        return int(out.numel() * values[a["input"]].shape[-1])
    if name in ("mm", "bmm", "matmul"):
        return int(out.numel() * values[a["self"]].shape[-1])
    if name == "addmm":
        return int(out.numel() * values[a["mat1"]].shape[-1])
    if name == "baddbmm":
        return int(out.numel() * values[a["batch1"]].shape[-1])
    if name == "scaled_dot_product_attention":
        query, key, value = (values[a[n]] for n in ("query", "key", "value"))
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        return int(pairs * (query.shape[-1] + value.shape[-1]))
    if name == "einsum":
        return _einsum_macs(a["equation"], [values[n].shape for n in a["tensors"]])
    return 0


def _einsum_macs(equation: str, shapes: list[torch.Size]) -> int:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=False)
    }
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _peak(network: Network, values: dict[Node, Any]) -> int:
    """Bytes of the activations that are alive at the worst moment; views and in-place ops share their input's.

    For `a = conv(x)`, `b = relu(a)`, `c = x + b` with 100 bytes each, an activation lives from the node that makes it
    to the last node that reads it:

        node   alive   bytes
        x      x         100
        conv   x a       200
        relu   x a b     300
        add    x b c     300
    """
    order = list(network.graph.nodes)
    storage: dict[Node, Node] = {}
    for node in order:
        source = _shares(node)
        storage[node] = storage[source] if source is not None else node
    last: dict[Node, int] = {}
    for index, node in enumerate(order):
        for used in (node, *node.all_input_nodes):
            last[storage[used]] = index
    leaving: dict[int, list[Node]] = {}
    for owner, index in last.items():
        leaving.setdefault(index, []).append(owner)
    alive = peak = 0
    for index, node in enumerate(order):
        if storage[node] is node and node.op != "output":
            alive += _size(node, values)
        peak = max(peak, alive)
        alive -= sum(_size(owner, values) for owner in leaving.get(index, ()) if owner.op != "output")
    return peak


def _shares(node: Node) -> Node | None:
    """The node whose memory this one's output is in, if any."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    first = node.all_input_nodes[0]
    if not isinstance(node.target, torch._ops.OpOverload):
        return first
    returns = node.target._schema.returns
    aliased = bool(returns) and returns[0].alias_info is not None
    return first if aliased or op_name(node) in _IDENTITIES else None


def _size(node: Node, values: dict[Node, Any]) -> int:
    """Bytes of what a node gives; weights are not activations."""
    if node.op == "get_attr" or _stored_source(node) is not None:
        return 0
    value = values[node]
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


_THROUGH = frozenset(
    "to _to_copy detach alias view reshape slice t transpose permute unsqueeze expand contiguous".split()
)
# Ops that, in inference, return the memory of their input although their schema does not say so.
_IDENTITIES = frozenset("dropout feature_dropout alpha_dropout flatten reshape contiguous to".split())
