"""What others make of the same network with the same calibration images: files for their runtimes, or modules.

`pip install nncf==3.4.0`; ONNX Runtime and torchao are there. Each maker takes a `Subject`, a seed and where the file
goes, and gives the file (or, for torchao, a function from a batch of images to outputs).
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subjects import IMAGES, TRANSFORMERS, Subject
from torch import Tensor

from afina.runtimes.onnx_file import INPUT

Maker = Callable[[Subject, int, Path], Path]
Module = Callable[[Tensor], Tensor]
Builder = Callable[[Subject, int], Module]

_WEIGHTED = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)

_AT_ONCE = 8


def onnxruntime_static(
    subject: Subject,
    seed: int,
    path: Path,
    *,
    calibrator: str,
    calibration: dict[str, Any],
    weights: str,
    activations: str,
) -> Path:
    """QDQ with unsigned activations and weights per channel, after ONNX Runtime's own preparation."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if subject.network.input.height > 64:
        _collect_in_parts()
    path.parent.mkdir(parents=True, exist_ok=True)
    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(subject.file()), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        _Reader(subject.calibration(seed)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType[weights],
        calibrate_method=CalibrationMethod[calibrator],
        extra_options=dict(calibration),
    )
    prepared.unlink()
    return path


def nncf_static(
    subject: Subject, seed: int, path: Path, *, preset: str = "PERFORMANCE", fast: bool = True, converted: bool = True
) -> Path:
    """NNCF on OpenVINO's graph; transformers are named as such, as its documentation asks for.

    The graph is that of the ONNX file, or, where not `converted`, made from the module.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    example = subject.network.example(1)
    model = nncf.quantize(
        openvino.convert_model(subject.file())
        if converted
        else openvino.convert_model(subject.module.eval(), example_input=example, input=[-1, *example.shape[1:]]),
        nncf.Dataset(_single(subject.calibration(seed))),
        preset=nncf.QuantizationPreset[preset],
        fast_bias_correction=fast,
        model_type=nncf.ModelType.TRANSFORMER if subject.name in TRANSFORMERS else None,
        subset_size=IMAGES,
    )
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def nncf_weights(subject: Subject, seed: int, path: Path, *, group: int, correct: bool) -> Path:
    """NNCF's int4 weights in groups, of all layers that it can; with `correct`, its corrections from data."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = nncf.compress_weights(
        openvino.convert_model(subject.file()),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=group,
        all_layers=True,
        dataset=nncf.Dataset(_single(subject.calibration(seed))) if correct else None,
        scale_estimation=correct or None,
        awq=correct or None,
    )
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def openvino_of(source: Path) -> Path:
    """An ONNX file as OpenVINO's, beside it."""
    import openvino

    path = source.with_suffix(".xml")
    if not path.is_file():
        openvino.save_model(openvino.convert_model(source), str(path), compress_to_fp16=False)
    return path


def torchao_static(subject: Subject, seed: int, *, quantizer: str, bits: int = 8) -> Module:
    """torchao's PT2E with the observers of its own quantizer, run by torch; XNNPACK's takes other bits of weights."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    rule: Any
    if quantizer == "x86":
        rule = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    else:
        half = 2 ** (bits - 1)
        config = xnnpack.get_symmetric_quantization_config(
            is_per_channel=True, weight_qmin=1 - half, weight_qmax=half - 1
        )
        rule = xnnpack.XNNPACKQuantizer().set_global(config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = subject.network.example()
        dynamic = ({0: torch.export.Dim("batch", min=1, max=2**16)},)
        program = torch.export.export(subject.module.eval(), (example,), dynamic_shapes=dynamic)
        prepared = prepare_pt2e(program.module(check_guards=False), rule)
        for images in subject.calibration(seed):
            prepared(images)
        module: Module = convert_pt2e(prepared)
    return module


def absmax_weights(subject: Subject, seed: int, *, bits: int, per: str = "channel") -> Module:
    """Weights alone, rounded to nearest on the absmax grid of each output channel, or of the whole tensor."""
    network = subject.network.copy()
    state = dict(network.module.named_parameters())
    # Batch norm stays apart: folding it scales whole channels, which a grid for each channel scales along.
    names = {str(node.args[1].target) for node in network.graph.nodes if node.target in _WEIGHTED}
    with torch.no_grad():
        for name in names:
            state[name].copy_(absmax(state[name], bits, per))
    return network


def absmax(weight: Tensor, bits: int, per: str) -> Tensor:
    """The weight `[outputs, ...]`, rounded to nearest on 2^bits - 1 levels around zero and back."""
    top = 2 ** (bits - 1) - 1
    flat = weight.flatten(1)
    largest = flat.abs().amax(1, keepdim=True) if per == "channel" else flat.abs().amax()
    scale: Tensor = (largest / top).clamp_min(torch.finfo(weight.dtype).tiny)
    rounded: Tensor = (flat / scale).round() * scale
    return rounded.reshape(weight.shape)


# As they come, and a percentile that is not made symmetric around zero. With the bins that ONNX Runtime gives it,
# entropy keeps the whole range: its rows are those of minmax.
CALIBRATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "minmax": ("MinMax", {}),
    "entropy": ("Entropy", {}),
    "percentile": ("Percentile", {}),
    "percentile 99.99 affine": ("Percentile", {"CalibPercentile": 99.99, "CalibTensorRangeSymmetric": False}),
}


def _onnxruntime(weights: str = "QInt8", activations: str = "QUInt8") -> dict[str, tuple[str, Maker]]:
    return {
        f"onnxruntime {name}": (
            "onnxruntime",
            partial(
                onnxruntime_static,
                calibrator=calibrator,
                calibration=options,
                weights=weights,
                activations=activations,
            ),
        )
        for name, (calibrator, options) in CALIBRATORS.items()
    }


# Files by bits and method: (runtime, maker).
FILES: dict[str, dict[str, tuple[str, Maker]]] = {
    "W8A8": {
        **_onnxruntime(),
        **{
            f"nncf {preset.lower()} {'fast' if fast else 'accurate'}": (
                "openvino",
                partial(nncf_static, preset=preset, fast=fast),
            )
            for preset in ("PERFORMANCE", "MIXED")
            for fast in (True, False)
        },
    },
    "W4A8": _onnxruntime(weights="QInt4"),
    "W4A4": _onnxruntime(weights="QInt4", activations="QUInt4"),
}
# Modules by bits and method, run by torch.
MODULES: dict[str, dict[str, Builder]] = {
    "W8A8": {f"torchao {name}": partial(torchao_static, quantizer=name) for name in ("x86", "xnnpack")},
    **{
        f"W{bits}A8": {"torchao xnnpack": partial(torchao_static, quantizer="xnnpack", bits=bits)} for bits in (4, 3, 2)
    },
    **{f"W{n}": {"absmax channel": partial(absmax_weights, bits=n)} for n in (8, 4, 3, 2)},
}
# Weights alone for transformers at 224 pixels.
WEIGHT_FILES: dict[str, tuple[str, Maker]] = {
    "nncf group 32": ("openvino", partial(nncf_weights, group=32, correct=False)),
    "nncf group 32 awq": ("openvino", partial(nncf_weights, group=32, correct=True)),
}
WEIGHT_MODULES: dict[str, Builder] = {
    "absmax tensor": partial(absmax_weights, bits=4, per="tensor"),
    "absmax channel": partial(absmax_weights, bits=4),
}


class _Reader:
    """Calibration batches as ONNX Runtime reads them: few images at a time, since it keeps all their activations."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self._batches = (part for batch in batches for part in batch.split(_AT_ONCE))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: np.ascontiguousarray(batch.numpy())}


def _single(batches: Iterator[Tensor]) -> list[np.ndarray]:
    """One image at a time, as NNCF counts them."""
    return [np.ascontiguousarray(image[None].numpy()) for batch in batches for image in batch]


def _collect_in_parts() -> None:
    """Let ONNX Runtime's histograms take one batch after the other: it would keep every activation of all images.

    Its collector merges what comes later into the histogram that it has, as it is meant to be called.
    """
    from onnxruntime.quantization.calibrate import HistogramCalibrater

    if hasattr(HistogramCalibrater, "_whole"):
        return
    HistogramCalibrater._whole = HistogramCalibrater.collect_data

    def collect(self: Any, reader: Any) -> None:
        while (batch := reader.get_next()) is not None:
            self._whole(_Once(batch))

    HistogramCalibrater.collect_data = collect


class _Once:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def get_next(self) -> Any:
        batch, self._batch = self._batch, None
        return batch
