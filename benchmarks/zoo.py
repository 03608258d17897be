"""Torchvision networks at 224 pixels through every step: capture, save and load, pruning, int8, both runtimes."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import keep

from afina.devices import measure_latency
from afina.errors import AfinaError
from afina.graph import Network
from afina.graph.cost import cost_of
from afina.models import load_model
from afina.progress import Progress
from afina.runtimes import check_parity, get_runtime
from afina.tasks.base import only_output as only
from afina.techniques import prune, quantize
from afina.techniques.context import Context

NAMES = ("resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small")
RUNTIMES = ("onnxruntime", "openvino")


def main() -> None:
    """Run all networks (or those named on the command line) and keep the table."""
    rows = {}
    for name in sys.argv[1:] or NAMES:
        start = time.monotonic()
        rows[name] = study(name)
        rows[name]["seconds"] = round(time.monotonic() - start)
        print(name, rows[name], flush=True)
    keep("zoo", {"networks": rows})


def study(name: str) -> dict[str, Any]:
    """One network: what each step gave."""
    torch.manual_seed(0)
    loaded = load_model(
        f"torchvision:{name}",
        weights="random",
        task=None,
        input=None,
        input_size=(224, 224),
        targets=None,
        progress=Progress(),
    )
    original = loaded.network
    context = Context(calibration=lambda: iter(_images(original).split(8)))
    with tempfile.TemporaryDirectory() as folder:
        path = original.save(Path(folder) / "network.pt2")
        again = Network.load(path)
        with original.inference(), again.inference():
            difference = float((only(original(original.example())) - only(again(again.example()))).abs().max())
        pruned, record = prune.apply(original, prune.PruneConfig(ratio=0.5), context)
        variants = {"float": original, "pruned": pruned}
        variants["int8"], quantized = quantize.apply(original, quantize.QuantizeConfig(), context)
        variants["pruned-int8"], _ = quantize.apply(pruned, quantize.QuantizeConfig(), context)
        return {
            "save_load_difference": difference,
            "parameters_kept": cost_of(pruned).parameters / cost_of(original).parameters,
            "macs_kept": cost_of(pruned).macs / cost_of(original).macs,
            "left_whole": len(record.skipped),
            "int8_layers": len(quantized.touched),
            "runtimes": {runtime: _on(runtime, variants, Path(folder)) for runtime in RUNTIMES},
        }


def _on(runtime: str, variants: dict[str, Network], folder: Path) -> dict[str, Any]:
    chosen = get_runtime(runtime)
    paths, rows = {}, {}
    for name, network in variants.items():
        try:
            path = chosen.export(network, folder / f"{runtime}-{name}{chosen.suffix}")
            parity = check_parity(network, path, None, threads=2)
        except AfinaError as error:
            rows[name] = {"failed": str(error)}
            continue
        paths[name] = path
        rows[name] = {"parity": parity, "size": sum(part.stat().st_size for part in chosen.files(path))}
    for name, latency in measure_latency(paths, (3, 224, 224), threads=2).items():
        rows[name]["milliseconds"] = round(latency.value * 1e3, 3)
    return rows


def _images(network: Network) -> torch.Tensor:
    return torch.randn(32, *network.input.shape, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
