"""Networks with other outputs than one vector, through every step, on photographs.

    python benchmarks/outputs.py SHARED                     # what has no row yet; a run that was stopped goes on
    python benchmarks/outputs.py SHARED --only 'rt_detr*' --again '*'
    python benchmarks/outputs.py SHARED --table             # only the table, from the rows

Each network is captured, saved and loaded, pruned to 70% of its MACs, factorized to 70% of its parameters, taught by
itself for an epoch once it is pruned, and quantized to int8 for each runtime. The network itself and the pruned one are
exported to both runtimes (the pruned one to the second once it is taught), the factorized one to the first, and the
files are compared with their networks on photographs. A step passes, is refused (a clear error of
Afina, kept with its text), or fails: any other error, a file that answers otherwise, a loaded network that differs.

SHARED is a folder with `data/photos.zip`. `pip install transformers ultralytics` for the networks of those.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Row, Rows, arguments, made
from output_networks import Subject, settle, subjects

import afina
from afina.capacity import available_cores
from afina.data import ImageData, open_data
from afina.errors import AfinaError, ParityError, first_lines
from afina.graph import Network, capture
from afina.graph.cost import cost_of
from afina.jobs.common.subject import context_of
from afina.progress import Progress
from afina.runtimes import check_parity, get_runtime, measure_quality, outputs_of_file
from afina.tasks import get_task
from afina.techniques import quantize
from afina.techniques.quantize import QuantizeConfig
from afina.types import InputSpec

RUNTIMES = ("onnxruntime", "openvino")
STEPS = (
    "capture", "save", "export", "prune", "factorize", "distil", *(f"int8 {runtime}" for runtime in RUNTIMES),
)  # fmt: skip
_PHOTOS, _SETTLING = 80, 16  # a fifth of the photographs is set aside, and all files are compared on those
_BATCH = 8
_SHARE = "70%"


class OutputRows(Rows):
    """One row for each network."""

    libraries = ("afina", "torch", "torchvision", "onnx", "onnxruntime", "openvino", "transformers", "ultralytics")
    shown = ("failed", "steps")


def main() -> None:
    """One process for each row, so that none takes another's memory with it."""
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=float, default=600, help="seconds for a network")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", help="measure this network here, and print its row")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(subjects()[options.one], options.shared / "data" / "photos.zip")))
        return
    rows = OutputRows(RESULTS / "outputs.jsonl", options.only, options.skip, options.again)
    if not options.table:
        for name in subjects():
            rows.measure(name, partial(_apart, name, options.shared, options.limit))
    print(table(list(rows.found.values())))


def _apart(name: str, shared: Path, limit: float) -> Row:
    command = [sys.executable, __file__, str(shared), "--one", name]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done after {limit:.0f} s") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@dataclass
class _Trial:
    """One network on its way through the steps.

    Attributes:
        subject: Its description.
        photos: The photographs, in a folder.
        scratch: A folder for files.
        row: What is kept of it.
        network: The captured network.
        pruned: The pruned one; None where there is none.
        files: The files of the captured network, by runtime.
        numbers: Numbers of files.
    """

    subject: Subject
    photos: Path
    scratch: Path
    row: Row = field(default_factory=dict)
    network: Network = None  # type: ignore[assignment]
    pruned: Network | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)

    @property
    def data(self) -> ImageData:
        return open_data(self.photos, seed=0, unlabelled=True).without_labels()

    def capture(self) -> None:
        torch.manual_seed(0)
        module = self.subject.build().eval()
        spec = InputSpec(self.subject.side, self.subject.side)
        batches = self.data.batches("train", spec, batch_size=_SETTLING, limit=_SETTLING)
        images = next(iter(batches))[0]
        self.network = capture(settle(module, images), spec, images=images[:4])
        cost = cost_of(self.network)
        self.row["parameters"], self.row["macs"] = cost.parameters, cost.macs
        self.row["batch"], self.row["outputs"] = self.network.batch_size, list(self.network.outputs)

    def save(self) -> None:
        again = Network.load(self.network.save(self.scratch / "network.pt2"))
        images = self._images(4)
        with self.network.inference(), again.inference():
            expected, answers = self.network(images), again(images)
        wrong = [name for name, value in expected.items() if not torch.equal(value, answers[name])]
        if wrong:
            raise ValueError(f"the loaded network gives another {wrong[0]}")

    def export(self) -> None:
        self.files = self._compare("float", self.network)

    def prune(self) -> None:
        self.pruned, record = afina.prune(
            self.network, self.photos, macs=_SHARE, images=self.subject.images, threads=available_cores()
        )
        self._note("prune", record, "macs")
        self._compare("pruned", self.pruned, only=RUNTIMES[0])

    def factorize(self) -> None:
        chains, record = afina.factorize(
            self.network, self.photos, parameters=_SHARE, images=self.subject.images, threads=available_cores()
        )
        self._note("factorize", record, "parameters")
        self._compare("factorized", chains, only=RUNTIMES[0])

    def distil(self) -> None:
        if self.pruned is None:
            raise AfinaError("There is no pruned network to teach.")
        student, record = afina.distill(self.network, self.pruned, unlabelled=self.photos, epochs=1, batch_size=_BATCH)
        self.row["distil"] = {"before": _brief(record.before["quality"]), "after": _brief(record.after["quality"])}
        self._compare("distilled", student, only=RUNTIMES[1])

    def quantize(self, runtime: str) -> None:
        config = QuantizeConfig(policy=get_runtime(runtime).policy())
        context = context_of(self.data, self.network, self.subject.images, 0, Progress())
        small, record = quantize.apply(self.network, config, context)
        files = self._compare("int8", small, only=runtime)
        original = self.files.get(runtime) or get_runtime(runtime).export(self.network, self._path(runtime))
        reference, answers = (
            outputs_of_file(file, self.data, self.network.input, threads=available_cores())
            for file in (original, files[runtime])
        )
        task = get_task(self.network.task)
        quality = measure_quality(
            answers, self.data, task, self.network.input, reference=reference, runtime=get_runtime(runtime)
        )
        self.row[f"int8 {runtime}"] = {
            "layers": len(record.touched),
            "agreement": _brief(quality.value),
            "details": {name: _brief(value) for name, value in quality.details.items()},
            "bytes": record.after["bytes"] / record.before["bytes"],
        }

    def _note(self, step: str, record: Any, cost: str) -> None:
        kept = record.after[cost] / record.before[cost]
        self.row[step] = {f"{cost} kept": _brief(kept), "agreement": _brief(record.after["quality"])}

    def _compare(self, variant: str, network: Network, only: str = "") -> dict[str, Path]:
        """Export a network and compare the files with it; gives the files by runtime."""
        files = {}
        for runtime in [only] if only else RUNTIMES:
            files[runtime] = get_runtime(runtime).export(network, self._path(runtime))
            difference = check_parity(network, files[runtime], self.data, threads=available_cores())
            self.row.setdefault("parity", {})[f"{variant} {runtime}"] = _brief(difference)
        return files

    def _path(self, runtime: str) -> Path:
        return self.scratch / f"{next(self.numbers)}{get_runtime(runtime).suffix}"

    def _images(self, count: int) -> torch.Tensor:
        batches = self.data.batches("validation", self.network.input, batch_size=count, limit=count)
        return next(iter(batches))[0]


def measure(subject: Subject, archive: Path) -> Row:
    """What each step gave for one network."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        photos, scratch = Path(folder) / "photos", Path(folder) / "files"
        scratch.mkdir()
        _unpack(archive, photos)
        trial = _Trial(subject, photos, scratch)
        trial.row.update({"kind": subject.kind, "side": subject.side, "steps": {}, "took": {}})
        steps: Mapping[str, Callable[[], None]] = {
            **{name: getattr(trial, name) for name in STEPS[:-2]},
            **{f"int8 {runtime}": partial(trial.quantize, runtime) for runtime in RUNTIMES},
        }
        for name, step in steps.items():
            start = time.monotonic()
            trial.row["steps"][name] = _outcome(step, photos.parent)
            trial.row["took"][name] = round(time.monotonic() - start, 1)
            print(name, trial.row["steps"][name], trial.row["took"][name], file=sys.stderr, flush=True)
            if name == "capture" and trial.network is None:
                break
        return trial.row


def _outcome(step: Callable[[], None], folder: Path) -> str:
    """`pass`, `refused: why` or `failed: why`."""
    try:
        step()
    except ParityError as error:
        # Where the network itself answers otherwise once its numbers change in the seventh digit, no file is right.
        kind = "refused" if "So does the network" in str(error) else "failed"
        said = f"{kind}: ParityError: {error}"
    except AfinaError as error:
        said = f"refused: {type(error).__name__}: {error}"
    except Exception as error:
        if os.environ.get("TRACEBACK"):
            raise
        said = f"failed: {type(error).__name__}: {first_lines(error)}"
    else:
        return "pass"
    return " ".join(said.replace(str(folder), "").split())[:600]


def _unpack(archive: Path, folder: Path) -> None:
    """Every fifth of the photographs, in a plain folder."""
    with zipfile.ZipFile(archive) as photos:
        names = sorted(name for name in photos.namelist() if name.endswith(".jpg"))
        photos.extractall(folder, names[:: len(names) // _PHOTOS][:_PHOTOS])


def _brief(value: float) -> float:
    return float(f"{value:.4g}")


def table(rows: list[Row]) -> str:
    """The table of results, in Markdown."""
    lines = [
        f"| network | gives | {' | '.join(STEPS)} | int8 of the worst output, dB | seconds |",
        "| --- | --- |" + " --- |" * (len(STEPS) + 2),
    ]
    for row in rows:
        steps = row.get("steps", {})
        cells = [steps.get(step, row.get("failed", "")).partition(":")[0] for step in STEPS]
        decibels = [_worst(row.get(f"int8 {runtime}")) for runtime in RUNTIMES]
        lines.append(
            f"| {row['name']} | {row.get('kind', '')} | {' | '.join(cells)} | {' and '.join(decibels)} "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join([*lines, "", made(rows)])


def _worst(part: Mapping[str, Any] | None) -> str:
    figures = [value for name, value in (part or {}).get("details", {}).items() if name.endswith("in dB")]
    return f"{min(figures):.0f}" if figures else "-"


if __name__ == "__main__":
    main()
