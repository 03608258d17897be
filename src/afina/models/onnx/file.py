"""An ONNX file, opened with care: what it holds as plain steps and arrays, or one clear error.

Nothing in the file is trusted: sizes that it declares are compared with the bytes that are there before anything is
allocated, data in other files has to lie in the same folder, and operators that are not known are refused by name.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from afina.errors import InputError, Unsupported, check_file, first_lines

OLDEST, NEWEST = 7, 26  # operator sets of the default domain
_MOST_BYTES = 2**31  # of a protobuf
_DEFAULT_DOMAINS = ("", "ai.onnx")
_WITH_SUBGRAPHS = ("If", "Loop", "Scan", "SequenceMap")
_INPUT_DIMENSIONS = 4


@dataclass(frozen=True)
class Step:
    """One node of the file.

    Attributes:
        name: The node's name, or what it is made known by where it has none.
        operator: The operator, as in `Conv`.
        inputs: Names of the values that it takes, in order; empty for one that is left out.
        outputs: Names of the values that it gives, likewise.
        attributes: Its attributes as numbers, lists, texts and arrays.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxGraph:
    """What an ONNX file holds.

    Attributes:
        path: The file.
        opset: Version of the operators.
        steps: Its nodes, in an order in which they can be computed.
        weights: Its initializers by name; those in 16 or 64 bits in 32.
        constants: Arrays of its `Constant` nodes by name.
        input: Name of the images.
        shape: Their dimensions; None for one that may differ.
        kind: numpy's type of the images, as in `float32`.
        outputs: Names of what it gives.
        metadata: Texts that its maker left in it.
        half: Whether some of its weights are in 16 bits.
    """

    path: Path
    opset: int
    steps: tuple[Step, ...]
    weights: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    input: str
    shape: tuple[int | None, ...]
    kind: str
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    half: bool = False

    def with_steps(self, steps: tuple[Step, ...], outputs: tuple[str, ...] | None = None) -> "OnnxGraph":
        """The same file with other steps."""
        return replace(self, steps=steps, outputs=self.outputs if outputs is None else outputs)


def open_onnx(path: Path) -> OnnxGraph:
    """Read an ONNX file, with the data that lies in files beside it.

    Raises:
        InputError: the file is missing, empty, cut off, no ONNX, too old, or takes something else than images; data
            that it refers to is missing or outside its folder.
        Unsupported: it holds control flow or operators of another domain.
    """
    check_file(path)
    proto = _parsed(path)
    _check_external(proto, path)
    opset = _opset(proto, path)
    _check_structure(proto, path)
    model = _inlined(proto, path)
    weights = {name: _array(value.const_value, name, path) for name, value in model.graph.initializers.items()}
    images = [value for value in model.graph.inputs if value.name not in weights]
    shape, kind = _image_shape(images, path)
    steps, constants = [], {}
    for node in model.graph:
        step = _step(node, path)
        if step.operator == "Constant":
            constants[step.outputs[0]] = _constant(step, path)
        else:
            steps.append(step)
    outputs = tuple(str(value.name) for value in model.graph.outputs)
    half = any(value.const_value.dtype.name in ("FLOAT16", "BFLOAT16") for value in model.graph.initializers.values())
    return OnnxGraph(
        path, opset, tuple(steps), weights, constants, str(images[0].name), shape, kind, outputs,
        dict(model.metadata_props), half,
    )  # fmt: skip


def _parsed(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty.", fix="Download or export it again.")
    if size >= _MOST_BYTES:
        raise InputError(
            f"{path} has {size / 1e9:.1f} GB, more than a protobuf may have (2 GB).",
            fix="Export it with its weights in a file beside it.",
        )
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError, RuntimeError) as error:
        raise _broken(path, "It is cut off, damaged, or another kind of file.") from error
    if not proto.graph.node or not proto.opset_import:
        raise _broken(path, "It holds no graph.")
    return proto


def _tensors(proto: Any) -> Iterator[Any]:
    """All tensors of a file: of its graph and of its nodes' attributes."""
    yield from proto.graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
    for function in proto.functions:
        for attribute in function.attribute_proto:
            yield from (attribute.t, *attribute.tensors)


def _check_external(proto: Any, path: Path) -> None:
    """Raise `InputError` where data in other files is missing, too short, or outside the folder of `path`."""
    import onnx

    if proto.graph.sparse_initializer:
        raise Unsupported(f"{path} holds sparse weights.", fix="Export it with dense ones.")
    folder = path.absolute().parent
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = Path(os.path.normpath(folder / location))
        if not location or os.path.isabs(location) or not file.is_relative_to(os.path.normpath(folder)):
            raise InputError(
                f"{path} is refused: its data is said to lie in {location!r}.",
                why="Only files in its own folder are read.",
                fix="Export it again, or save it as one file.",
            )
        if not file.is_file():
            raise InputError(
                f"{path} lacks its data: there is no {file.name} beside it.",
                why=f"The weights of {tensor.name} are said to be in it.",
                fix="Put both files into one folder.",
            )
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError:
            end = -1
        if not 0 <= end <= file.stat().st_size:
            raise _broken(path, f"The weights of {tensor.name} reach beyond the end of {file.name}.")


def _opset(proto: Any, path: Path) -> int:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    opset = next((versions[domain] for domain in _DEFAULT_DOMAINS if domain in versions), NEWEST)
    if opset < OLDEST:
        raise InputError(
            f"{path} has operators of version {opset}; {OLDEST} is the oldest that is read.",
            fix="Convert it: onnx.version_converter.convert_version(onnx.load(path), 18).",
        )
    return int(opset)


def _check_structure(proto: Any, path: Path) -> None:
    """Raise `InputError` where nodes, attributes or names do not fit together."""
    import onnx

    local = {function.domain for function in proto.functions}
    for node in proto.graph.node:
        if node.op_type in _WITH_SUBGRAPHS and node.domain in _DEFAULT_DOMAINS:
            raise _unsupported(node.op_type, node.name, path, "Which way it takes depends on the images.")
        if node.domain not in (*_DEFAULT_DOMAINS, *local, "com.microsoft"):
            raise _unsupported(f"{node.domain}.{node.op_type}", node.name, path, "It is of a domain of its own.")
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    for tensor in _tensors(plain):  # the checker looks for files in the working folder
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.ClearField("dims")
            tensor.dims.append(0)
            tensor.raw_data = b""
    for value in (*plain.graph.output, *plain.graph.value_info):
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()  # many files leave the shapes of outputs out
    if any(node.domain == "com.microsoft" for node in plain.graph.node):
        return  # the checker knows none of its operators
    try:
        onnx.checker.check_model(plain)
    except (onnx.checker.ValidationError, ValueError, UnicodeDecodeError) as error:
        raise _broken(path, f"It is no valid ONNX: {first_lines(error, 2)}") from error


def _inlined(proto: Any, path: Path) -> Any:
    """The file as `onnx_ir` has it, with calls of its own functions replaced by what is in them."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    try:
        model = ir.serde.deserialize_model(proto)
        if model.functions:
            model = common.InlinePass()(model).model
        ir.external_data.set_base_dir(model.graph, path.absolute().parent)
        common.TopologicalSortPass()(model)
    except Exception as error:  # onnx_ir raises whatever a broken file makes it stumble over
        raise _broken(path, f"It is no valid ONNX: {first_lines(error, 2)}") from error
    return model


def _array(tensor: Any, name: str, path: Path) -> np.ndarray:
    """A tensor's numbers; its size is compared with the bytes that are there before any are allocated."""
    if tensor is None:
        raise _broken(path, f"The weights of {name} are missing.")
    try:
        if math.prod(tensor.shape.numpy()) > _MOST_BYTES:
            raise ValueError(f"{name} is said to have {math.prod(tensor.shape.numpy()):.2g} elements")
        return plain_kind(np.asarray(tensor.numpy()))
    except Exception as error:  # numpy and onnx_ir raise several kinds of errors for data of a wrong length
        raise _broken(path, f"The weights of {name} cannot be read: {first_lines(error, 1)}") from error


def plain_kind(array: np.ndarray) -> np.ndarray:
    """The array with numbers that torch computes with: fractions in 32 bits, short integers in 8.

    Example:
        >>> plain_kind(np.ones(2, np.float16)).dtype
        dtype('float32')
    """
    if array.dtype.kind in "US":
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "biu":
        return array
    name = array.dtype.name  # types of ml_dtypes: bfloat16, float8_e4m3fn, int4, uint2, ...
    if "float" in name:
        return array.astype(np.float32)
    return array.astype(np.uint8 if name.startswith("u") else np.int8)


def _image_shape(inputs: list[Any], path: Path) -> tuple[tuple[int | None, ...], str]:
    """The dimensions and numpy's type of the one input. Raises `InputError` where it does not take images alone."""
    if len(inputs) != 1:
        names = ", ".join(str(value.name) for value in inputs[:4])
        raise InputError(
            f"{path} takes {len(inputs)} inputs{f' ({names})' if names else ''}, and a network takes one: images.",
            fix="Export it with the others as constants.",
        )
    (images,) = inputs
    shape = images.shape
    kind = "" if images.dtype is None else images.dtype.name.lower().replace("float", "float32", 1)
    kind = "float32" if "float" in kind or kind == "double" else kind
    if shape is None or len(shape) != _INPUT_DIMENSIONS or kind not in ("float32", "uint8", "int8", "int32", "int64"):
        raise InputError(
            f"{path} does not take images: its input {images.name} is {shape or 'of no stated shape'} ({kind or '?'}).",
            why="Images are [N, C, H, W] or [N, H, W, C].",
            fix="Give a file of a network for images.",
        )
    return tuple(int(size) if isinstance(size, int) and size > 0 else None for size in shape), kind


def _step(node: Any, path: Path) -> Step:
    """A node in plain form. Raises `Unsupported` for operators of other domains, and those with graphs inside."""
    import onnx_ir as ir

    name = node.name or (node.outputs[0].name if node.outputs else "")
    operator = node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
    attributes: dict[str, Any] = {}
    for key, attribute in node.attributes.items():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise _unsupported(operator, name, path, "It holds a graph of its own.")
        value = attribute.value
        if attribute.type is ir.AttributeType.TENSOR:
            value = _array(value, f"{name}.{key}", path)
        attributes[key] = value
    inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
    return Step(name, operator, inputs, tuple(str(value.name or "") for value in node.outputs), attributes)


def _constant(step: Step, path: Path) -> np.ndarray:
    for key, kind in (("value", None), ("value_float", np.float32), ("value_floats", np.float32),
                      ("value_int", np.int64), ("value_ints", np.int64)):  # fmt: skip
        if key in step.attributes:
            value = step.attributes[key]
            return value if kind is None else np.asarray(value, kind)
    raise Unsupported(f"{path} holds a constant that is no array of numbers ({step.name}).")


def _unsupported(operator: str, name: str, path: Path, why: str) -> Unsupported:
    return unsupported_step(Step(name, operator, (), ()), path, why)


def unsupported_step(step: Step, path: Path, why: str = "") -> Unsupported:
    """What to say of a node that cannot be read."""
    return Unsupported(
        f"{path} holds {step.operator} ({step.name}), which is not read.",
        why=why,
        fix="Export the network without it: what comes before can be an output, and what comes after done on the host. "
        "Where you have the model's code, give that: path/file.py:builder.",
    )


def _broken(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read as an ONNX file.", why, "Download or export it again.")
