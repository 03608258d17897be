"""The rows of this benchmark, in `results/accuracy.jsonl`, and the way to the trained networks of `../pruning`."""

import sys
from pathlib import Path

# At the end: modules of the same names beside this one come first.
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "pruning"))
import common
from common import Row, arguments, made
from subjects import NAMES, Subject, open_images, open_subject

__all__ = [
    "NAMES", "PAGE", "RUNS", "SHARES", "Row", "Rows", "Subject", "arguments", "made", "open_images", "open_subject",
]  # fmt: skip

PAGE = Path(__file__).parent / "results" / "tables.md"
RUNS = Path(__file__).parents[2] / "runs" / "pruning"  # where trained networks are kept
SHARES = ("0.7", "0.5", "0.3")  # of the parameters


class Rows(common.Rows):
    """The rows; patterns as in `common.Rows`."""

    libraries = ("afina", "torch", "torchvision", "tensorly", "numpy", "scipy")
    shown = ("accuracy", "parameters", "macs", "failed")

    def __init__(self, only: str = "*", skip: str = "", again: str = "") -> None:
        super().__init__(PAGE.with_name("accuracy.jsonl"), only, skip, again)
