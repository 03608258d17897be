"""How long each step takes, and how much memory: networks at 224 pixels, with 400 photographs or 128.

    python benchmarks/speed/run.py SHARED                         # what has no row yet; a stopped run goes on
    python benchmarks/speed/run.py SHARED --before CHECKOUT/src   # in turns with an older version
    python benchmarks/speed/run.py SHARED --table                 # only the table, from the rows

Each step runs in a process of its own. Weights are random (nothing is downloaded), with statistics of norms from
photographs. ResNets see all 400 photographs, the others 128. With `--before` every row is measured with both versions,
one after the other, and kept as `.../before` too: with 64 photographs, and stopped after five minutes, as older
versions need many times as long.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Row, Rows, arguments, made
from step import CIFAR_EPOCH, OPTIMIZE, SIZE, module_of

NETWORKS = ("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "vit_small", "convnext_tiny")
STEPS = ("prune", "factorize", "sensitivity", "sparsify", "int8", "int4", "export", "profile")
OTHERS = ((CIFAR_EPOCH, "resnet20"), (OPTIMIZE, "resnet20"), ("export", "reader"))
IMAGES, FEWER, FEW, LIMIT, LIMIT_BEFORE = 400, 128, 64, 1800, 300
STEP = Path(__file__).with_name("step.py")


class SpeedRows(Rows):
    """Rows of this benchmark."""

    libraries = ("afina", "torch", "torchvision", "timm")
    shown = ("took", "processor", "peak", "agreement", "failed")


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--before", type=Path, help="the folder `src` of an older version, measured in turns")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    rows = SpeedRows(Path(__file__).parent / "results" / "speed.jsonl", options.only, options.skip, options.again)
    if not options.table:
        with tempfile.TemporaryDirectory() as folder:
            for step, name in (*((step, name) for name in NETWORKS for step in STEPS), *OTHERS):
                if (step, name) != ("profile", "vit_small"):  # a module of timm's is no name for the command
                    _measure(rows, step, name, options.shared, options.before, Path(folder))
    print(table(rows.found))


def _measure(rows: SpeedRows, step: str, name: str, shared: Path, before: Path | None, folder: Path) -> None:
    photos, weights = folder / "photos", folder / f"{name}.pt"
    few = (step, name) not in OTHERS and before is not None
    label = f"{name}/{step}" + (f"/{FEW} photographs" if few else "")
    if not any(rows.wanted(each) for each in (label, f"{label}/before")):
        return
    if not photos.is_dir():
        subprocess.run([sys.executable, "-m", "zipfile", "-e", shared / "data" / "photos.zip", photos], check=True)
    if (step, name) not in OTHERS and not weights.is_file():
        prepare(name, photos, weights)
    images = shared if step in (CIFAR_EPOCH, OPTIMIZE) else photos
    count = FEW if few else IMAGES if name.startswith("resnet") else FEWER
    arguments = [step, name, str(images), str(count), str(weights)]
    rows.measure(label, partial(_apart, arguments, None, LIMIT))
    if before is not None:
        rows.measure(
            f"{label}/before", partial(_apart, arguments, before, LIMIT if name == "resnet20" else LIMIT_BEFORE)
        )


def prepare(name: str, photos: Path, weights: Path) -> None:
    """Keep a network's random weights, its norms with the statistics of 32 photographs."""
    torch.manual_seed(0)
    module = module_of(name, weights)
    files = sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".png"))[:32]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(file).convert("RGB").resize(SIZE))).permute(2, 0, 1) for file in files]
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
            part.train()
    with torch.no_grad():
        module(images)
    torch.save(module.state_dict(), weights)


def _apart(arguments: list[str], source: Path | None, limit: float) -> Row:
    """What a step took in a process of its own, with this version or that of the folder `source`."""
    environment = {**os.environ, "AFINA_CACHE": "off"}
    if source is not None:
        environment["PYTHONPATH"] = str(source.resolve())
    try:
        done = subprocess.run(
            [sys.executable, STEP, *arguments], env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:.0f} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def table(rows: dict[str, Row]) -> str:
    """The table of results, in Markdown: seconds and peak memory; and beside an older version."""
    lines = [
        "| network | step | seconds | of one core | peak, MB | agreement |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        parts = name.split("/")
        if len(parts) == 2:
            cells = [
                row.get("took", row.get("failed", "")),
                *(row.get(k, "") for k in ("processor", "peak", "agreement")),
            ]
            lines.append(f"| {parts[0]} | {parts[1]} | {' | '.join(map(str, cells))} |")
    pairs = {name.removesuffix("/before"): row for name, row in rows.items() if name.endswith("/before")}
    if pairs:
        lines += ["", "| network | step | images | seconds | before | times |", "| --- | --- | --- | --- | --- | --- |"]
    for name, before in pairs.items():
        network, step, *rest = name.split("/")
        now, then = rows[name].get("took"), before.get("took")
        times = f"{then / now:.1f}" if now and then else ""
        lines.append(
            f"| {network} | {step} | {rest[0] if rest else ''} | {now or rows[name].get('failed')} "
            f"| {then or before.get('failed')} | {times} |"
        )
    return "\n".join([*lines, "", made(rows.values())])


if __name__ == "__main__":
    main()
