"""OpenVINO on the processor: `.xml` files (the graph), each with a `.bin` beside it (the weights)."""

from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from afina.errors import AfinaError, InputError, Unsupported, first_lines
from afina.runtimes.base import Runtime, Session, in_fixed_batches
from afina.runtimes.openvino_library import openvino
from afina.runtimes.policy import IntegerPolicy
from afina.types import InputSpec, TaskSpec
from afina.types.metadata import INPUT_KEY, TASK_KEY, describe, parse

if TYPE_CHECKING:
    from afina.graph import Network

_COMPUTE_KEY = "afina_compute"
_COMPILED_SHAPES = 2  # the usual batch and the last, shorter one


class OpenVINORuntime(Runtime):
    """An `.xml` and a `.bin` file, run by OpenVINO's processor plugin.

    Weights in fp16 are stored so and computed in float32: about half the bytes at the same speed.

    A network with weights in bfloat16 is computed in bfloat16 where the processor can; any other in float32.

    Each batch size that is met is compiled for its fixed shape, as a deployment would: with a dynamic batch small
    networks were 10 to 40% slower. The first run of a batch size takes the time of compiling.
    """

    name = "openvino"
    extra = "openvino"
    format = "openvino"
    suffix = ".xml"
    package = "openvino"
    usage = """\
import openvino
core = openvino.Core()
network = core.read_model("{file}")
# In the precision that the file was judged in: by default, processors with bfloat16 compute in that.
precision = "bf16" if network.has_rt_info(["afina_compute"]) else "f32"
model = core.compile_model(network, "CPU", {{"INFERENCE_PRECISION_HINT": precision}})
outputs = {{min(output.get_names(), key=len): value for output, value in model(x).items()}}
"""
    integers = IntegerPolicy(
        additions="in convolution",
        convolution_absorbs_every_addition=True,
        concatenated_channels_share_scale=True,
        symmetric_inputs_of_linear_layers="if faster",
        fused_activation_functions="all",
    )
    stored_bits = {8: 8, 6: 6, 4: 4, 3: 3, 2: 2}  # noqa: RUF012 (a constant)
    activation_bits = (2, 3, 4, 5, 6, 7, 8)

    def computes_bf16(self) -> bool:
        return "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def start(self) -> None:
        openvino().Core().get_versions("CPU")

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_suffix(".bin"))

    def _write(self, network: "Network", path: Path) -> None:
        from afina.graph.quantized import holds_bf16
        from afina.runtimes.onnx_file import onnx_bytes
        from afina.runtimes.openvino_codes import (
            drop_zero_offsets,
            flatten_linears,
            slice_before_strides,
            store_narrow,
            weigh_borders,
        )

        model = _converted(onnx_bytes(network, narrow=False))
        _share_constants(model)
        drop_zero_offsets(model)
        flatten_linears(model)
        weigh_borders(model)
        slice_before_strides(model)
        store_narrow(model)
        openvino().save_model(model, str(path), compress_to_fp16=False)
        _slim(path, {**describe(network), **({_COMPUTE_KEY: "bf16"} if holds_bf16(network) else {})})

    def _open(self, path: Path, threads: int) -> Session:
        core = openvino().Core()
        model = core.read_model(str(path))
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # On processors with bfloat16 the plugin would compute in it by default, and answer otherwise than the
            # network that was judged: only a file of a network whose weights are bfloat16 is computed so.
            "INFERENCE_PRECISION_HINT": "bf16" if model.has_rt_info([_COMPUTE_KEY]) else "f32",
        }
        return _OpenVINOSession(core, model, settings, path)

    def _metadata(self, path: Path) -> tuple[InputSpec, TaskSpec] | None:
        root = ElementTree.parse(path).getroot()
        if root.tag != "net":
            raise ValueError("it is not a network description")
        info = {key: root.find(f"rt_info/{key}") for key in (INPUT_KEY, TASK_KEY)}
        return parse({key: entry.get("value", "") for key, entry in info.items() if entry is not None})


class _OpenVINOSession:
    """A file in OpenVINO, compiled anew for each batch size that it has not compiled lately."""

    def __init__(self, core: Any, model: Any, settings: dict[str, Any], path: Path) -> None:
        shapes = [entry.get_partial_shape() for entry in model.inputs]
        if len(shapes) != 1 or len(shapes[0]) != 4 or model.input(0).get_element_type().get_type_name() != "f32":
            raise InputError(f"{path} does not take one batch of float images.", why=f"Its inputs are: {model.inputs}")
        self._core, self._model, self._settings = core, model, settings
        self._outputs = [_name(output, f"output {index}") for index, output in enumerate(model.outputs)]
        self._batch = None if shapes[0][0].is_dynamic else int(shapes[0][0].get_length())
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        if self._batch is not None:  # so a file that cannot be compiled is an error at loading
            self._request(tuple(int(size.get_length()) for size in shapes[0]))

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._batch is None or len(images) == self._batch:
            return self._run(images)
        return in_fixed_batches(self._run, images, self._batch)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        results = self._request(images.shape).infer([images], share_inputs=True)
        return {name: np.array(results[index]) for index, name in enumerate(self._outputs)}

    def _request(self, shape: tuple[int, ...]) -> Any:
        """The file compiled for batches of one shape; the two shapes that were used last are in memory."""
        if shape not in self._compiled:
            while len(self._compiled) >= _COMPILED_SHAPES:
                self._compiled.popitem(last=False)
            model = self._model.clone()
            model.reshape(list(shape))
            self._compiled[shape] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        self._compiled.move_to_end(shape)
        return self._compiled[shape]


def _name(output: Any, otherwise: str) -> str:
    """The name of an output; files of others need have none."""
    names: set[str] = output.get_names()
    return min(names, key=lambda name: (len(name), name)) if names else otherwise


def _converted(data: bytes) -> Any:
    """A serialized ONNX model as OpenVINO's own, with quantizations as FakeQuantize and weights as integers.

    The steps of `openvino.convert_model` for such a file, and the same model, in a third to half of the time.
    """
    openvino()
    from openvino._offline_transformations import apply_moc_transformations, compress_quantize_weights_transformation
    from openvino.frontend import FrontEndManager

    try:
        frontend = FrontEndManager().load_by_framework("onnx")
        model = frontend.convert(frontend.load(BytesIO(data)))
        apply_moc_transformations(model, cf=False, smart_reshape=True)
        compress_quantize_weights_transformation(model)
    except Exception as error:  # its failures have no class in common
        raise Unsupported(
            "The network could not be converted for OpenVINO.",
            why=f"It says: {_reasons(error)}",
            fix="Use another runtime, or rewrite that part of the network with other operators.",
        ) from error
    return model


def _reasons(error: Exception) -> str:
    """What the converter says of each operator, without the places in its source."""
    reasons = [line.removeprefix("-- ") for line in str(error).splitlines() if line.startswith("-- ")]
    return " ".join(reasons)[:500] or first_lines(error)


def _share_constants(model: Any) -> None:
    """Let equal small constants be one: a quantization spells out its range twice, each layer its axes."""
    firsts: dict[Any, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_size() != 1:
            continue
        output = node.output(0)
        data = node.data
        if data.size > 16:
            continue
        key = (str(output.get_element_type()), tuple(data.shape), data.tobytes())
        first = firsts.setdefault(key, output)
        if first is not output:
            for target in list(output.get_target_inputs()):
                target.replace_source_output(first)


def _slim(path: Path, texts: dict[str, str]) -> None:
    """Write the graph without what its reader derives anyway, and with the metadata.

    For an int8 ResNet-20 OpenVINO writes 174 KB of indented XML beside 274 KB of weights. Its reader
    infers the shapes inside the graph; how it was converted (with paths of this machine) is of no use to it.
    """
    tree = ElementTree.parse(path)
    root = tree.getroot()
    for element in root.iter():
        element.tail = None
        element.text = (element.text or "").strip() or None
    for layer in root.iter("layer"):
        if layer.get("type") not in ("Parameter", "Result"):
            layer.set("name", layer.get("id", ""))
            for port in layer.iter("port"):
                port.attrib.pop("names", None)
            if layer.get("type") != "Const":
                for size in [(port, size) for port in layer.iter("port") for size in port]:
                    size[0].remove(size[1])
    for info in root.findall("rt_info"):
        root.remove(info)
    info = ElementTree.SubElement(root, "rt_info")
    for key, value in texts.items():
        ElementTree.SubElement(info, key, value=value)
    tree.write(path, encoding="utf-8", xml_declaration=True)
    _check_readable(path)


def _check_readable(path: Path) -> None:
    """Raise `AfinaError` where OpenVINO cannot read a file that `_slim` wrote."""
    try:
        openvino().Core().read_model(str(path))
    except RuntimeError as error:
        raise AfinaError("OpenVINO does not read the file that was written for it.", why=first_lines(error)) from error
