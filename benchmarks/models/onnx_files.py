"""ONNX files read back: outputs on photographs, costs and pruning groups, beside onnx2torch and onnx2pytorch.

    python benchmarks/models/onnx_files.py SHARED              # what has no row yet; a stopped run goes on
    python benchmarks/models/onnx_files.py SHARED --table      # only the table, from the rows

Rows `shared/FILE` are the files of SHARED/models. Rows `MODEL/torch` and `MODEL/afina` are of a sample of 60 networks
of the zoo of `benchmarks/pruning` (drawn with seed 0), exported in float by torch.onnx and by Afina: the network that
is read back is compared with ONNX Runtime on four photographs, and its MACs, its weights and the groups of units that
pruning takes out together with those of the network that was exported, whose norms have statistics of the photographs.
Where the file has batch norms folded, groups are compared by the weights of layers, which folding keeps.

The peers are read in this process, where they are installed (`pip install onnx2torch==1.5.15 onnx2pytorch==0.6.0`).
"""

import importlib
import random
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime
import torch
from common import Row, Rows, arguments, made
from models import choose, load
from PIL import Image

from afina.errors import Unsupported
from afina.graph import Network
from afina.graph.axes import analyse
from afina.graph.cost import cost_of
from afina.models import load_model
from afina.runtimes import get_runtime
from afina.runtimes.onnx_file import OPSET

SAMPLE, SEED, PHOTOGRAPHS = 60, 0, 4
EXACT = 1e-4  # relative, of the norm of an output
ZOO = Path(__file__).parents[1] / "pruning" / "results" / "zoo-models.json"
PEERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "onnx2torch": lambda path: importlib.import_module("onnx2torch").convert(str(path)),
    "onnx2pytorch": lambda path: importlib.import_module("onnx2pytorch").ConvertModel(onnx.load(path)),
}


class OnnxRows(Rows):
    """Rows of this benchmark."""

    libraries = ("afina", "torch", "onnx", "onnxruntime", "onnx2torch", "onnx2pytorch", "timm", "torchvision")
    shown = ("afina", "macs", "weights", "groups", "onnx2torch", "onnx2pytorch", "failed")


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    rows = OnnxRows(Path(__file__).parent / "results" / "onnx.jsonl", options.only, options.skip, options.again)
    if not options.table:
        photographs = _photographs(options.shared / "data" / "photos.zip")
        for path in sorted((options.shared / "models").glob("*.onnx")):
            rows.measure(f"shared/{path.stem}", lambda path=path: read_back(path, photographs))
        for name in sample():
            if any(rows.wanted(f"{name}/{exporter}") for exporter in EXPORTERS):
                _measure(rows, name, photographs)
    print(table(rows.found))


def sample() -> list[str]:
    """The networks, in the order in which they are measured."""
    names = sorted(choose(ZOO))
    return random.Random(SEED).sample(names, SAMPLE)


def _measure(rows: OnnxRows, name: str, photographs: list[Image.Image]) -> None:
    try:
        network = load(name, lambda size: torch.from_numpy(_images(photographs, [None, *size])))
    except Exception as error:
        for exporter in EXPORTERS:
            rows.measure(f"{name}/{exporter}", lambda error=error: _raise(error))
        return
    with tempfile.TemporaryDirectory() as folder:
        for exporter, export in EXPORTERS.items():
            path = Path(folder) / f"{exporter}.onnx"

            def row(path: Path = path, export: Any = export) -> Row:
                export(network, path)
                return read_back(path, photographs, network)

            rows.measure(f"{name}/{exporter}", row)


def _raise(error: Exception) -> Row:
    raise error


def _by_torch(network: Network, path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(network.exported(), dynamo=True, verbose=False, opset_version=OPSET)
    assert program is not None
    program.save(path, external_data=False)


EXPORTERS: dict[str, Callable[[Network, Path], object]] = {
    "torch": _by_torch, "afina": lambda network, path: get_runtime("onnxruntime").export(network, path),
}  # fmt: skip


def read_back(path: Path, photographs: list[Image.Image], origin: Network | None = None) -> Row:
    """What each reader makes of a file: the largest difference, `refused: why`, or `failed: why`."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (images_of,) = session.get_inputs()
    images = _images(photographs, images_of.shape)
    parts = np.split(images, len(images))  # one by one: some files of torch.onnx mix images
    answers = [session.run(None, {images_of.name: part}) for part in parts]
    wanted = [np.concatenate(values) for values in zip(*answers, strict=True)]
    row: Row = {}
    try:
        network = load_model(path, trains=False).network
        with network.inference():
            row["afina"] = _difference(list(network(torch.from_numpy(images)).values()), wanted)
        if origin is not None:
            row |= _compared(network, origin)
    except Unsupported as error:
        row["afina"] = f"refused: {error.what} {error.why}"[:300]
    except Exception as error:
        row["afina"] = f"failed: {type(error).__name__}: {error}"[:300]
    for peer, read in PEERS.items():
        row[peer] = _by_peer(read, path, parts, wanted)
    return row


def _by_peer(read: Callable[[Path], torch.nn.Module], path: Path, parts: list[Any], wanted: list[Any]) -> float | str:
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            module = read(path).eval()
            answers = [module(torch.from_numpy(part)) for part in parts]
        answers = [a if isinstance(a, (tuple, list)) else (a,) for a in answers]
        return _difference([torch.cat(values) for values in zip(*answers, strict=True)], wanted)
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"[:200]


def _compared(network: Network, origin: Network) -> Row:
    """Whether MACs, the numbers in the weights of layers, and the groups of units are those of the original."""
    return {
        "macs": bool(cost_of(network).macs == cost_of(origin).macs),
        "weights": _weights(network) == _weights(origin),
        "groups": groups(network) == groups(origin),
    }


def _weights(network: Network) -> int:
    """The numbers in the weights of layers: of those that write or sum over an axis."""
    axes = analyse(network)
    names = {m.name for axis in (*axes.free, *axes.fixed) for m in axis.members if m.role != "other"}
    return sum(p.numel() for name, p in network.module.named_parameters() if name in names and p.ndim > 1)


def groups(network: Network) -> list[Any]:
    """For each axis that can shrink: its size, and the shapes of layers' weights with the dimension that shrinks.

    What exporters compute ahead (tables of positions, coordinates, rows of one parameter) belongs to no layer.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.module.named_parameters()}
    return sorted(
        (axis.size, sorted((shapes[m.name], m.dim) for m in axis.members
                           if m.role != "other" and len(shapes.get(m.name, ())) > 1))
        for axis in analyse(network).free
    )  # fmt: skip


def _photographs(archive: Path) -> list[Image.Image]:
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))[:PHOTOGRAPHS]
        return [Image.open(files.open(name)).convert("RGB") for name in names]


def _images(photographs: list[Image.Image], shape: list[Any]) -> np.ndarray:
    """The photographs `[N, C, H, W]`, standardized."""
    channels, height, width = (n if isinstance(n, int) else d for n, d in zip(shape[1:], (3, 224, 224), strict=True))
    pictures = [np.asarray(picture.resize((width, height)), np.float32) / 255 for picture in photographs]
    images = (np.stack(pictures) - 0.45) / 0.225
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, :channels], np.float32)


def _difference(given: list[torch.Tensor], wanted: list[np.ndarray]) -> float | str:
    if [tuple(g.shape) for g in given] != [w.shape for w in wanted]:
        return f"failed: shapes {[tuple(g.shape) for g in given]} instead of {[w.shape for w in wanted]}"
    worst = max(
        float(np.linalg.norm(g.numpy().astype(np.float64) - w) / max(float(np.linalg.norm(w)), 1e-12))
        for g, w in zip(given, wanted, strict=True)
    )
    return round(worst, 9)


def table(rows: dict[str, Row]) -> str:
    """The shares, in Markdown, and what is not right, by name."""
    lines = [
        "| files | reader | right | wrong | refused | failed | same MACs | same weights | same groups |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in ("shared", *EXPORTERS):
        these = [
            row for name, row in rows.items()
            if (name.startswith("shared/") if kind == "shared" else name.endswith(f"/{kind}")) and "failed" not in row
        ]  # fmt: skip
        for reader in ("afina", *PEERS):
            found = [row[reader] for row in these]
            counts = [
                sum(isinstance(f, float) and f <= EXACT for f in found),
                sum(isinstance(f, float) and not f <= EXACT for f in found),
                *(sum(isinstance(f, str) and f.startswith(word) for f in found) for word in ("refused", "failed")),
            ]
            same = [
                f"{sum(bool(row.get(key)) for row in these)}" if reader == "afina" and kind != "shared" else ""
                for key in ("macs", "weights", "groups")
            ]
            lines.append(f"| {kind} ({len(these)}) | {reader} | {' | '.join(map(str, (*counts, *same)))} |")
    lines.append("")
    for name, row in rows.items():
        told = [f"{key}: {row[key]}" for key in ("failed", "afina") if isinstance(row.get(key), str)]
        told += [f"other {key}" for key in ("macs", "weights", "groups") if row.get(key) is False]
        if told:
            lines.append(f"- {name}: {'; '.join(told)}")
    return "\n".join([*lines, "", made(rows.values())])


if __name__ == "__main__":
    main()
