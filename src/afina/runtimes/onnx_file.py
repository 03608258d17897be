"""A network as a small ONNX model: exported, rewritten so that int8 stays int8, and stripped to what is needed.

A plain export carries Python stack traces, the user's module paths and every intermediate shape: for an int8
ResNet-20 they are a third of the file. What is left here is the graph, its weights, and two texts of metadata.
"""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING, Any

from afina.errors import AfinaError, Unsupported, first_lines
from afina.graph.propagate import output_shapes
from afina.runtimes.onnx_codes import (
    add_large_biases_apart,
    carry_quantization,
    needed_opset,
    quantize_bias_of_gemm,
    settle_transposes,
    store_narrow,
)
from afina.runtimes.onnx_edit import constant, new_constant, replace
from afina.runtimes.onnx_plain import plain_program
from afina.runtimes.onnx_prepare import for_onnx
from afina.runtimes.torch_onnx import torch_onnx
from afina.types.metadata import describe

if TYPE_CHECKING:
    import onnx_ir as ir

    from afina.graph import Network

# Opset 20: QuantizeLinear/DequantizeLinear are complete for int8 (per channel) since 13; later ones add types, which
# are used only where weights of few bits are stored in them. ONNX Runtime fuses the same graph to the same QLinear
# operators at 20, 21 and 23 (checked with 1.32), and 20 is the newest that runtimes from early 2024 on still read.
OPSET = 20

INPUT = "images"
_LIMIT = 2**31 - 2**20  # protobuf cannot hold 2 GiB; some room is left for the graph itself
# Rules of onnxscript, in this order.
_RULES = (
    *("mul_by_1", "add_0", "sub_0", "div_by_1", "one_reshape_matmul_reshape", "two_reshapes_matmul_reshape"),
    *("collapse_slice", "collapse_slice2", "materialize_reshape_shape", "min_min", "max_max", "min_max", "max_min"),
    *("successive_clip_relu", "successive_relu_clip", "successive_relu", "successive_clip", "cast_cast", "no_op_cast"),
    *("no_op_expand", "flatten_to_reshape", "reshape_reshape", "no_op_transpose", "transpose_transpose"),
    *("unsqueeze_unsqueeze", "squeeze_reshape_1d", "no_op_dynamic_scatter_nd", "no_op_static_scatter_nd"),
    *("normalize_pad_format_conv", "fuse_pad_into_conv", "fuse_batchnorm_into_conv"),
    *("fuse_batchnorm_into_conv_transpose", "fuse_batchnorm_into_gemm", "remove_optional_bias_from_conv"),
    *("remove_optional_bias_from_conv_transpose", "remove_optional_bias_from_gemm"),
)
_EXPORTERS = ("torch", "onnxscript", "onnx", "onnx-ir")
_WRONG_VERSION = (ImportError, AttributeError)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def onnx_bytes(network: "Network", *, narrow: bool = True) -> bytes:
    """The network in inference form as one serialized ONNX model, checked.

    Input `images` float32 [batch, C, H, W], outputs by their names in the network, [batch, ...]; a dynamic batch where
    the network has one. Batch norm is
    folded into the convolution (or linear layer) in front of it. A quantized network becomes QuantizeLinear and
    DequantizeLinear around float operators, with int8 weights: the form from which runtimes make int8 kernels. Weights
    in 16 bits each have a Cast behind them, which a runtime undoes once, when it loads.

    Args:
        network: Float or quantized (converted PT2E graph).
        narrow: Store codes of few bits in 4 or 2 bits.

    Raises:
        Unsupported: an operator has no ONNX form, or the model does not fit in one file (2 GiB).
        AfinaError: the export failed for another reason, such as versions of packages that do not work together.
    """
    model = _translate(network)
    _use_global_average_pool(model.graph)
    settle_transposes(model.graph)
    carry_quantization(model.graph)
    add_large_biases_apart(model.graph)
    quantize_bias_of_gemm(model.graph)
    _raise_opset(model, max(store_narrow(model.graph) if narrow else 0, needed_opset(model.graph)))
    if _holds_halves(network):
        _store_half(model.graph)
    _strip(model, network)
    return _serialize(model)


def _translate(network: "Network") -> "ir.Model":
    """The network as torch.onnx translates it, simplified."""
    prepared = for_onnx(network)
    with torch_onnx():
        try:
            try:
                model = _exported(plain_program(prepared), network.outputs)
            except Exception:  # mostly an op that only the general way breaks up; else that way fails too, and says why
                model = _exported(prepared.exported(), network.outputs)
        except Exception as error:
            raise _failure(error) from error
        _simplify(model)
    return model


def _exported(program: Any, outputs: tuple[str, ...]) -> "ir.Model":
    """An exported program as torch.onnx translates it, with these names of its outputs."""
    import torch

    names: dict[str, Any] = {"input_names": [INPUT], "output_names": list(outputs)}
    exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET, optimize=False, **names)
    if exported is None:
        raise AfinaError("torch.onnx gave no model.", fix="Please report this with the model that you used.")
    return exported.model


def _failure(error: Exception) -> AfinaError:
    """What an error of the export means: a network that ONNX has no form for, or packages that do not work together."""
    from torch.onnx.errors import OnnxExporterError

    if isinstance(error, AfinaError):
        return error
    causes = list(_causes(error))
    # An operator's translation that asks for a name which another package does not have: torch.onnx wraps that too.
    broken = next((cause for cause in causes if isinstance(cause, _WRONG_VERSION)), None)
    if broken is not None:
        versions = ", ".join(f"{name} {version(name)}" for name in _EXPORTERS)
        return AfinaError(
            "The packages that export to ONNX do not work together.",
            why=f"{type(broken).__name__}: {first_lines(broken)} Installed are {versions}.",
            fix=f"Install versions that fit: pip install --upgrade {' '.join(_EXPORTERS[1:])}",
        )
    if any(isinstance(cause, (OnnxExporterError, NotImplementedError)) for cause in causes):
        return Unsupported(
            "The network could not be exported to ONNX.",
            why=f"torch.onnx says: {first_lines(error.__cause__ or error)}",
            fix="Rewrite the part that it names with operators that ONNX has, then try again.",
        )
    return AfinaError(
        "The export to ONNX failed.",
        why=f"{type(error).__name__}: {first_lines(error)}",
        fix="Please report this with the model that you used.",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _simplify(model: "ir.Model") -> None:
    """Compute what is constant, and rewrite what has a shorter form.

    torch.onnx would do so by itself, and look at every pair of nodes for slices that make a Split: a third of the time
    that a large network's export takes.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        rewriter.rewrite(model, [getattr(rules, f"{name}_rule") for name in _RULES])
    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)


def _raise_opset(model: "ir.Model", opset: int) -> None:
    """Declare a later opset: between those used here, operators only gained types."""
    import onnx

    if opset <= OPSET:
        return
    model.graph.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def _use_global_average_pool(graph: "ir.Graph") -> None:
    """Rewrite the mean over height and width as GlobalAveragePool: runtimes have int8 kernels for that one only."""
    import numpy as np
    import onnx_ir as ir

    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "ReduceMean" or source is None or source.shape is None or len(source.shape) != 4:
            continue
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
            continue
        keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        pool = ir.node("GlobalAveragePool", [source])
        graph.insert_before(node, pool)
        result = pool.outputs[0]
        result.type = source.type
        if not keep:
            squeeze = ir.node(
                "Squeeze", [result, new_constant(graph, f"{node.outputs[0].name}_axes", np.array([2, 3]))]
            )
            graph.insert_before(node, squeeze)
            result = squeeze.outputs[0]
        replace(graph, node, result)


def _holds_halves(network: "Network") -> bool:
    """Whether weights are stored in 16 bits already: torch.onnx widens the small ones among them."""
    import torch

    halves = (torch.float16, torch.bfloat16)
    return any(tensor.dtype in halves for tensor in network.module.state_dict().values())


def _store_half(graph: "ir.Graph") -> None:
    """Store float32 weights of two or more dimensions in 16 bits where that changes none, with a Cast behind them."""
    import onnx_ir as ir

    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output():
            continue
        if sum(size > 1 for size in tensor.shape.numpy()) < 2:
            continue
        narrow = _halved(tensor.numpy())
        if narrow is None:
            continue
        small = new_constant(graph, f"{name}_half", narrow)
        cast = ir.node("Cast", [small], attributes={"to": int(ir.DataType.FLOAT)})
        graph.insert_before(graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]


def _halved(weights: Any) -> Any:
    """The weights in half precision or bfloat16, or None where that would change them."""
    import ml_dtypes
    import numpy as np

    for kind in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            narrow = weights.astype(kind)
        if np.array_equal(narrow.astype(np.float32), weights):
            return narrow
    return None


def _strip(model: "ir.Model", network: "Network") -> None:
    """Leave only what a runtime needs: no documentation, no shapes inside the graph, names of one to three letters."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)
    graph = model.graph
    _drop_defaults(graph)
    _shorten_names(graph, network.outputs)
    graph.name = "afina"
    shapes = (network.input.shape, *(shape[1:] for shape in output_shapes(network).values()))
    for value, shape in zip((*graph.inputs, *graph.outputs), shapes, strict=True):
        value.shape = ir.Shape([network.batch_size or "batch", *shape])
    model.metadata_props.update(describe(network))
    model.producer_name, model.producer_version = "afina", None


def _drop_defaults(graph: "ir.Graph") -> None:
    """Leave out attributes that say what the operator's definition says anyway."""
    import onnx

    for node in graph:
        try:
            schema = onnx.defs.get_schema(node.op_type, graph.opset_imports[""], node.domain)
        except onnx.defs.SchemaError:
            continue
        for name, attribute in list(node.attributes.items()):
            default = schema.attributes[name].default_value if name in schema.attributes else None
            if (
                default is not None
                and default.type
                and onnx.helper.get_attribute_value(default) == _plain(attribute.value)
            ):
                del node.attributes[name]


def _shorten_names(graph: "ir.Graph", outputs: tuple[str, ...]) -> None:
    """Number all values and drop the names of nodes, which nothing refers to."""
    names = (name for name in map(_base36, count()) if name not in (INPUT, *outputs))
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    fixed = {*graph.inputs, *graph.outputs}
    for value in values:
        if value.name and value not in fixed:  # an output without a name is an optional one that nobody reads
            value.name = f"afina.{value.name}"  # out of the way of the short names that follow
    for value in values:
        if value not in fixed:
            if value.name:
                value.name = next(names)
            if value.producer() is not None:
                value.shape = value.type = None
    for node in graph:
        node.name = ""
    graph.inputs[0].name = INPUT
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name


def _serialize(model: "ir.Model") -> bytes:
    """The model as the bytes of a file, checked. Raises `Unsupported` where they do not fit in one."""
    import onnx
    import onnx_ir as ir

    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > _LIMIT:
        raise Unsupported(
            f"The model's weights take {weights / 1e9:.2f} GB, and one ONNX file holds at most 2.1 GB.",
            fix="Make it smaller first (half precision, int8, pruning), or export it as .pt2.",
        )
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AfinaError("The exported model is not valid ONNX.", why=first_lines(error)) from error
    return bytes(proto.SerializeToString())


def _plain(value: Any) -> Any:
    """An attribute's value as `onnx.helper` gives it."""
    return value.encode() if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _base36(number: int) -> str:
    """A number in digits 0 to 9 and a to z.

    Example:
        >>> _base36(35), _base36(36)
        ('z', '10')
    """
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
