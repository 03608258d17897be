"""`build_onnx`: an ONNX file as a module, compared with ONNX Runtime before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.errors import AfinaError, InputError, Unsupported, first_lines
from afina.graph.duplicate import duplicate
from afina.models.onnx.cutting import without_tail
from afina.models.onnx.file import OnnxGraph, open_onnx
from afina.models.onnx.module import OnnxModule
from afina.models.onnx.quantized import QUANTIZED
from afina.types import InputSpec, TaskSpec
from afina.types.metadata import parse

_TOLERANCE = 1e-3  # of the norm of an output; kernels that add in another order give 1e-6 to 1e-5
_HALF_TOLERANCE = 2e-2  # of a file in 16 bits, which is computed in 32 here
_QUANTIZED_TOLERANCE = 0.5  # of a quantized file, whose rounding is undone
_NORM = "BatchNormalization"
_CHECKED_IMAGES, _SPOTS = 2, 5
_TIMES_OWN, _MOST_OFF = 10.0, 0.5
_OF_ROUNDING = 0.01  # from this share of a difference on, rounding may explain it: runtimes round more than torch


@dataclass(frozen=True)
class OnnxSource:
    """A file as a module.

    Attributes:
        module: The module.
        input: What it says of its images, where Afina made the file; else None.
        task: What it says of its outputs, likewise.
        notes: What the user should know, one sentence each.
        tail: What was cut off behind the network, as an ONNX file.
    """

    module: OnnxModule
    input: InputSpec | None
    task: TaskSpec | None
    notes: tuple[str, ...]
    tail: bytes = b""


def build_onnx(path: Path, size: tuple[int, int] | None, suggested: tuple[int, int] | None) -> OnnxSource:
    """The module of an ONNX file.

    Args:
        path: The file.
        size: Height and width that the user asked for.
        suggested: Those of the data, for files that take any size.

    Raises:
        InputError: it cannot be read, or does not take images (of that size).
        Unsupported: an operator is not read, or the module does not answer as ONNX Runtime does.
    """
    graph, tail = without_tail(open_onnx(path))
    module = OnnxModule(graph, size, suggested).eval()
    notes = _notes(graph, module)
    if tail:
        notes.append(
            f"The choice of boxes (NonMaxSuppression) and what follows it are cut off: the network gives "
            f"{', '.join(graph.outputs)}. `afina export --to onnx` puts them back."
        )
    difference = difference_from_runtime(graph, module)
    if not _is_quantized(graph) and difference > _tolerance(graph):
        notes.append(
            f"What {path.name} gives depends on how numbers are rounded: ONNX Runtime is {difference:.1%} off."
        )
    if _is_quantized(graph):
        notes.append(
            f"{path.name} is quantized: its integers are undone, and what it gives is {difference:.1%} off. The "
            "network that it was made from, in float, would do better."
        )
    described = parse(dict(graph.metadata))
    spec, task = described if described is not None else (None, None)
    if spec is not None and spec.shape != module.input_size:
        spec = None
    return OnnxSource(module, spec, task, tuple(notes), tail)


def _notes(graph: OnnxGraph, module: OnnxModule) -> list[str]:
    notes = []
    if not any(step.operator == _NORM for step in graph.steps) and any(s.operator == "Conv" for s in graph.steps):
        notes.append(
            f"{graph.path.name} has no batch norms (exporting for inference folds them): fine-tuning goes without."
        )
    if module.batch_size is not None:
        how = "reshapes by that number" if graph.shape[0] else "mixes several"
        notes.append(
            f"{graph.path.name} takes {module.batch_size} image{'s' * (module.batch_size > 1)} at a time, and {how}: "
            "it runs in such parts."
        )
    return notes


def _is_quantized(graph: OnnxGraph) -> bool:
    return any(step.operator in QUANTIZED for step in graph.steps)


def difference_from_runtime(graph: OnnxGraph, module: OnnxModule) -> float:
    """How far the module's outputs are from those of ONNX Runtime, relative to their norm: the largest.

    It is compared on noise, and where the network makes much of rounding there (some do, mostly untrained ones: in 64
    bits they answer otherwise as well), on smooth pictures too. Where it does so on both, a difference of a few times
    what the network differs from itself is taken.

    Raises:
        InputError: ONNX Runtime does not take the file.
        Unsupported: the difference is more than rounding makes.
    """
    tolerance = _tolerance(graph)
    shape = (module.batch_size or graph.shape[0] or _CHECKED_IMAGES, *module.input_size)
    for make in (_noise, _smooth):
        images = make(graph, shape)
        expected, given = _answers(graph, images, module.channels_last), _given(module, images)
        differences = {name: _distance(given[name], wanted) for name, wanted in expected.items()}
        worst = max(differences, key=lambda name: differences[name])
        if differences[worst] <= tolerance:
            return differences[worst]
        own = _own_rounding(module, images, given, worst)
        if own < differences[worst] * _OF_ROUNDING:
            break
    if differences[worst] <= min(_TIMES_OWN * own, _MOST_OFF):
        return differences[worst]
    raise Unsupported(
        f"{graph.path} is not read rightly: the output {worst} is {differences[worst]:.2g} off (relative).",
        why="ONNX Runtime gives something else for the same images.",
        fix="Give the model's own code (path/file.py:builder), and please report the file.",
    )


def _own_rounding(module: OnnxModule, images: np.ndarray, given: Mapping[str, np.ndarray], name: str) -> float:
    """How far an output is from what the module gives in 64 bits; 0 where it cannot be computed so."""
    try:
        return _distance(given[name], _given(duplicate(module).double(), images)[name])
    except AfinaError:
        return 0.0


def _tolerance(graph: OnnxGraph) -> float:
    """The difference that rounding explains, by the types of numbers in the file."""
    if _is_quantized(graph):
        return _QUANTIZED_TOLERANCE
    half = any(step.operator == "Cast" and step.attributes.get("to") in (10, 16) for step in graph.steps) or graph.half
    return _HALF_TOLERANCE if half else _TOLERANCE


def _given(module: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a module gives, in the precision of its weights."""
    tensors = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    kind = next((t.dtype for t in tensors), torch.float32)
    with torch.no_grad():
        outputs: dict[str, Tensor] = module(torch.from_numpy(images.astype(np.float32)).to(kind))
    return {name: value.numpy() for name, value in outputs.items()}


def _noise(graph: OnnxGraph, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(0)
    if graph.kind == "float32":
        return generator.standard_normal(shape).astype(np.float32)
    return generator.integers(0, 128, shape).astype(graph.kind)


def _smooth(graph: OnnxGraph, shape: tuple[int, ...]) -> np.ndarray:
    """Pictures of soft spots: a few numbers for each channel, spread over it."""
    spots = torch.from_numpy(_noise(graph, (*shape[:2], _SPOTS, _SPOTS))).float()
    spread = F.interpolate(spots, shape[2:], mode="bicubic", align_corners=True)
    return spread.numpy().astype(np.float32 if graph.kind == "float32" else graph.kind)


def _answers(graph: OnnxGraph, images: np.ndarray, channels_last: bool) -> dict[str, np.ndarray]:
    """What ONNX Runtime gives, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        file = _with_outputs(graph)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        given = images.transpose(0, 2, 3, 1) if channels_last else images
        kind = session.get_inputs()[0].type
        given = given.astype({"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(kind, given.dtype))
        answers = session.run(list(graph.outputs), {graph.input: given})
    except Exception as error:  # it raises classes of its own for whatever it stumbles over
        raise InputError(
            f"ONNX Runtime does not run {graph.path}.", why=first_lines(error, 2), fix="Export it again."
        ) from error
    return dict(zip(graph.outputs, answers, strict=True))


def _with_outputs(graph: OnnxGraph) -> str | bytes:
    """The file; with the outputs of the network as its own where something behind them was cut off."""
    import onnx

    model = onnx.load(graph.path, load_external_data=False)
    missing = [name for name in graph.outputs if name not in {value.name for value in model.graph.output}]
    if not missing:
        return str(graph.path)
    model = onnx.load(graph.path)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in missing)
    return bytes(model.SerializeToString())


def _distance(value: np.ndarray, wanted: Any) -> float:
    """The norm of the difference over that of what is wanted; infinite where shapes differ."""
    if value.shape != np.shape(wanted):
        return float("inf")
    a, b = (np.nan_to_num(np.asarray(array, np.float64)) for array in (value, wanted))
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12)
