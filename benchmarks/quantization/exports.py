"""How long an export to ONNX takes, beside torch.onnx by itself: what a plan waits for.

    python benchmarks/quantization/exports.py SHARED

Rows in `results/exports.jsonl`, named MODEL/FORM, with seconds of both, in turns. Models are those of the zoo, with
random weights; int8 is made without care. SHARED is not read.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

import torch
from models import load
from rows import Row, Rows, arguments

from afina.graph import Network
from afina.runtimes import get_runtime
from afina.runtimes.onnx_file import OPSET
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply

MODELS = (
    *("torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0", "torchvision:swin_t"),
    *("torchvision:swin_v2_t", "torchvision:densenet121", "timm:coat_tiny", "timm:efficientvit_m0", "timm:mvitv2_tiny"),
)
FORMS = ("float", "int8")
_TURNS = 3


def main() -> None:
    """Each model in each form."""
    options = arguments(__doc__).parse_args()
    rows = Rows("exports", options.only, options.skip, options.again)
    for model in MODELS:
        for form in FORMS:
            rows.measure(f"{model}/{form}", partial(measure, model, form))


def measure(model: str, form: str) -> Row:
    """Median seconds of each way, and what it wrote."""
    network = load(model)
    network = network if form == "float" else _int8(network)
    ways: dict[str, Callable[[Network, Path], object]] = {
        "afina": get_runtime("onnxruntime").export,
        "torch": _by_torch,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for name in (*ways, *[name for _ in range(_TURNS) for name in ways]):
            start = time.perf_counter()
            ways[name](network, path)
            took[name].append(time.perf_counter() - start)
            sizes[name] = path.stat().st_size
    # The first of each loads libraries.
    seconds = {name: round(median(values[1:]), 2) for name, values in took.items()}
    return {"took": seconds, "bytes": sizes, "ratio": round(seconds["afina"] / seconds["torch"], 3)}


def _int8(network: Network) -> Network:
    images = torch.randn(4, *network.input.shape, generator=torch.Generator().manual_seed(0))
    config = QuantizeConfig(calibration="minmax", rounding="nearest", equalize="none")
    return apply(network, config, Context(calibration=lambda: iter([images]), images=len(images)))[0]


def _by_torch(network: Network, path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(network.exported(), dynamo=True, verbose=False, opset_version=OPSET)
    assert program is not None
    program.save(path, external_data=False)


if __name__ == "__main__":
    main()
