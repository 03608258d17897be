"""The rows of this benchmark, in `results/accuracy.jsonl`, and the way to the trained networks of its siblings."""

import sys
from pathlib import Path

# At the end: modules of the same names beside this one come first.
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "pruning"))
sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import common
import subjects
import training
from common import Row, arguments, made
from subjects import Subject, open_images
from torch import nn

from afina.data import ImageData

__all__ = [
    "NAMES", "PAGE", "RUNS", "SHARES", "Row", "Rows", "Subject", "arguments", "made", "open_images", "open_subject",
]  # fmt: skip

PAGE = Path(__file__).parent / "results" / "tables.md"
RUNS = Path(__file__).parents[2] / "runs" / "pruning"  # where trained networks are kept
NAMES = (*subjects.NAMES, "resnet18")
SHARES = ("0.7", "0.5", "0.3")  # of the parameters


class Rows(common.Rows):
    """The rows; patterns as in `common.Rows`."""

    libraries = ("afina", "torch", "torchvision", "tensorly", "numpy", "scipy")
    shown = ("accuracy", "parameters", "macs", "failed")

    def __init__(self, only: str = "*", skip: str = "", again: str = "") -> None:
        super().__init__(PAGE.with_name("accuracy.jsonl"), only, skip, again)


def open_subject(name: str, shared: Path, data: ImageData) -> Subject:
    """The network of that name; ResNet-18 is the one of the recipes."""
    if name != "resnet18":
        return subjects.open_subject(name, shared, RUNS, data)
    network = training.trained(data, RUNS.with_name("recipes"))
    module = training.resnet18(data.task.outputs)
    left = module.load_state_dict(network.module.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    head = module.fc
    assert isinstance(head, nn.Linear)
    return Subject(name, module.eval(), network, head, data)
