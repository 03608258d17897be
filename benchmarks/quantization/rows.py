"""The rows that each benchmark here keeps, in `results/NAME.jsonl`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import common
from common import Row, arguments, made

__all__ = ["RESULTS", "RUNS", "Row", "Rows", "arguments", "made"]

RESULTS = Path(__file__).with_name("results")
RUNS = Path(__file__).parents[2] / "runs" / "quantization"


class Rows(common.Rows):
    """Rows of the benchmark of that name; patterns as in `common.Rows`."""

    libraries = ("afina", "torch", "torchvision", "timm", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
    shown = (
        "accuracy", "agreement", "snr", "simulated", "same", "bytes", "latency", "ratio", "took", "peak", "onnxruntime",
        "openvino", "failed",
    )  # fmt: skip

    def __init__(self, name: str, only: str = "*", skip: str = "", again: str = "") -> None:
        super().__init__(RESULTS / f"{name}.jsonl", only, skip, again)
