"""Time and peak memory of pruning ResNet-50 at 224 pixels on 512 images, statistics and refit included."""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import keep

from afina.data import open_data
from afina.graph import capture
from afina.graph.cost import cost_of
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.subject import context_of
from afina.jobs.options.targets import Goal
from afina.jobs.planning.axes import AxisPlanner
from afina.jobs.planning.targets import target_of
from afina.progress import PlainProgress
from afina.runtimes import get_runtime
from afina.techniques.prune import PruneConfig, Study
from afina.types import InputSpec, TaskSpec

IMAGES = 512


def peak() -> int:
    """Bytes of resident memory at the process's peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure each stage once, in the order in which `afina prune` runs them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="Folder with data/cifar10-jpeg.zip.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    task = TaskSpec("classification", tuple(map(str, range(1000))))
    network = capture(torchvision.models.resnet50(weights=None), InputSpec(224, 224), task)
    data = open_data(str(arguments.shared / "data" / "cifar10-jpeg.zip"), seed=0)
    rows = {"start": {"seconds": 0.0, "peak": peak()}}

    def note(stage: str, start: float) -> None:
        rows[stage] = {"seconds": round(time.monotonic() - start, 1), "peak": peak()}
        print(stage, rows[stage], flush=True)

    start = time.monotonic()
    study = Study(network, PruneConfig(), context_of(data, network, IMAGES, 0, PlainProgress(every=60)))
    note("analysis", start)
    start = time.monotonic()
    assert study.moments
    note("statistics", start)
    start = time.monotonic()
    target = target_of(Goal("macs", 0.5), network, Exporter(get_runtime("onnxruntime"), 1))
    counts = AxisPlanner(study, "global", "macs").reach(target)
    note("sensitivities and plan", start)
    start = time.monotonic()
    pruned, _ = study.prune(counts)
    note("pruning and refit", start)
    keep("prune-memory", {"images": IMAGES, "macs_kept": cost_of(pruned).macs / cost_of(network).macs, "stages": rows})


if __name__ == "__main__":
    main()
