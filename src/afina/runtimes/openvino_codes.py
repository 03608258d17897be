"""Weights in an OpenVINO model, stored in the narrowest type that loses nothing; the plugin widens them to compile.

Besides, parts of a quantized model that the plugin would compute in float, slowly, or wrong are written otherwise.

Measured with OpenVINO 2026.4: a convolution whose codes are stored in 4, 3 or 2 bits is compiled to the same int8
kernel, at the same speed, as one whose codes are stored in 8.
"""

from typing import Any

import numpy as np

_FEWEST = 256  # constants of fewer elements are not worth the nodes that undo them
_CURVES = (
    "Clamp",
    "Elu",
    "Gelu",
    "HSigmoid",
    "HSwish",
    "Mish",
    "PRelu",
    "Relu",
    "Sigmoid",
    "SoftPlus",
    "Swish",
    "Tanh",
)


def drop_zero_offsets(model: Any) -> None:
    """Take out subtractions of zero points that are all zero: `(codes - 0) * scale` becomes `codes * scale`.

    The converter does so for a zero point that one layer has for itself, but not for one that layers share; and with a
    subtraction before its weights a layer is computed in float.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Subtract" or not _is_zero(node.input_value(1).get_node()):
            continue
        source = node.input_value(0)
        if source.get_partial_shape() == node.get_output_partial_shape(0):  # it does not broadcast the value either
            node.output(0).replace(source)


def _is_zero(node: Any) -> bool:
    """Whether a constant, behind operators that keep its values, holds nothing but zeros."""
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Broadcast"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and not np.any(node.data)


def flatten_linears(model: Any) -> None:
    """Give integer linear layers over images `[N, H, W, C]` their rows as `[N, H * W, C]`.

    On three dimensions the plugin adds the bias inside the layer, on four it does so in a pass of its own: 5% of the
    time of a ConvNeXt, measured with OpenVINO 2026.4. The reshapes cost nothing.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        bias = _bias_of(node)
        if bias is None:
            continue
        addition, vector = bias
        rows, shape = node.input_value(0), addition.get_output_partial_shape(0)
        if any(size.is_dynamic for size in list(shape)[1:]):
            continue
        channels = rows.get_partial_shape()[3].get_length()
        node.input(0).replace_source_output(opset13.reshape(rows, np.array([0, -1, channels]), True).output(0))
        constant = vector.get_source_output().get_node()
        vector.replace_source_output(opset13.constant(constant.data.reshape(1, 1, -1)).output(0))
        targets = list(addition.output(0).get_target_inputs())
        restored = opset13.reshape(addition, np.array([0, *(size.get_length() for size in list(shape)[1:])]), True)
        for target in targets:
            target.replace_source_output(restored.output(0))
    model.validate_nodes_and_infer_types()


def _bias_of(node: Any) -> tuple[Any, Any] | None:
    """The addition that alone reads an integer linear layer, and its input with the bias; None where there is none."""
    if node.get_type_name() != "MatMul" or node.input_value(0).get_node().get_type_name() != "FakeQuantize":
        return None
    rows, weight = (node.input_value(i).get_partial_shape() for i in range(2))
    if len(rows) != 4 or rows[3].is_dynamic or len(weight) != 2 or node.get_attributes()["transpose_a"]:
        return None
    readers = list(node.output(0).get_target_inputs())
    addition = readers[0].get_node()
    if len(readers) != 1 or addition.get_type_name() != "Add":
        return None
    vector = addition.input(1 - readers[0].get_index())
    sizes = (
        [size.get_length() for size in vector.get_partial_shape()] if vector.get_partial_shape().is_static else [0, 0]
    )
    constant = vector.get_source_output().get_node().get_type_name() == "Constant"
    return (addition, vector) if constant and all(size == 1 for size in sizes[:-1]) else None


def weigh_borders(model: Any) -> None:
    """Write average pools that count their padding as pools that leave it out, times a share; in quantized networks.

    The plugin moves the zero point of a quantized input behind the pool, and forgets that the padding has one too: the
    lowest value of the range stands for its zeros. So the pool leaves the padding out, and its output is multiplied by
    the share of each window that lies on the image: of a 3 x 3 window in a corner, 4 of 9 pixels, so that the mean of
    the 4 becomes their sum divided by 9, as it was. (OpenVINO 2026.4; a `Pad` before the pool is fused into it, and
    goes wrong too.)
    """
    from openvino import opset13, opset14

    operators = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in operators):
        return
    for node in operators:
        options = node.get_attributes() if node.get_type_name() == "AvgPool" else {}
        if options.get("exclude-pad", True) or not any([*options["pads_begin"], *options["pads_end"]]):
            continue
        sizes = list(node.input_value(0).get_partial_shape())[2:]
        if any(size.is_dynamic for size in sizes):
            continue
        ones = opset13.parameter([1, 1, *(size.get_length() for size in sizes)], np.float32)
        names = ("strides", "pads_begin", "pads_end", "kernel")
        like = opset14.avg_pool(
            ones, *(list(options[name]) for name in names), False, options["rounding_type"], options["auto_pad"]
        )
        share = opset13.constant(_evaluate(like, ones))
        targets = list(node.output(0).get_target_inputs())
        node.set_attribute("exclude-pad", True)
        weighed = opset13.multiply(node, share)
        for target in targets:
            target.replace_source_output(weighed.output(0))
    model.validate_nodes_and_infer_types()


def _evaluate(node: Any, ones: Any) -> Any:
    """The output of an operator for a batch of one image of ones; `ones` is its parameter."""
    import openvino

    compiled = openvino.Core().compile_model(openvino.Model([node], [ones]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([np.ones(ones.get_output_shape(0), np.float32)])[0])


def slice_before_strides(model: Any) -> None:
    """Let strided 1x1 convolutions over integer codes skip pixels before them, where others read all of those pixels.

    The plugin moves such a stride in front of the 1x1 convolution before, which it must not where another reads that
    too: with weights that are still codes it forgets the stride instead. (OpenVINO 2026.4, HaloNet's queries.)
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if not _is_one_by_one(node) or node.input_value(1).get_node().get_type_name() == "Constant":
            continue
        strides, source = list(node.get_attributes()["strides"]), node.input_value(0)
        if (
            max(strides) == 1
            or len(source.get_target_inputs()) == 1
            or not _is_one_by_one(_before_curves(source.get_node()))
        ):
            continue
        axes = np.arange(2, 2 + len(strides))
        start, end = np.zeros(len(strides), np.int64), np.full(len(strides), np.iinfo(np.int64).max)
        every_nth = opset13.slice(source, start, end, np.array(strides), axes)
        node.input(0).replace_source_output(every_nth.output(0))
        node.set_attribute("strides", [1] * len(strides))
    model.validate_nodes_and_infer_types()


def _is_one_by_one(node: Any) -> bool:
    """Whether a node is a 1x1 convolution without padding."""
    if node.get_type_name() != "Convolution":
        return False
    kernel = node.input_value(1).get_partial_shape()
    return all(size.is_static and size.get_length() == 1 for size in list(kernel)[2:]) and not any(
        [*node.get_attributes()["pads_begin"], *node.get_attributes()["pads_end"]]
    )


def _before_curves(node: Any) -> Any:
    """The node in front of activation functions and additions of a bias, which change pixels one by one."""
    while node.get_type_name() in _CURVES or _adds_constant(node):
        node = node.input_value(0).get_node()
    return node


def _adds_constant(node: Any) -> bool:
    return bool(node.get_type_name() == "Add" and node.input_value(1).get_node().get_type_name() == "Constant")


def store_narrow(model: Any) -> None:
    """Store integer codes in 6, 4, 3 or 2 bits where they fit, and float weights in 16 where that is exact."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_size() != 1:
            continue
        if np.prod(node.output(0).shape) < _FEWEST:
            continue
        kind = node.get_element_type().get_type_name()
        narrow = _narrow_codes(node.data) if kind == "i8" else _halves(node.data) if kind == "f32" else None
        if narrow is not None:
            _replace(node, narrow)


def _replace(node: Any, narrow: Any) -> None:
    """Let all readers of a constant read `narrow` instead."""
    output = node.output(0)
    for target in list(output.get_target_inputs()):
        if target.get_node() is not narrow:
            target.replace_source_output(narrow.output(0))


def _narrow_codes(data: Any) -> Any:
    """Codes in few bits as `unsigned codes - middle`, or None where they need all 8 bits.

    Codes `[-7 0 7]` fit in 4 bits, whose middle is 8: stored are `[1 8 15]` as u4, and 8 is subtracted behind them.
    """
    from openvino import Type, opset13

    low, high = int(data.min()), int(data.max())
    for kind, bits in ((Type.u2, 2), (Type.u3, 3), (Type.u4, 4), (Type.u6, 6)):
        middle = 2 ** (bits - 1)
        if low >= -middle and high < middle:
            codes = opset13.constant((data.astype(np.int16) + middle).astype(np.uint8), dtype=kind)
            return opset13.subtract(opset13.convert(codes, "i8"), opset13.constant(np.int8(middle)))
    return None


def _halves(data: Any) -> Any:
    """A 16-bit constant with a conversion behind it, or None where that would change a value."""
    from openvino import Type, opset13

    if np.array_equal(data.astype(np.float16).astype(np.float32), data):
        return opset13.convert(opset13.constant(data.astype(np.float16)), "f32")
    if not np.any(data.view(np.uint32) & 0xFFFF):
        import ml_dtypes

        return opset13.convert(opset13.constant(data.astype(ml_dtypes.bfloat16), dtype=Type.bf16), "f32")
    return None
