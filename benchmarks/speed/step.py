"""One step of one network in a process of its own: `step.py STEP NETWORK IMAGES COUNT WEIGHTS`; prints a line of JSON.

It uses nothing but Afina's public functions, so that it runs with older versions too.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

SIZE = (224, 224)
CIFAR_EPOCH, OPTIMIZE = "epoch", "optimize"


def main() -> None:
    """Load, warm up what is imported, measure."""
    warnings.filterwarnings("ignore")
    step, name, images, count, weights = sys.argv[1:]
    import afina  # a public import is part of no step

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        row = _measured(afina, step, name, images, int(count), Path(weights), Path(folder))
    print(json.dumps(row))


def module_of(name: str, weights: Path) -> nn.Module:
    """A network of random weights, whose norms have statistics of photographs where `weights` holds them."""
    if name.startswith("vit"):
        import timm

        module: nn.Module = timm.create_model("vit_small_patch16_224", pretrained=False)
    elif name == "reader":
        module = Reader()
    else:
        module = torchvision.models.get_model(name, weights=None)
    if weights.is_file():
        module.load_state_dict(torch.load(weights))
    return module.eval()


class Reader(nn.Module):
    """A text reader: a convolution, an LSTM of two layers in both directions, a GRU, over the columns of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(32, 4)
        self.lstm = nn.LSTM(16, 20, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(40, 16, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of images `[N, 1, H, W]`, four numbers each."""
        columns = torch.relu(self.stem(x)).mean(2).transpose(1, 2)
        return self.head(self.gru(self.lstm(columns)[0])[0]).mean(1)  # type: ignore[no-any-return]


def _measured(afina, step, name, images, count, weights, folder):  # type: ignore[no-untyped-def]
    shared = Path(images)
    if step == CIFAR_EPOCH:
        return _epoch(shared)
    if step == OPTIMIZE:
        return _optimized(afina, shared, folder)
    if step == "profile":
        return _profiled(name)
    module, given = module_of(name, weights), {"input_size": SIZE, "images": count}
    example = torch.zeros(1, 1, 16, 48) if name == "reader" else torch.zeros(1, 3, *SIZE)
    calls = {
        "prune": lambda: afina.prune(module, images, macs="50%", **given),
        "factorize": lambda: afina.factorize(module, images, parameters="50%", **given),
        "sensitivity": lambda: afina.sensitivity(module, images, **given),
        "sparsify": lambda: afina.sparsify(module, images, sparsity="50%", **given),
        "int8": lambda: afina.quantize(module, images, **given),
        "int4": lambda: afina.quantize(module, images, weight_type="int4", **given),
        "export": lambda: afina.export(module, to="onnx", out=folder / "file.onnx", example=example),
    }
    begun, used = time.monotonic(), time.process_time()
    found = calls[step]()
    row = {"took": round(time.monotonic() - begun, 2), "processor": round(time.process_time() - used, 2), **_peak()}
    if step in ("prune", "factorize"):
        row["agreement"] = round(found[1].after["quality"], 4)
    return row


def _peak() -> dict[str, int]:
    """Megabytes of resident memory at the process's peak."""
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def _profiled(name: str) -> dict[str, float]:
    """A whole command, from the shell's point of view."""
    command = [sys.executable, "-m", "afina", "profile", f"torchvision:{name}"]
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "took": round(time.monotonic() - begun, 2),
        "processor": round(used.ru_utime + used.ru_stime, 2),
        "peak": used.ru_maxrss // 1024,
    }


def _resnet20(shared: Path) -> nn.Module:
    from safetensors.torch import load_file

    sys.path.insert(0, str(shared / "models"))
    from cifar_resnet import resnet20

    module: nn.Module = resnet20()
    module.load_state_dict(load_file(shared / "models" / "resnet20_cifar10jpeg.safetensors"))
    return module


def _epoch(shared: Path) -> dict[str, float]:
    """The second of two epochs of ResNet-20 over 50,000 images: the first decodes them."""
    from afina.data import open_data
    from afina.graph import capture
    from afina.training import FitConfig, fit

    data = open_data(str(shared / "data" / "cifar10-jpeg.zip"))
    network = capture(_resnet20(shared), data.native, data.task)
    data.read(network.input)
    used = time.process_time()
    _, curve = fit(network, data, FitConfig(epochs=2, learning_rate=0.01))
    return {"took": round(curve[-1].seconds, 2), "processor": round((time.process_time() - used) / 2, 2), **_peak()}


def _optimized(afina, shared: Path, folder: Path):  # type: ignore[no-untyped-def]
    begun, used = time.monotonic(), time.process_time()
    result = afina.optimize(
        _resnet20(shared).eval(), str(shared / "data" / "cifar10-jpeg.zip"), size="180KB", max_drop="3%",
        out=folder / "run",
    )  # fmt: skip
    row = {"took": round(time.monotonic() - begun, 2), "processor": round(time.process_time() - used, 2), **_peak()}
    return {**row, "verdict": result.verdict, "drop": result.drop}


if __name__ == "__main__":
    main()
