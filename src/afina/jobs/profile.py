"""`afina profile`: what a model costs, per layer and on each runtime."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from afina.capacity import available_cores
from afina.devices import measure_latency, measure_memory
from afina.devices.machine import describe_machine
from afina.errors import AfinaError
from afina.graph.cost import cost_of, layer_rows
from afina.graph.network import Network
from afina.jobs.common.model_source import load_plain, name_of
from afina.jobs.options.declaration import command
from afina.jobs.options.profile import ProfileOptions
from afina.models.names import RANDOM, has_weights
from afina.progress import Progress
from afina.runtimes import RUNTIMES, get_runtime
from afina.types import InputSpec, LayerRow, Measurement
from afina.units import format_count, format_measurement, format_size

_NONE = "none"


@dataclass(frozen=True)
class Profile:
    """What a model costs.

    Attributes:
        model: The model as the user named it.
        input: What it expects.
        totals: `parameters`, `macs`, `bytes`, `peak_activations`, for one image.
        layers: One row per layer.
        runtimes: For each runtime: `latency`, `peak_memory`, `size`.
        failed: Runtimes that could not run it, with the reason.
        machine: What it was measured on.
        notes: What the user should know.
    """

    model: str
    input: InputSpec
    totals: dict[str, Measurement]
    layers: tuple[LayerRow, ...]
    runtimes: dict[str, dict[str, Measurement]]
    failed: dict[str, str]
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()


def _profile(options: ProfileOptions) -> Profile:
    """Count what `model` costs from its graph, and measure it on the runtimes.

    Example:
        >>> import afina
        >>> profile = afina.profile("builtin:convnet", input_size=8, runtimes=["onnxruntime"])
        >>> {name: total.value for name, total in profile.totals.items()}
        {'parameters': 676682, 'macs': 17937664, 'bytes': 2706728, 'peak_activations': 49152}
        >>> [(row.name, row.kind, row.output) for row in profile.layers[:2]]
        [('stem.0', 'conv2d', (64, 8, 8)), ('stem.1', 'batch_norm', (64, 8, 8))]
        >>> sorted(profile.runtimes["onnxruntime"])
        ['latency', 'peak_memory', 'size']
    """
    progress = options.progress or Progress()
    names = _runtimes(options.runtimes)
    weights = options.weights or (None if has_weights(options.model) else RANDOM)
    loaded = load_plain(options.model, replace(options, weights=weights), progress)
    threads = options.threads or available_cores()
    measured, failed = {}, {}
    with progress.work("Measuring", len(names)) as bar:
        for name in names:
            try:
                measured[name] = _measure(loaded.network, name, threads, options.batch)
            except AfinaError as error:
                failed[name] = str(error).replace("\n", " ")
            bar.advance(note=name)
    cost = cost_of(loaded.network)
    totals = {
        "parameters": Measurement(cost.parameters, "1", "computed"),
        "macs": Measurement(cost.macs, "1", "computed", where="one image"),
        "bytes": Measurement(cost.bytes, "B", "computed", where="weights"),
        "peak_activations": Measurement(cost.peak_activations, "B", "computed", where="one image, in graph order"),
    }
    return Profile(
        model=name_of(options.model, full=True),
        input=loaded.network.input,
        totals=totals,
        layers=layer_rows(loaded.network),
        runtimes=measured,
        failed=failed,
        machine=describe_machine(threads),
        notes=loaded.notes,
    )


profile = command(ProfileOptions, _profile)


def _runtimes(asked: Sequence[str]) -> list[str]:
    """The names of the runtimes to measure on: those asked for, or all that are installed; `none` for none.

    Raises:
        InputError: there is no such runtime.
    """
    if list(asked) == [_NONE]:
        return []
    names = list(asked or (name for name, runtime in RUNTIMES.loaded().items() if runtime.available()))
    for name in names:
        get_runtime(name)
    return names


def describe(result: Profile) -> str:
    """The profile as text."""
    lines = [f"{result.model}, input {' x '.join(map(str, result.input.shape))}"]
    lines += [f"  {key.replace('_', ' ')}: {format_measurement(m)}" for key, m in result.totals.items()]
    for name, values in result.runtimes.items():
        measured = ", ".join(f"{key.replace('_', ' ')} {format_measurement(m)}" for key, m in values.items())
        lines.append(f"  {name}: {measured} ({values['latency'].where})")
    lines += [f"  {name}: failed: {reason}" for name, reason in result.failed.items()]
    width = max((len(row.name) for row in result.layers), default=5)
    lines.append("")
    lines.append(f"{'layer':{width}}  {'kind':12} {'output':>14} {'MACs':>8} {'params':>8} {'bytes':>8}")
    for row in result.layers:
        shape = "x".join(map(str, row.output))
        cells = f"{shape:>14} {format_count(row.macs):>8} {format_count(row.parameters):>8} {format_size(row.bytes):>8}"
        lines.append(f"{row.name:{width}}  {row.kind:12} {cells}")
    lines += ["", *result.notes] if result.notes else []
    return "\n".join(lines)


def write_layers(result: Profile, path: Path) -> None:
    """The per-layer table as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(LayerRow)])
        table.writeheader()
        table.writerows(asdict(row) for row in result.layers)


def _measure(network: Network, name: str, threads: int, batch: int) -> dict[str, Measurement]:
    runtime = get_runtime(name)
    with tempfile.TemporaryDirectory() as folder:
        path = runtime.export(network, Path(folder) / f"model{runtime.suffix}")
        size = sum(part.stat().st_size for part in runtime.files(path))
        return {
            "latency": measure_latency({"model": path}, network.input.shape, threads=threads, batch=batch)["model"],
            "peak_memory": measure_memory(path, network.input.shape, threads=threads),
            "size": Measurement(size, "B", "measured", where="bytes on disk"),
        }
