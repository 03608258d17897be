"""ResNet-20 on CIFAR-10 as JPEG into a budget. The run folder is kept and resumed, so a stopped run goes on."""

import argparse
import time
from pathlib import Path

from common import brief, keep

import afina
from afina.progress import PlainProgress

BUDGETS = {
    "small": {"size": "350KB", "max_drop": "1%"},
    "tight": {"size": "180KB", "max_drop": "3%"},
    "tiny": {"size": "80KB", "max_drop": "3%"},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="Folder with models/ and data/.")
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--out", default=None)
    arguments = parser.parse_args()
    start = time.monotonic()
    result = afina.optimize(
        f"{arguments.shared}/models/cifar_resnet.py:resnet20",
        f"{arguments.shared}/data/cifar10-jpeg.zip",
        weights=f"{arguments.shared}/models/resnet20_cifar10jpeg.safetensors",
        runtime=arguments.runtime,
        out=arguments.out or f"runs/cifar-{arguments.budget}-{arguments.runtime}",
        progress=PlainProgress(),
        **BUDGETS[arguments.budget],
    )
    keep(f"cifar-resnet20-{arguments.budget}-{arguments.runtime}", brief(result, time.monotonic() - start))
