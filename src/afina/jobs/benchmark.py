"""`afina benchmark`: files for any runtime side by side, on the same images and the same machine."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from afina.capacity import available_cores
from afina.data import ImageData
from afina.devices import measure_latency, measure_memory
from afina.errors import InputError, check_file
from afina.jobs.common.chance import near_chance
from afina.jobs.common.model_source import parse_input_size
from afina.jobs.common.subject import open_images
from afina.jobs.options.benchmark import BenchmarkOptions
from afina.jobs.options.declaration import command
from afina.jobs.options.shared import InputSize
from afina.progress import Progress
from afina.runtimes import measure_quality, outputs_of_file, read_metadata, runtime_of
from afina.tasks import Task, get_task, named_task
from afina.types import UNKNOWN_TASK, InputSpec, Measurement
from afina.units import format_measurement

_COLUMNS = ("quality", "size", "latency", "peak_memory")


@dataclass(frozen=True)
class Row:
    """One file and what was measured on it: `quality`, `size`, `latency`, `peak_memory`."""

    file: str
    runtime: str
    measurements: dict[str, Measurement]


def _benchmark(options: BenchmarkOptions) -> tuple[Row, ...]:
    """Run `files` over the test images of `data`, else its validation images, each on the runtime of its suffix.

    A file that Afina wrote says how its images must be prepared; for others the data's own size and the usual
    mean and standard deviation are taken, or `input_size`. Without labels, quality is the agreement with the
    first file.

    Raises:
        InputError: a file is missing, of an unknown kind, or does not match the data.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> grey = afina.InputSpec(8, 8, mean=(0.3,), std=(0.3,), order="L")
        >>> _ = afina.export(model, to="onnx", example=grey, out="float.onnx")
        >>> _ = afina.export(model, to="onnx", example=grey, out="half.onnx", half=True)
        >>> rows = afina.benchmark(["float.onnx", "half.onnx"], "digits")
        >>> [(row.file, row.runtime) for row in rows]
        [('float.onnx', 'onnxruntime'), ('half.onnx', 'onnxruntime')]
        >>> rows[1].measurements["size"].value < rows[0].measurements["size"].value
        True
    """
    paths = [Path(file) for file in options.files]
    for path in paths:
        check_file(path)
        runtime_of(path)
    progress = options.progress or Progress()
    images = open_images(options.data, options, unlabelled=True)
    threads = options.threads or available_cores()
    inputs = [_input(path, images, options.input_size) for path in paths]
    images.read(inputs[0])
    times = _latencies(paths, inputs, threads, options.batch)
    rows, guessing = list[Row](), list[str]()
    task, reference = _task(paths, images, options.task), dict[str, np.ndarray]()
    for path, spec in zip(paths, inputs, strict=True):
        runtime = runtime_of(path)
        progress.say(f"Running {path}.")
        outputs = outputs_of_file(path, images, spec, threads=threads, split=images.judging, progress=progress)
        outputs = _comparable(outputs, reference or outputs, path)
        if images.labelled:
            task.check_outputs({name: value.shape for name, value in outputs.items()})
        reference = reference or outputs
        quality = measure_quality(
            outputs, images, task, spec, reference=reference, runtime=runtime, split=images.judging
        )
        size = sum(part.stat().st_size for part in runtime.files(path))
        measured = {
            "quality": quality,
            "size": Measurement(size, "B", "measured", where="bytes on disk"),
            "latency": times[str(path)],
            "peak_memory": measure_memory(path, spec.shape, threads=threads),
        }
        if images.labelled and (text := near_chance(quality, images, spec, str(path), images.judging)):
            guessing.append(text)
        rows.append(Row(str(path), runtime.name, measured))
    if guessing:
        progress.warn(guessing[0])
    return tuple(rows)


benchmark = command(BenchmarkOptions, _benchmark)


def describe(rows: Sequence[Row]) -> str:
    """The rows as a text table."""
    width = max(len(row.file) for row in rows)
    metric = rows[0].measurements["quality"].unit
    lines = [f"{'file':{width}}  {'runtime':12} {metric:>10} {'size':>10} {'latency':>10} {'memory':>10}"]
    for row in rows:
        cells = " ".join(f"{format_measurement(row.measurements[key]):>10}" for key in _COLUMNS)
        lines.append(f"{row.file:{width}}  {row.runtime:12} {cells}")
    return "\n".join([*lines, f"({rows[0].measurements['latency'].where})"])


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "runtime", *(f"{key}{part}" for key in _COLUMNS for part in ("", "_unit", "_spread"))])
        for row in rows:
            values = (row.measurements[key] for key in _COLUMNS)
            table.writerow([row.file, row.runtime, *(cell for m in values for cell in (m.value, m.unit, m.spread))])


def _input(path: Path, images: ImageData, size: InputSize) -> InputSpec:
    metadata = read_metadata(path)
    if metadata is not None:
        return metadata[0]
    if size is None:
        return images.native
    height, width = parse_input_size(size)
    return replace(images.native, height=height, width=width)


def _task(paths: Sequence[Path], images: ImageData, asked: str | None) -> Task:
    """What the outputs mean: what the labels or the user say, else what the first file that says something says."""
    if images.labelled or asked is not None:
        return get_task(images.task if images.labelled else named_task(str(asked)))
    known = [about[1] for about in map(read_metadata, paths) if about is not None]
    return get_task(known[0] if known else UNKNOWN_TASK)


def _comparable(outputs: dict[str, np.ndarray], first: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The outputs by the names that those of the first file have: tools that write files name them as they like.

    Raises:
        InputError: they are of other shapes.
    """
    shapes, wanted = ([value.shape for value in of.values()] for of in (outputs, first))
    if shapes != wanted:
        raise InputError(
            f"{path} gives outputs of shape {_shown(shapes)}, where the first file gives {_shown(wanted)}.",
            fix="Give files that were made from the same network, or for the same data.",
        )
    return dict(zip(first, outputs.values(), strict=True))


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(f"[{', '.join(['N', *map(str, shape[1:])])}]" for shape in shapes)


def _latencies(paths: Sequence[Path], inputs: Sequence[InputSpec], threads: int, batch: int) -> dict[str, Measurement]:
    """Latencies by file, measured in turns among the files of one input shape and runtime, which share a process."""
    groups: dict[tuple[str, tuple[int, int, int]], dict[str, Path]] = {}
    for path, spec in zip(paths, inputs, strict=True):
        groups.setdefault((runtime_of(path).name, spec.shape), {})[str(path)] = path
    times: dict[str, Measurement] = {}
    for (_, shape), group in groups.items():
        times.update(measure_latency(group, shape, threads=threads, batch=batch))
    return times
