"""Integer weights and activations in an ONNX graph, written so that runtimes compute in integers and files are small.

ONNX Runtime makes an integer kernel of an operator whose inputs come straight from DequantizeLinear. It has kernels for
8 bits; weights of fewer bits are stored in the narrowest type that holds them and widened by a Cast, which a runtime
folds when it loads: the bytes of the narrow type, the speed of int8. Weights of operators that compute in float are
undone by plain arithmetic, which is folded at load too; a DequantizeLinear there would run in each inference, and one
with blocks of 4 bits would become MatMulNBits, which on the 197 tokens of a vision transformer takes 1.6 times as long
as the folded float product, and rounds its input to 8 bits besides (ONNX Runtime 1.32, default session).

A linear layer with weights of 4 bits `[outputs, inputs]`, as torch.onnx exports it and as it is written:

    codes int8 -> DequantizeLinear -> Transpose -+          codes^T int4 -> Cast int8 -> DequantizeLinear -+
    x -> QuantizeLinear -> DequantizeLinear ----> Gemm      x -> QuantizeLinear -> DequantizeLinear ------> Gemm
    bias float ----------------------------------+          bias int32 -> DequantizeLinear ----------------+

and where `x` is float: `codes^T int4 -> Cast float -> Mul scale -> Gemm`.
"""

from typing import TYPE_CHECKING, Any

from afina.runtimes.onnx_edit import constant, new_constant, replace

if TYPE_CHECKING:
    import onnx_ir as ir

# The opsets that first have the types.
OPSET_16_BITS, OPSET_4_BITS, OPSET_2_BITS = 21, 21, 25
_MOST_STEPS = 2**31 - 1
# Operators that only move values of their first input (or pick the largest): what was on a quantized grid stays on it.
_MOVES = frozenset("Slice Pad Reshape Flatten Squeeze Unsqueeze Transpose MaxPool Expand Identity".split())


def carry_quantization(graph: "ir.Graph") -> None:
    """Repeat the quantization of a value behind each operator that only moves it.

    Runtimes fuse an operator to int8 where all its inputs come from DequantizeLinear; a slice, a pad with zeros or a
    flatten between the two hides that. Values that are moved stay on the grid of their quantization, so quantizing
    them again with the same scale changes nothing in the answer: `DequantizeLinear -> Flatten -> Gemm` becomes
    `DequantizeLinear -> Flatten -> QuantizeLinear -> DequantizeLinear -> Gemm`.
    """
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type not in _MOVES or not node.inputs or not _stays_on_grid(node):
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) < 3:
            continue
        if source.inputs[1] is None or source.inputs[1].shape is None or len(source.inputs[1].shape):
            continue  # per channel: moving values may move the channels
        moved = node.outputs[0]
        readers = [(user, index) for user, index in moved.uses() if user.op_type != "QuantizeLinear"]
        if not readers or moved.is_graph_output():
            continue
        quantize = ir.node("QuantizeLinear", [moved, source.inputs[1], source.inputs[2]])
        restore = ir.node("DequantizeLinear", [quantize.outputs[0], source.inputs[1], source.inputs[2]])
        graph.insert_after(node, [quantize, restore])
        for user, index in readers:
            user.replace_input_with(index, restore.outputs[0])


def _stays_on_grid(node: "ir.Node") -> bool:
    """Whether a moving operator adds no values but zero, which every quantization holds exactly."""
    if node.op_type != "Pad":
        return True
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    value = constant(fill) if fill is not None else None
    return mode != "constant" or fill is None or (value is not None and float(value.reshape(-1)[0]) == 0.0)


def quantize_bias_of_gemm(graph: "ir.Graph") -> None:
    """Give each int8 Gemm an int32 bias, on the scale of its products (scale of the input x scale of the weights).

    ONNX Runtime does this by itself where the output is quantized too. Elsewhere the Gemm would be computed in float.
    With an input of scale 0.02 and weights of scale 0.005, a bias of 0.01234 becomes 123 steps of 0.0001. The rounding
    is at most half such a step, far below one step of the input.
    """
    import numpy as np
    import onnx_ir as ir

    for node in list(graph):
        found = _bias_in_steps(node) if node.op_type == "Gemm" else None
        if found is None:
            continue
        steps, scale = found
        if np.abs(steps).max(initial=0) > _MOST_STEPS:
            continue
        bias_name = node.inputs[2].name  # type: ignore[union-attr]
        codes = new_constant(graph, f"{bias_name}_steps", steps.astype(np.int32))
        attributes = {"axis": 0} if scale.ndim else {}
        restore = ir.node(
            "DequantizeLinear", [codes, new_constant(graph, f"{bias_name}_scale", scale)], attributes=attributes
        )
        graph.insert_before(node, restore)
        node.replace_input_with(2, restore.outputs[0])


def add_large_biases_apart(graph: "ir.Graph") -> None:
    """Take a bias that no int32 holds out of its int8 convolution, and add it behind.

    A runtime counts biases in steps of the products. Inputs that hardly vary have a tiny scale: of inputs up to 1e-6
    and weights up to 0.03, a bias of -4.6 (a detector's, for objects that are rare) is 5e12 steps. ONNX Runtime cuts it
    off at 2e9, and all outputs are wrong by the rest.
    """
    import numpy as np
    import onnx_ir as ir

    for node in list(graph):
        found = _bias_in_steps(node) if node.op_type in ("Conv", "Gemm") else None
        if found is None or np.abs(found[0]).max(initial=0) <= _MOST_STEPS:
            continue
        bias, result, after = constant(node.inputs[2]), node.outputs[0], list(node.outputs[0].uses())
        shape = (-1, *[1] * (len(result.shape) - 2)) if node.op_type == "Conv" else (-1,)  # type: ignore[arg-type]
        node.resize_inputs(2)
        add = ir.node("Add", [result, new_constant(graph, f"{result.name}_bias", bias.reshape(shape))])
        add.outputs[0].type, add.outputs[0].shape = result.type, result.shape
        graph.insert_after(node, add)
        for user, index in after:
            user.replace_input_with(index, add.outputs[0])
        for place, output in enumerate(graph.outputs):
            if output is result:
                add.outputs[0].name, result.name = result.name, f"{result.name}_products"
                graph.outputs[place] = add.outputs[0]


def _bias_in_steps(node: "ir.Node") -> tuple[Any, Any] | None:
    """A layer's bias in steps of the products of its integers, and these steps; None where there are none."""
    import numpy as np

    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    if bias_value is None:
        return None
    bias, sources = constant(bias_value), [value.producer() for value in node.inputs[:2] if value is not None]
    if bias is None or any(source is None or source.op_type != "DequantizeLinear" for source in sources):
        return None
    scales = [constant(source.inputs[1]) for source in sources if source is not None]
    if any(scale is None for scale in scales) or scales[0].size != 1:
        return None
    scale = (scales[0].reshape(()).astype(np.float64) * scales[1]).astype(np.float32)
    if scale.size not in (1, bias.size):
        return None
    return np.rint(bias.astype(np.float64) / np.maximum(scale, np.finfo(np.float32).tiny)), scale


def settle_transposes(graph: "ir.Graph") -> None:
    """Transpose the codes of a weight `[outputs, inputs]` once, here, instead of the weight in each inference.

    The axis of its scales, one for each output, is 1 then instead of 0.
    """
    import onnx_ir as ir

    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if source is None or not _is_weight(source) or _axis(source) != 0:
            continue
        codes = constant(source.inputs[0])
        if codes.ndim != 2:
            continue
        transposed = new_constant(graph, f"{node.outputs[0].name}_codes", codes.T.copy())
        restore = ir.node("DequantizeLinear", [transposed, *source.inputs[1:]], attributes={"axis": 1})
        graph.insert_before(node, restore)
        replace(graph, node, restore.outputs[0])


def needed_opset(graph: "ir.Graph") -> int:
    """The opset that first has the types that activations are quantized to; 0 where all opsets have them."""
    import onnx_ir as ir

    wide = (ir.DataType.INT16, ir.DataType.UINT16)
    constants = (value.const_value for value in graph.initializers.values())
    return OPSET_16_BITS if any(tensor is not None and tensor.dtype in wide for tensor in constants) else 0


def store_narrow(graph: "ir.Graph") -> int:
    """Store codes in the narrowest type that holds them, and dequantize those that meet float by plain arithmetic.

    Returns:
        The opset that the graph needs for these types; 0 where nothing changed.
    """
    opset = 0
    for node in list(graph):
        if not _is_weight(node):
            continue
        store = _dequantize_plainly if _is_computed_in_float(node) else _narrow
        opset = max(opset, store(graph, node))
    return opset


def _is_weight(node: "ir.Node") -> bool:
    """Whether a node dequantizes stored codes of two dimensions or more."""
    if node.op_type != "DequantizeLinear":
        return False
    codes = constant(node.inputs[0])
    return codes is not None and codes.ndim > 1


def _axis(node: "ir.Node") -> int:
    """The dimension of the codes that scales go along."""
    return int(node.attributes["axis"].as_int()) if "axis" in node.attributes else 1


def _is_computed_in_float(node: "ir.Node") -> bool:
    """Whether no reader of a weight reads quantized activations too; what reshapes the weight is looked through."""
    pending, seen_integer = [node], False
    while pending:
        for user, _ in pending.pop().outputs[0].uses():
            if user.op_type in ("Reshape", "Slice", "Transpose"):
                pending.append(user)
                continue
            other = user.inputs[0].producer() if user.inputs and user.inputs[0] is not None else None
            seen_integer |= other is not None and other.op_type == "DequantizeLinear" and other is not node
    return not seen_integer


def _dequantize_plainly(graph: "ir.Graph", node: "ir.Node") -> int:
    """Put `(codes cast to float - zero point) * scale` in the place of a dequantization; gives the opset it needs."""
    import numpy as np
    import onnx_ir as ir

    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[_axis(node)] = -1
    name = node.outputs[0].name
    stored, opset = _stored(graph, node.inputs[0], codes)
    cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
    steps = [cast]
    if zero is not None and np.any(zero):
        shift = new_constant(graph, f"{name}_zero_float", zero.astype(np.float32).reshape(shape))
        steps.append(ir.node("Sub", [steps[-1].outputs[0], shift]))
    factor = new_constant(graph, f"{name}_scale_wide", scale.astype(np.float32).reshape(shape))
    steps.append(ir.node("Mul", [steps[-1].outputs[0], factor]))
    graph.insert_before(node, steps)
    replace(graph, node, steps[-1].outputs[0])
    return opset


def _narrow(graph: "ir.Graph", node: "ir.Node") -> int:
    """Store codes in a narrow type, with a Cast back to the type that kernels take; gives the opset it needs."""
    import onnx_ir as ir

    codes = constant(node.inputs[0])
    stored, opset = _stored(graph, node.inputs[0], codes)
    if opset:
        cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.from_numpy(codes.dtype))})
        graph.insert_before(node, cast)
        node.replace_input_with(0, cast.outputs[0])
    return opset


def _stored(graph: "ir.Graph", value: Any, codes: Any) -> tuple["ir.Value", int]:
    """The codes in the narrowest type, and the opset that has it; as they are, and 0, where they need all 8 bits.

    Codes from -7 to 7 take 4 bits each, codes of -2, -1, 0 and 1 take 2, and codes from -9 to 3 are left in 8.
    """
    import ml_dtypes
    import onnx_ir as ir

    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    kinds = (
        (ml_dtypes.int2, ir.DataType.INT2, -2, 1, OPSET_2_BITS),
        (ml_dtypes.int4, ir.DataType.INT4, -8, 7, OPSET_4_BITS),
    )
    for kind, dtype, least, most, opset in kinds:
        if least <= low and high <= most:
            tensor = ir.Tensor(codes.astype(kind), dtype=dtype, name=f"{value.name}_narrow")
            stored = ir.Value(
                name=tensor.name, shape=ir.Shape(codes.shape), type=ir.TensorType(dtype), const_value=tensor
            )
            graph.register_initializer(stored)
            return stored, opset
    return value, 0
