"""Which tensors carry a quantizer: the placement that ONNX Runtime and OpenVINO turn into int8 kernels.

A runtime runs an operator in int8 when all its inputs are dequantized values and its output is quantized again.
So every activation that feeds a convolution, a linear layer or an addition is quantized once, where it is
produced, and operators that only move values (flatten, max pooling, slicing, zero padding) hand their input's
scale on, so that the runtime can drop the pair around them. An activation function that the runtime folds into
the operator before it (ReLU and its clipped forms) carries the quantizer in place of that operator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from afina.techniques.quantize.observers import HistogramObserver

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
WEIGHTED = {*CONVOLUTIONS, aten.linear.default}
_COMBINING = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.cat.default}
_AVERAGING = {
    aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default,
}  # fmt: skip
_FOLDED = {
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default,
    aten.clamp.default, aten.clamp_min.default,
}  # fmt: skip
_MOVING = {
    aten.max_pool2d.default, aten.max_pool1d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.slice.Tensor, aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.dropout.default, aten.contiguous.default, aten.clone.default,
    aten.adaptive_max_pool2d.default,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor is written in: `low`..`high`, stored in `dtype`."""

    dtype: torch.dtype
    low: int
    high: int


@dataclass
class Int8Quantizer(Quantizer):
    """Weights absmax per output channel, activations affine per tensor.

    Args:
        weight_bits: 8, or 7 on processors whose int8 products saturate (see `Runtime.weight_bits`).
        skip: Names of layers (as in the user's model) that stay in float.
    """

    weight_bits: int = 8
    skip: frozenset[str] = frozenset()
    quantized: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.target in WEIGHTED and self._takes(node):
                self._annotate_weighted(node)
            elif node.target in TRANSPOSED:
                self.skipped[layer_name(node)] = "a transposed convolution has no int8 kernel in the runtimes"
        for node in list(model.graph.nodes):
            if _is_combined(node):
                for source in _sources(node):
                    self._annotate_output(source)
        # In graph order, so that a chain of moving operators hands one scale all the way down.
        for node in model.graph.nodes:
            self._annotate_follower(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation above is one that PT2E accepts."""

    def _takes(self, node: Node) -> bool:
        name = layer_name(node)
        weight = node.args[1]
        if not isinstance(weight, Node) or weight.op != "get_attr":
            self.skipped[name] = "its weight is computed, not stored"
        elif name in self.skip:
            self.skipped[name] = "asked to stay in float"
        else:
            self.quantized.append(name)
            return True
        return False

    def _annotate_weighted(self, node: Node) -> None:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, Node)
        assert isinstance(weight, Node)
        self._annotate_output(source)
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
        annotation.input_qspec_map[weight] = self._weight_spec()
        annotation._annotated = True
        last = _folded_into(node)
        if not _reaches_output(last):
            self._annotate_output(last)

    def _annotate_output(self, node: Node) -> None:
        """Quantize what `node` gives; for an operator that only moves values, what its source gives."""
        while _moves(node) and isinstance(node.args[0], Node):
            node = node.args[0]
        if node.op == "get_attr" or not _is_float(node):
            return
        node = _folded_into(node)
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
        if annotation.output_qspec is None:
            annotation.output_qspec = self._activation_spec()
            annotation._annotated = True
        if node.target in _AVERAGING and isinstance(node.args[0], Node):
            # What is averaged is mostly a last addition, which would otherwise be the one that stays in float.
            self._annotate_output(node.args[0])

    def _annotate_follower(self, node: Node) -> None:
        """Where the input of a moving or averaging operator is quantized, its output is too."""
        if not (_moves(node) or node.target in _AVERAGING) or _reaches_output(node):
            return
        source = node.args[0]
        given = source.meta.get(Q_ANNOTATION_KEY) if isinstance(source, Node) else None
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
        if given is None or given.output_qspec is None or annotation.output_qspec is not None:
            return
        shared = SharedQuantizationSpec(source)
        annotation.output_qspec = shared if _moves(node) else self._activation_spec()
        if _moves(node):
            annotation.input_qspec_map[source] = shared
        annotation._annotated = True

    def _weight_spec(self) -> QuantizationSpecBase:
        half = 2 ** (self.weight_bits - 1)
        grid = Grid(torch.int8, -half + 1, half - 1)
        observer = PerChannelMinMaxObserver.with_args(eps=2**-20)
        return _spec(grid, observer, qscheme=torch.per_channel_symmetric, ch_axis=0)

    def _activation_spec(self) -> QuantizationSpecBase:
        return _spec(Grid(torch.uint8, 0, 255), HistogramObserver, qscheme=torch.per_tensor_affine)


def layer_name(node: Node) -> str:
    """Name of the layer that `node` computes, as in the user's model: that of its weight without `.weight`."""
    weight = node.args[1] if len(node.args) > 1 else None
    if isinstance(weight, Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return node.name


def _spec(grid: Grid, observer: Callable[..., Any], **options: Any) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=grid.dtype,
        quant_min=grid.low,
        quant_max=grid.high,
        observer_or_fake_quant_ctr=observer,
        **options,
    )


def _folded_into(node: Node) -> Node:
    """The clipping activation that follows `node` alone, or `node` itself."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in _FOLDED and node.target not in _FOLDED:
        return users[0]
    return node


def _sources(node: Node) -> list[Node]:
    first = node.args[0]
    parts = first if isinstance(first, (list, tuple)) else node.args[:2]
    return [part for part in parts if isinstance(part, Node)]


def _is_combined(node: Node) -> bool:
    """Whether `node` adds, multiplies or joins activations of which at least one is computed by a quantized layer."""
    if node.target not in _COMBINING or not _is_float(node):
        return False
    sources = _sources(node)
    if len(sources) < 2 or any(source.op == "get_attr" for source in sources):
        return False
    if all(_has_output(source) for source in sources):
        return True
    return any(_has_output(source) for source in sources) and any(_feeds_weighted(user) for user in [node, *node.users])


def _has_output(node: Node) -> bool:
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    return annotation is not None and annotation.output_qspec is not None


def _feeds_weighted(node: Node) -> bool:
    return any(user.target in WEIGHTED for user in node.users)


def _moves(node: Node) -> bool:
    return node.target in _MOVING or (node.target is aten.pad.default and _pads_with_zero(node))


def _pads_with_zero(node: Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return bool(mode == "constant" and value in (None, 0, 0.0))


def _reaches_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
