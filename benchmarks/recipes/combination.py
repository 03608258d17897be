"""The combination: ResNet-18 in its CIFAR form (11.2 M parameters), trained here, then made 5 to 200 times smaller.

    python benchmarks/recipes/combination.py SHARED

Each row of `results/combination.jsonl` is one recipe, run by `afina.run` and judged as its ONNX file on the 10,000 test
images: accuracy, bytes, time of one image beside the original's, in turns. Everything resumes: training from its
checkpoint, recipes from their last finished step. The published mark for this model is 14.5 times smaller for 3.2
points (Tetra-AML, arXiv 2303.16214).
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import Row, Rows, arguments
from training import SCHEDULE, trained

import afina
from afina.capacity import available_cores
from afina.data import ImageData, open_data
from afina.devices import measure_latency
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.progress import PlainProgress
from afina.runtimes import get_runtime

RUNS = Path(__file__).parents[2] / "runs" / "recipes"
IMAGES = 512
EPOCHS = 1
# Share of the MACs that pruning leaves, share of the parameters that factorizing then leaves (1: not done), bits.
CURVE: dict[str, tuple[float, float, str]] = {
    "5x": (0.7, 1.0, "int8"),
    "15x": (0.5, 0.6, "int8"),
    "50x": (0.4, 0.6, "int4"),
    "100x": (0.2, 0.45, "int4"),
    "200x": (0.1, 0.45, "int4"),
}


class _Rows(Rows):
    libraries = ("afina", "torch", "torchvision", "onnxruntime")
    shown = ("accuracy", "original", "smaller", "faster", "failed")


def main() -> None:
    """The curve."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of distillation in each recipe")
    options = parser.parse_args()
    rows = _Rows(Path(__file__).with_name("results") / "combination.jsonl", options.only, options.skip, options.again)
    archive = str(options.shared / "data" / "cifar10-jpeg.zip")
    data = open_data(archive, seed=0, progress=PlainProgress(every=60))
    network = trained(data, RUNS)
    for name in CURVE:
        rows.measure(name, partial(row, name, network, data, options.epochs))


def recipe(name: str, epochs: int) -> list[dict[str, Any]]:
    """Prune, factorize, distill, quantize."""
    macs, parameters, bits = CURVE[name]
    steps: list[dict[str, Any]] = [{"prune": {"macs": macs, "images": IMAGES, "multiple": 8}}]
    if parameters < 1:
        steps.append({"factorize": {"parameters": parameters, "images": IMAGES}})
    steps.append({"distill": {"epochs": epochs, "precision": "bf16-mixed"}})
    return [*steps, {"quantize": {"weight_type": bits, "images": IMAGES}}]


def row(name: str, network: Network, data: ImageData, epochs: int) -> Row:
    """One recipe."""
    out = RUNS / f"combination-{name}"
    result = afina.run(recipe(name, epochs), network, data, out=out, progress=PlainProgress(every=60))
    original = RUNS / "resnet18.onnx"
    if not original.is_file():
        get_runtime("onnxruntime").export(network, original)
    files = {"original": original, "made": Path(result.file)}
    threads = available_cores()
    times = {key: m.value for key, m in measure_latency(files, network.input.shape, threads=threads).items()}
    return {
        "accuracy": round(result.quality.value, 4),
        "original": round(result.original.value, 4),
        "bytes": result.size,
        "smaller": round(result.original_size / result.size, 1),
        "faster": round(times["original"] / times["made"], 2),
        "latency": {key: round(value * 1e3, 3) for key, value in times.items()},
        "threads": threads,
        "recipe": recipe(name, epochs),
        "parameters": cost_of(Network.load(result.network)).parameters,
        "training": [vars(part) for part in SCHEDULE],
    }


if __name__ == "__main__":
    main()
