"""`afina export`: a model as a file for a runtime, checked against the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afina.devices.machine import available_cores
from afina.errors import InputError, did_you_mean
from afina.graph.quantized import activation_bits
from afina.jobs.common.model_source import ModelSource, load_plain, name_of
from afina.progress import Progress
from afina.runtimes import Runtime, check_parity, get_runtime
from afina.store.files import check_target
from afina.techniques import quantize
from afina.techniques.context import Context
from afina.types import Measurement

FORMATS = {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "pt2"}
_HALF = quantize.QuantizeConfig(weights="fp16", activations="none")


@dataclass(frozen=True)
class Exported:
    """The file, its size, and the largest relative difference between its outputs and the model's.

    With weights in 16 bits: `kept`, the layers that stay in 32, with the reason for each; the difference is from the
    model with its weights rounded.
    """

    file: str
    size: Measurement
    parity: float
    kept: dict[str, str] = field(default_factory=dict)


def export(
    model: ModelSource,
    *,
    to: str,
    out: str | Path | None = None,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    half: bool = False,
    example: Any = None,
    progress: Progress | None = None,
) -> Exported:
    """Write `model` for a runtime and run the file beside the model on the same inputs.

    Args:
        model: As in `optimize`.
        to: `onnx`, `openvino` or `pt2`.
        out: The file; `NAME.onnx` (or `.xml`, `.pt2`) in the current folder by default.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the input, where the model's own is wrong.
        half: Store the weights of layers in 16 bits (fp16), where they fit and do no harm.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: unknown format, a file that cannot be written, a model that cannot be used, or activations that
            `to` cannot run.
        NothingToDo: no layer can be stored in 16 bits.
        ParityError: the file does not answer as the model does; it is removed.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to!r} is not a format.", fix=did_you_mean(to, FORMATS))
    runtime = get_runtime(FORMATS[to])
    path = _target(out, runtime, name_of(model))
    progress = progress or Progress()
    network, kept = load_plain(model, weights, input_size, example, progress).network, dict[str, str]()
    if half:
        network, record = quantize.apply(network, _HALF, Context(progress=progress))
        kept = record.skipped
        for layer, reason in kept.items():
            progress.say(f"{layer} stays in 32 bits: {reason}.")
    for bits in activation_bits(network):
        runtime.check_integers(f"int{bits}")
    runtime.export(network, path)
    try:
        parity = check_parity(network, path, None, threads=available_cores())
    except BaseException:
        for part in runtime.files(path):
            part.unlink(missing_ok=True)
        raise
    size = sum(part.stat().st_size for part in runtime.files(path))
    return Exported(str(path), Measurement(size, "B", "measured", where="bytes on disk"), parity, kept)


def _target(out: str | Path | None, runtime: Runtime, name: str) -> Path:
    path = Path(out) if out is not None else Path(f"{name}{runtime.suffix}")
    check_target(path, "--out", runtime.suffix, makes_folder=True)
    return path
