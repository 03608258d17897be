"""`afina export`: a model as a file for a runtime, checked against the model."""

from dataclasses import dataclass, field
from pathlib import Path

from afina.capacity import available_cores
from afina.errors import Unsupported
from afina.graph.network import Network
from afina.graph.quantized import activation_bits
from afina.jobs.common.model_source import load_plain, name_of
from afina.jobs.options.declaration import command
from afina.jobs.options.export import ExportOptions
from afina.progress import Progress
from afina.runtimes import Runtime, check_parity, runtime_of_format
from afina.runtimes.tail import with_tail
from afina.store.files import check_target
from afina.techniques import quantize
from afina.techniques.context import Context
from afina.types import Measurement

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


def _export(options: ExportOptions) -> Exported:
    """Write `model` for a runtime and run the file beside the model on the same inputs.

    Raises:
        InputError: unknown format, a file that cannot be written, a model that cannot be used, or activations that
            `to` cannot run.
        NothingToDo: no layer can be stored in 16 bits.
        ParityError: the file does not answer as the model does; it is removed.

    Example:
        >>> import afina
        >>> exported = afina.export("builtin:convnet", to="onnx", input_size=8, out="files/convnet.onnx")
        >>> exported.file, exported.size.how, exported.parity < 1e-3
        ('files/convnet.onnx', 'measured', True)
    """
    runtime = runtime_of_format(options.to)
    path = _target(options.out, runtime, name_of(options.model))
    progress = options.progress or Progress()
    network, wide_layers = load_plain(options.model, options, progress).network, dict[str, str]()
    if options.half:
        network, record = quantize.apply(network, _HALF, Context(progress=progress))
        wide_layers = record.skipped
        for layer, reason in wide_layers.items():
            progress.say(f"{layer} stays in 32 bits: {reason}.")
    for bits in activation_bits(network):
        runtime.check_integers(f"int{bits}")
    runtime.export(network, path)
    try:
        parity = check_parity(network, path, None, threads=available_cores())
        if network.tail:
            progress.say(_put_back(network, path))
    except BaseException:
        for part in runtime.files(path):
            part.unlink(missing_ok=True)
        raise
    size = sum(part.stat().st_size for part in runtime.files(path))
    return Exported(str(path), Measurement(size, "B", "measured", where="bytes on disk"), parity, wide_layers)


def _put_back(network: Network, path: Path) -> str:
    """Put what followed the network in the ONNX file that it was read from behind it again; gives what was done."""
    if path.suffix == ".pt2":
        return "The choice of boxes that the original file had goes with it, for an export to ONNX."
    if path.suffix != ".onnx":
        return "The choice of boxes that the original file had is left to the host: only ONNX files get it back."
    try:
        with_tail(path, network.tail)
    except Unsupported as error:
        return f"{error} The file holds the network alone."
    return "The choice of boxes that the original file had is behind the network again."


export = command(ExportOptions, _export)


def describe(result: Exported) -> str:
    """The result in one line."""
    return f"{result.file} ({result.size.value / 1e6:.3g} MB), largest difference {result.parity:.2g} (relative)"


def _target(out: str | Path | None, runtime: Runtime, name: str) -> Path:
    path = Path(out) if out is not None else Path(f"{name}{runtime.suffix}")
    check_target(path, "--out", runtime.suffix, makes_folder=True)
    return path
