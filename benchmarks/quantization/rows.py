"""The rows that each benchmark here keeps: one JSON line for each name, with versions, machine and date."""

import argparse
import json
import time
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from afina.jobs.machine import available_cores, processor

RESULTS = Path(__file__).with_name("results")
RUNS = Path(__file__).parents[2] / "runs" / "quantization"
LIBRARIES = ("afina", "torch", "torchvision", "timm", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
_SHOWN = (
    "accuracy", "agreement", "snr", "simulated", "same", "bytes", "latency", "ratio", "took", "peak", "onnxruntime",
    "openvino", "failed",
)  # fmt: skip

Row = dict[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with models/ and data/")
    parser.add_argument("--only", default="*", help="names of rows, as in 'resnet20/W8A8/*'")
    parser.add_argument("--skip", default="", help="names of rows that are left out, as in '*/afina*'")
    parser.add_argument("--again", default="", help="names of rows that are measured again")
    return parser


class Rows:
    """Rows of one benchmark, in `results/NAME.jsonl`; the last of a name counts.

    Args:
        name: Of the file.
        only: Pattern of the rows that are wanted.
        skip: Pattern of those among them that are not.
        again: Pattern of the rows that are wanted although they are there.
    """

    def __init__(self, name: str, only: str = "*", skip: str = "", again: str = "") -> None:
        self._path, self._only, self._skip, self._again = RESULTS / f"{name}.jsonl", only, skip, again
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        self.found: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}

    def wanted(self, name: str) -> bool:
        """Whether it was asked for, and is not there."""
        there = name in self.found and not (self._again and fnmatch(name, self._again))
        return fnmatch(name, self._only) and not fnmatch(name, self._skip) and not there

    def measure(self, name: str, measure: Callable[[], Row]) -> None:
        """Measure and keep one row, where it is wanted; what fails is kept as `failed`, with the reason."""
        if not self.wanted(name):
            return
        start = time.monotonic()
        try:
            values = measure()
        except Exception as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            values = {"failed": f"{type(error).__name__}: {first[:300]}"}
        self.keep(name, values, time.monotonic() - start)

    def keep(self, name: str, values: Row, seconds: float) -> None:
        """Write one row at once, so that a stopped run goes on after it."""
        row = {"name": name, **values, "seconds": round(seconds, 1), **about()}
        self.found[name] = row
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, {key: row[key] for key in _SHOWN if key in row}, flush=True)


def about() -> Row:
    """When, where and with which versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {available_cores()} cores",
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
