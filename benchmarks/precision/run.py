"""Step time and peak memory of training in each precision policy, beside plain 32 bits.

Whole steps of the library (forward, loss, backward, clipping, optimizer, moving average) on random images. Policies
take their steps in turns, in random order, and are compared by ratios within a turn; memory is that of a process of its
own. A precision that the processor has no instructions for is measured apart, beside 32 bits, at a batch of 2: at more
it takes minutes for a step. Rows are kept in `results/policies.jsonl`. Runs on a GPU where torch finds one;
`OMP_NUM_THREADS` says the threads.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import timm
import torch
import torchvision
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
import common
from common import Row

from afina.graph import Network, capture
from afina.tasks import get_task
from afina.training import FitConfig, layer_dtypes
from afina.training.layout import fitting_layout, place
from afina.training.losses import Objective
from afina.training.policy import keep_in_32, summary
from afina.training.precision import is_emulated, make_fabric
from afina.training.step import Stepper
from afina.training.team import Seat, Team
from afina.types import InputSpec, TaskSpec

BASE = "32"
# Precision, whether the library's own policy is applied, and whether first and last layer are kept in 32 bits.
POLICIES = {
    BASE: ("32", True, False),
    "bf16-mixed": ("bf16-mixed", True, False),
    "bf16-mixed, ends in 32": ("bf16-mixed", True, True),
    "bf16-mixed, autocast alone": ("bf16-mixed", False, False),
    "16-mixed": ("16-mixed", True, False),
}
# Size in pixels, batch, first and last layer.
SUBJECTS = {"resnet18": (32, 128, ("conv1", "fc")), "vit_tiny": (224, 8, ("patch_embed", "head"))}
MEMORY_STEPS = 2
EMULATED_BATCH = 2


class Rows(common.Rows):
    libraries = ("afina", "torch", "torchvision", "timm", "lightning-fabric", "numpy")
    shown = ("seconds_per_step", "ratio", "peak", "added", "added_ratio")


def network_of(name: str) -> Network:
    """ResNet-18 in its CIFAR form (a 3 x 3 stem, no pooling behind it), or the smallest plain vision transformer."""
    torch.manual_seed(0)
    size = SUBJECTS[name][0]
    if name == "resnet18":
        module: nn.Module = torchvision.models.resnet18(num_classes=10)
        module.conv1, module.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    else:
        module = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    return capture(module, InputSpec(size, size), TaskSpec("classification", tuple("0123456789")))


def stepper_of(network: Network, name: str, policy: str, batch: int) -> Callable[[], float]:
    """A function that takes one step, and gives its seconds."""
    precision, own, ends = POLICIES[policy]
    kept = SUBJECTS[name][2] if ends else ()
    config = FitConfig(precision=precision, keep_fp32=kept, batch_size=batch, optimizer="adamw").resolved()
    fabric = make_fabric(config.precision)
    layout = fitting_layout(network, True)
    twin = place(network.copy(), fabric.device, layout)
    objective = Objective(get_task(twin.task), config, labelled=True, network=twin, teacher=None)
    if own and precision != "32":
        keep_in_32(twin, kept)
    stepper = Stepper(twin.train(), config, Team(fabric, Seat()), objective, 1000, layout)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *twin.input.shape, generator=generator)
    targets = torch.randint(10, (batch,), generator=generator)

    def step() -> float:
        start = time.perf_counter()
        stepper.take(images, targets, 1)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def times(name: str, policies: list[str], batch: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each step by policy, in turns, for about so many seconds and at least three turns."""
    network = network_of(name)
    steps = {policy: stepper_of(network, name, policy, batch) for policy in policies}
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {policy: [] for policy in policies}
    order, begun = random.Random(0), time.monotonic()
    while len(found[BASE]) < 3 or time.monotonic() - begun < seconds:
        for policy in order.sample(policies, len(policies)):
            found[policy].append(steps[policy]())
    return found


def peak(name: str, policy: str, batch: int) -> dict[str, int]:
    """Bytes of memory at the peak of some steps, and before them (`start`): resident, or on the GPU."""
    network = network_of(name)
    step = stepper_of(network, name, policy, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        start = psutil.Process().memory_info().rss
    for _ in range(MEMORY_STEPS):
        step()
    if torch.cuda.is_available():
        return {"start": start, "peak": torch.cuda.max_memory_allocated()}
    return {"start": start, "peak": _resident_peak()}


def _resident_peak() -> int:
    """Of this process since it began its program; `getrusage` would count its parent's memory too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_apart(name: str, policy: str, batch: int) -> dict[str, int]:
    """`peak`, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, policy, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(rows: Rows, name: str, policies: list[str], batch: int, seconds: float) -> None:
    """Measure one network in some policies and keep the rows."""
    begun = time.monotonic()
    taken = times(name, policies, batch, seconds)
    network = network_of(name)
    memory = {policy: peak_apart(name, policy, batch) for policy in policies}
    added = {policy: found["peak"] - found["start"] for policy, found in memory.items()}
    device = make_fabric("32").device
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    for policy in policies:
        precision, own, ends = POLICIES[policy]
        ratios = np.array(taken[policy]) / np.array(taken[BASE])
        kept = SUBJECTS[name][2] if ends else ()
        row: Row = {
            "seconds_per_step": round(median(taken[policy]), 4),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
            "turns": len(ratios),
            "batch": batch,
            "peak": memory[policy]["peak"],
            "added": added[policy],
            "added_ratio": round(added[policy] / added[BASE], 3),
            "emulated": is_emulated(precision, device),
            "where": where,
            "layers": summary(layer_dtypes(network, precision, kept)) if own else "as autocast has it",
        }
        rows.keep(f"{name}/{device.type}/{batch}/{policy}", row, time.monotonic() - begun)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing, for each network")
    parser.add_argument("--only", choices=SUBJECTS, help="one network")
    parser.add_argument("--without", action="append", default=[], choices=POLICIES, help="a policy that is left out")
    parser.add_argument("--peak", nargs=3, metavar=("NETWORK", "POLICY", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        name, policy, batch = arguments.peak
        print(json.dumps(peak(name, policy, int(batch))))
        return
    rows = Rows(Path(__file__).with_name("results") / "policies.jsonl")
    wanted = [policy for policy in POLICIES if policy not in arguments.without]
    device = make_fabric("32").device
    slow = [policy for policy in wanted if is_emulated(POLICIES[policy][0], device)]
    for name in (arguments.only,) if arguments.only else SUBJECTS:
        measure(rows, name, [policy for policy in wanted if policy not in slow], SUBJECTS[name][1], arguments.seconds)
        if slow:
            measure(rows, name, [BASE, *slow], EMULATED_BATCH, arguments.seconds / 4)


if __name__ == "__main__":
    main()
