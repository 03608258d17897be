"""Which tensors carry a quantizer: the placement that ONNX Runtime and OpenVINO turn into int8 kernels.

A runtime runs an operator in integers when all its inputs are dequantized values and, for convolutions and sums, its
output is quantized again. So every activation that feeds a quantized layer or a sum of such is quantized once, where
it is produced; operators that only move values (flatten, max pooling, slicing, zero padding) are passed over, since
what they move stays on its grid. An activation function that the runtime computes together with the operator before it
carries the quantizer in place of that operator. What a linear layer gives stays in float unless something takes it as
integers: its kernels write float at no cost.

What differs between runtimes is in `QuantizeConfig.policy` (`IntegerPolicy`): where additions are computed, which
activation functions are fused, and whether what linear layers read is symmetric.

An example: a residual block between a convolution and a linear layer, `Q` where an activation is quantized.

    x Q -> conv -> relu Q -+-> conv_1 -> relu_1 Q -> conv_2 (Q) -> add -> relu_2 (Q) -> mean Q -> linear
                           +------------------------------------->

- `relu` carries the quantizer of `conv`, since the runtime computes both in one kernel: if its values go from 0 to 6,
  it is written as codes 0 to 255 with a scale of 6 / 255 = 0.0235 and the zero point 0. Between the two there is none.
- `mean` is quantized since the linear layer reads it; what that layer gives stays in float.
- ONNX Runtime adds in integers, in a kernel of its own. So both operands of `add` are quantized, `relu` (which is
  already) and `conv_2`, and the result, at `relu_2`: both `(Q)` are there.
- OpenVINO adds inside `conv_2`: what that one gives is never written, and is not quantized. The `(Q)` of `relu_2` is
  there.
- A runtime that adds in float (`additions="float"`) has the `(Q)` of `conv_2`, as for any convolution, and none at
  `relu_2`, which only `mean` reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from afina.graph.folding import fixed_nodes
from afina.techniques.quantize.config import Precision, QuantizeConfig, bits_of
from afina.techniques.quantize.edges import ActivationEdge, WeightEdge
from afina.techniques.quantize.grids import Granularity, Grid

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTED = {*CONVOLUTIONS, aten.linear.default}
NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default}
_ADDING = {aten.add.Tensor, aten.add_.Tensor}
_COMBINING = {*_ADDING, aten.mul.Tensor, aten.mul_.Tensor, aten.cat.default}
_AVERAGING = {
    aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default,
}  # fmt: skip
_CLIPPING = {
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default,
    aten.clamp.default, aten.clamp_min.default,
}  # fmt: skip
_CURVED = {
    aten.silu.default, aten.silu_.default, aten.hardswish.default, aten.hardswish_.default, aten.gelu.default,
    aten.sigmoid.default, aten.hardsigmoid.default, aten.leaky_relu.default, aten.leaky_relu_.default,
    aten.elu.default, aten.elu_.default, aten.tanh.default, aten.mish.default,
}  # fmt: skip
_MOVING = {
    aten.max_pool2d.default, aten.max_pool1d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.slice.Tensor, aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.dropout.default, aten.contiguous.default, aten.clone.default,
    aten.adaptive_max_pool2d.default,
}  # fmt: skip


def _unfolded_norm(*args: Any) -> Any:
    """Batch norm under a name that PT2E does not know."""
    return aten.batch_norm.default(*args)


def hide_norms(module: GraphModule) -> None:
    """Hide norms from PT2E that read a layer which others read too, until `Placement` annotates the graph.

    PT2E folds a norm into the layer before it whoever else reads that layer. In networks with the norm first,
    `conv -> norm -> relu -> ...` and `conv -> add`, the addition would then read the norm's outputs.
    """
    for node in module.graph.nodes:
        if node.target is aten.batch_norm.default and len(node.args[0].users) > 1:
            node.target = _unfolded_norm


@dataclass
class Placement(Quantizer):
    """Puts a `WeightEdge` on each weight and an `ActivationEdge` on each activation that a configuration quantizes.

    Attributes:
        config: The precisions of layers, and what the runtime likes.
        quantized: Names of the layers that are changed.
        skipped: Names of the layers that are not, with the reason.
        precisions: The integer type of each quantized activation, by its node.
        symmetric: The nodes of activations whose zero point is in the middle, where they are of both signs.
        fixed: The nodes that give the same for every image: a runtime computes them once, in float, when it loads.
    """

    config: QuantizeConfig
    quantized: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    precisions: dict[Node, str] = field(default_factory=dict)
    symmetric: set[Node] = field(default_factory=set)
    fixed: set[Node] = field(default_factory=set)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Show PT2E the norms again that `hide_norms` hid: it has folded the others by now."""
        for node in model.graph.nodes:
            if node.target is _unfolded_norm:
                node.target = aten.batch_norm.default
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Say for each node which of its inputs, and whether its output, are quantized and how."""
        self.fixed = fixed_nodes(model.graph)
        if self.config.policy.symmetric_inputs_of_linear_layers == "always":
            read = [node.args[0] for node in model.graph.nodes if node.target is aten.linear.default]
            self.symmetric = {self._folded_into(mover_source(source)) for source in read}
        blind = fixed_nodes(model.graph, sized=True)
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS and node.args[0] in blind:
                # OpenVINO loads none that computes positions for each image from codes; of linear layers it does.
                self.skipped[layer_name(node)] = "it reads the same for every image, which stays in float"
            elif node.target in WEIGHTED:
                self._annotate_weighted(node)
            elif node.target in TRANSPOSED:
                self.skipped[layer_name(node)] = "a transposed convolution has no integer kernel in the runtimes"
        for node in list(model.graph.nodes):
            if self._adds_in_integers and self._is_combined(node):
                self._annotate_combined(node)
        for node in model.graph.nodes:
            if node.target in _AVERAGING:
                self._annotate_average(node)
            elif self.config.policy.concatenated_channels_share_scale and node.target is aten.cat.default:
                self._annotate_joined(node)
        return model

    @property
    def _adds_in_integers(self) -> bool:
        return self.config.policy.additions != "float"

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation above is one that PT2E accepts."""

    def _annotate_weighted(self, node: Node) -> None:
        """Quantize a layer's weight, what it reads, and, of a convolution, what it gives; or note why not."""
        name, weight = layer_name(node), node.args[1]
        precision = self.config.precision(name)
        if not isinstance(weight, Node) or weight.op != "get_attr":
            self.skipped[name] = "its weight is computed, not stored"
            return
        if precision.weights == "fp32":
            self.skipped[name] = "asked to stay in float"
            return
        self.quantized.append(name)
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
        annotation.input_qspec_map[weight] = self._weight_spec(str(weight.target), precision)
        annotation._annotated = True
        source = node.args[0]
        if precision.activations == "none" or not isinstance(source, Node):
            return
        self._annotate_output(source, precision.activations)
        if node.target in CONVOLUTIONS and not _reaches_output(self._folded_into(node)):
            self._annotate_output(node, precision.activations)

    def _annotate_output(self, node: Node, precision: str) -> None:
        """Quantize what `node` gives; for an operator that only moves values, what its source gives."""
        node = mover_source(node)
        if node in self.fixed or not _is_float(node) or self._is_joined(node):
            return
        node = self._folded_into(node)
        earlier = self.precisions.get(node)
        if earlier is None or bits_of(earlier) < bits_of(precision):
            self.precisions[node] = precision
            annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
            annotation.output_qspec = self._activation_spec(node, precision)
            annotation._annotated = True
        if self._adds_in_integers and node.target in _AVERAGING and isinstance(node.args[0], Node):
            # What is averaged is mostly a last addition, which would otherwise be the one that stays in float.
            self._annotate_output(node.args[0], precision)

    def _annotate_combined(self, node: Node) -> None:
        """Quantize all operands of an addition, product or concatenation, in the finest precision of any of them."""
        sources = [mover_source(source) for source in _sources(node)]
        known = [self.precisions[source] for source in sources if source in self.precisions]
        precision = max(known, key=bits_of) if known else self.config.activations
        for source in sources:
            self._annotate_output(source, precision)

    def _annotate_average(self, node: Node) -> None:
        """Where the input of an averaging operator is quantized, its output is too."""
        source = mover_source(node.args[0])
        if source in self.precisions and node not in self.precisions and not _reaches_output(node):
            self._annotate_output(node, self.precisions[source])

    def _annotate_joined(self, node: Node) -> None:
        """Give concatenated channels one scale, where a layer with integer weights reads them, even in float.

        All of them have to be quantized already.
        """
        known = [self.precisions.get(mover_source(source)) for source in _sources(node)]
        precisions = [precision for precision in known if precision is not None]
        read = any(reader.target in WEIGHTED and layer_name(reader) in self.quantized for reader in _readers(node))
        if read and len(precisions) == len(known):
            self._annotate_output(node, max(precisions, key=bits_of))

    def _folded_into(self, node: Node) -> Node:
        """The activation function that follows `node` alone and is computed with it, or `node` itself."""
        users = list(node.users)
        folded = _CLIPPING if self.config.policy.fused_activation_functions == "clipping" else _CLIPPING | _CURVED
        if len(users) == 1 and users[0].target in folded and node.target not in folded:
            return users[0]
        return node

    def _is_joined(self, node: Node) -> bool:
        """Whether an addition alone reads the convolution `node`, and the runtime computes it inside that one."""
        policy = self.config.policy
        last = policy.additions == "in convolution"
        if not (last or policy.convolution_absorbs_every_addition):
            return False
        if node.target not in CONVOLUTIONS or len(node.users) != 1:
            return False
        (user,) = node.users
        if user.target not in _ADDING:
            return False
        possible = [source for source in _sources(user) if source.target in CONVOLUTIONS and len(source.users) == 1]
        # The last in the order of the graph, or the first operand.
        return node is (max(possible) if last else possible[0])

    def _is_combined(self, node: Node) -> bool:
        """Whether `node` adds, multiplies or joins activations of which at least one comes from a quantized layer."""
        if node.target not in _COMBINING or not _is_float(node):
            return False
        sources = _sources(node)
        if len(sources) < 2 or any(source in self.fixed for source in sources):
            return False
        known = [mover_source(source) in self.precisions for source in sources]
        return all(known) or (any(known) and any(self._feeds_quantized(user) for user in (node, *node.users)))

    def _feeds_quantized(self, node: Node) -> bool:
        """Whether a layer with integer activations reads `node`."""
        return any(
            user.target in WEIGHTED and self.config.precision(layer_name(user)).activations != "none"
            for user in node.users
        )

    def _weight_spec(self, name: str, precision: Precision) -> QuantizationSpecBase:
        half = HALVES.get(precision.weights)
        grid = Grid(8) if half else self.config.weight_grid(precision)
        granularity = Granularity.parse(self.config.granularity)
        return _spec(grid, WeightEdge.with_args(name=name, grid=grid, granularity=granularity, half=half))

    def _activation_spec(self, node: Node, precision: str) -> QuantizationSpecBase:
        grid = self.config.activation_grid(precision)
        power = self.config.power_of_two
        symmetric = node in self.symmetric
        return _spec(grid, ActivationEdge.with_args(name=node.name, grid=grid, power_of_two=power, symmetric=symmetric))


def is_layer(node: Node) -> bool:
    """Whether a node multiplies by a weight that can be quantized."""
    return node.target in WEIGHTED


def layer_name(node: Node) -> str:
    """Name of the layer that `node` computes, as in the user's model: that of its weight without `.weight`."""
    weight = node.args[1] if len(node.args) > 1 else None
    if isinstance(weight, Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return node.name


def _spec(grid: Grid, edge: Callable[..., Any]) -> QuantizationSpec:
    return QuantizationSpec(dtype=grid.dtype, quant_min=grid.low, quant_max=grid.high, observer_or_fake_quant_ctr=edge)


def _sources(node: Node) -> list[Node]:
    """The operands of an addition or product, or the tensors that are concatenated."""
    first = node.args[0]
    parts = first if isinstance(first, (list, tuple)) else node.args[:2]
    return [part for part in parts if isinstance(part, Node)]


def mover_source(node: Any) -> Any:
    """The node whose values operators that only move values pass on: `flatten(max_pool2d(x))` is `x` moved.

    Anything else, also what is no node, is returned as it is.
    """
    while isinstance(node, Node) and _moves(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _readers(node: Node) -> Iterator[Node]:
    """The nodes that read a node, directly or behind operators that move or clip values."""
    for user in node.users:
        if _moves(user) or user.target in _CLIPPING:
            yield from _readers(user)
        else:
            yield user


def _moves(node: Node) -> bool:
    """Whether an operator only moves the values of its first input, or picks some, so that they stay on their grid."""
    return node.target in _MOVING or (node.target is aten.pad.default and _pads_on_grid(node))


def _pads_on_grid(node: Node) -> bool:
    """Whether a pad adds zeros, which every grid holds, or minus infinity, which max pooling never picks."""
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return bool(mode == "constant" and value in (None, 0, 0.0, float("-inf")))


def _reaches_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
