"""The trained ONNX files of SHARED, int8 and pruned to 70% of their MACs, judged by each network's own figure.

    python benchmarks/models/trained.py SHARED          # what has no row yet; a stopped run goes on
    python benchmarks/models/trained.py SHARED --table

Nothing is trained. Images are laid out as each file wants them (SHARED/models/README.md says how), so that Afina only
scales their pixels; 256 training images are seen, and files are judged in ONNX Runtime:

| file | figure | images |
| --- | --- | --- |
| yolox_nano | mAP50-95 and mAP50, pycocotools (`pip install pycocotools`) | the 128 of `coco128.zip`, val |
| mobilefacenet | same person or not, of pairs; the threshold by the other folds | the first 300 pairs of each fold |
| espnet_camvid | mean IoU of 11 classes | the 233 of `camvid.zip`, test |
| age | mean absolute error in years | the 1,000 of `utkface.zip`, test |
| style_la_muse | PSNR in dB against the original's pictures | 40 of `photos.zip` |
"""

import contextlib
import csv
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime
from common import Row, Rows, arguments, made
from PIL import Image

import afina
from afina.models import load_model
from afina.runtimes import get_runtime

SEEN, PAIRS, PICTURES = 256, 300, 40
FORMS = ("float", "int8", "pruned")
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A trained file.

    Attributes:
        archive: The archive with its images.
        chosen: Of the names in the archive, those of the training images, in an order of their own.
        laid: An image as the file wants it, from the image in the archive.
        options: How its pixels are scaled.
        figure: Its figures by name, from the archive and what the network gives for laid images.
    """

    archive: str
    chosen: Callable[[list[str]], list[str]]
    laid: Callable[[Image.Image], Image.Image]
    options: dict[str, Any]
    figure: Callable[[zipfile.ZipFile, "Subject", Run, Run], dict[str, float]]


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    rows = TrainedRows(Path(__file__).parent / "results" / "trained.jsonl", options.only, options.skip, options.again)
    if not options.table:
        for name, subject in SUBJECTS.items():
            for form in FORMS:
                rows.measure(f"{name}/{form}", partial(measure, name, subject, form, options.shared))
    print(table(rows.found))


class TrainedRows(Rows):
    """Rows of this benchmark."""

    libraries = ("afina", "torch", "onnxruntime")
    shown = ("figures", "macs", "bytes", "failed")


def measure(name: str, subject: Subject, form: str, shared: Path) -> Row:
    """The figures of one form of a file, and what it costs."""
    path = shared / "models" / f"{name}.onnx"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(shared / "data" / subject.archive) as archive:
        images, out = Path(folder) / "images", Path(folder) / "out.onnx"
        images.mkdir()
        for index, member in enumerate(subject.chosen(sorted(archive.namelist()))[:SEEN]):
            subject.laid(_picture(archive, member)).save(images / f"{index:04}.png")
        given: dict[str, Any] = {"task": "outputs", "images": SEEN, "resize": "stretch", **subject.options}
        record = None
        if form == "pruned":
            network, record = afina.prune(path, images, macs="70%", **given)
        elif form == "int8":
            network, record = afina.quantize(path, images, **given)
        else:
            network = load_model(path, trains=False).network
        get_runtime("onnxruntime").export(network, out)
        scale = _scaling(subject)
        run, original = _runner(out, scale), _runner(path, scale)
        figures = subject.figure(archive, subject, run, original)
        costs = {} if record is None else {"macs": round(record.after["macs"] / record.before["macs"], 3)}
        return {"figures": figures, **costs, "bytes": out.stat().st_size, "original": path.stat().st_size}


def _picture(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name))).convert("RGB")


def _scaling(subject: Subject) -> Callable[[np.ndarray], np.ndarray]:
    """Pixels `[N, H, W, 3]` of 0..255 as the network takes them, `[N, 3, H, W]`."""
    given = subject.options
    scale = given.get("scale", 1)
    mean, std = (
        np.asarray(given.get(key, usual), np.float32) for key, usual in (("mean", (0,) * 3), ("std", (1,) * 3))
    )

    def scaled(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels[..., ::-1] if given.get("order") == "BGR" else pixels
        return np.ascontiguousarray(((pixels * (scale / 255.0) - mean) / std).transpose(0, 3, 1, 2), np.float32)

    return scaled


def _runner(path: Path, scaled: Callable[[np.ndarray], np.ndarray]) -> Run:
    """What a file gives for pixels, image by image."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda pixels: np.concatenate([session.run(None, {images.name: scaled(p[None])})[0] for p in pixels])


def _pixels(archive: zipfile.ZipFile, subject: Subject, names: list[str]) -> np.ndarray:
    return np.stack([np.asarray(subject.laid(_picture(archive, name)), np.float32) for name in names])


# --- yolox ------------------------------------------------------------------------------------------------------------

_SIDE, _STRIDES = 416, (8, 16, 32)


def _boxed(image: Image.Image) -> Image.Image:
    factor = min(_SIDE / image.width, _SIDE / image.height)
    whole = Image.new("RGB", (_SIDE, _SIDE), (114, 114, 114))
    whole.paste(
        image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BILINEAR), (0, 0)
    )
    return whole


def _boxes(rows: np.ndarray, factor: float) -> list[tuple[int, float, list[float]]]:
    """Classes, scores and boxes `x, y, width, height`, by suppression for each class at an overlap of 0.65."""
    grids = [np.stack(np.meshgrid(np.arange(_SIDE // s), np.arange(_SIDE // s)), -1).reshape(-1, 2) for s in _STRIDES]
    strides = np.concatenate([np.full((len(g), 1), s) for g, s in zip(grids, _STRIDES, strict=True)])
    centres, sizes = (rows[:, :2] + np.concatenate(grids)) * strides, np.exp(rows[:, 2:4]) * strides
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1) / factor
    scores = rows[:, 4:5] * rows[:, 5:]
    found = []
    for kind in np.unique(scores.argmax(1)):
        places = np.flatnonzero((scores.argmax(1) == kind) & (scores[:, kind] > 0.001))
        places = places[np.argsort(-scores[places, kind])]
        while len(places):
            best, places = places[0], places[1:]
            x1, y1, x2, y2 = corners[best]
            found.append((int(kind), float(scores[best, kind]), [float(n) for n in (x1, y1, x2 - x1, y2 - y1)]))
            inner = np.clip(
                np.minimum(corners[places, 2:], (x2, y2)) - np.maximum(corners[places, :2], (x1, y1)), 0, None
            )
            overlap = inner.prod(1)
            areas = (corners[places, 2:] - corners[places, :2]).prod(1)
            places = places[overlap / (areas + (x2 - x1) * (y2 - y1) - overlap) <= 0.65]
    return found


def _detection(archive: zipfile.ZipFile, subject: Subject, run: Run, _: Run) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = json.loads(archive.read("annotations/instances_val.json"))
    found = []
    for image in truth["images"]:
        name = f"images/val/{Path(image['file_name']).name}"
        picture = _picture(archive, name)
        factor = min(_SIDE / picture.width, _SIDE / picture.height)
        (rows,) = run(np.asarray(_boxed(picture), np.float32)[None])
        for kind, score, box in _boxes(rows, factor):
            found.append({"image_id": image["id"], "category_id": kind, "score": score, "bbox": box})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judged = COCOeval(coco, coco.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"mAP50-95": round(100 * float(judged.stats[0]), 2), "mAP50": round(100 * float(judged.stats[1]), 2)}


# --- faces ------------------------------------------------------------------------------------------------------------


def _face(image: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (112, 112))
    whole.paste(image.resize((80, 80), Image.Resampling.BILINEAR), (16, 22))
    return whole


def _faces(archive: zipfile.ZipFile, subject: Subject, run: Run, _: Run) -> dict[str, float]:
    pairs = list(csv.DictReader(io.StringIO(archive.read("pairs.csv").decode())))
    size = len(pairs) // 10
    chosen = [pairs[fold * size : fold * size + PAIRS] for fold in range(10)] if size else [pairs]
    names = sorted({pair[key] for fold in chosen for pair in fold for key in ("image1", "image2")})
    members = {name: name if name in archive.NameToInfo else f"images/{name}" for name in names}
    vectors = {name: run(_pixels(archive, subject, [members[name]]))[0] for name in names}
    unit = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    cosines = [np.array([unit[p["image1"]] @ unit[p["image2"]] for p in fold]) for fold in chosen]
    same = [np.array([int(p["same"]) for p in fold]) for fold in chosen]
    shares = []
    for fold in range(len(chosen)):
        others = np.concatenate([c for i, c in enumerate(cosines) if i != fold])
        wanted = np.concatenate([s for i, s in enumerate(same) if i != fold])
        limits = np.unique(others)
        best = limits[np.argmax([((others >= limit) == wanted).mean() for limit in limits[::10]]) * 10]
        shares.append(((cosines[fold] >= best) == same[fold]).mean())
    return {"accuracy": round(100 * float(np.mean(shares)), 2), "pairs": sum(map(len, chosen))}


# --- streets, ages, style ---------------------------------------------------------------------------------------------


def _streets(archive: zipfile.ZipFile, subject: Subject, run: Run, _: Run) -> dict[str, float]:
    names = sorted(name for name in archive.namelist() if name.startswith("images/test/") and name.endswith(".jpg"))
    counts = np.zeros((12, 12))
    for name in names:
        mask = np.asarray(Image.open(io.BytesIO(archive.read(name.replace("images", "masks").replace(".jpg", ".png")))))
        guess = run(_pixels(archive, subject, [name]))[0].argmax(0)
        known = mask < 11
        counts += np.bincount(12 * mask[known] + guess[known], minlength=144).reshape(12, 12)
    overlap = np.diag(counts)[:11]
    iou = overlap / (counts[:11].sum(1) + counts[:, :11].sum(0) - overlap)
    return {"mIoU": round(100 * float(iou.mean()), 2), "images": len(names)}


def _ages(archive: zipfile.ZipFile, subject: Subject, run: Run, _: Run) -> dict[str, float]:
    table = list(csv.DictReader(io.StringIO(archive.read("test.csv").decode())))
    years = np.arange(81.0)
    years[0] = 0.25
    members = [row["image"] if row["image"] in archive.NameToInfo else f"images/{row['image']}" for row in table]
    guesses = np.concatenate([run(_pixels(archive, subject, [name])) for name in members]) @ years
    return {"MAE": round(float(np.abs(guesses - [float(row["target"]) for row in table]).mean()), 3)}


def _style(archive: zipfile.ZipFile, subject: Subject, run: Run, original: Run) -> dict[str, float]:
    names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[-PICTURES:]
    pixels = _pixels(archive, subject, names)
    given, wanted = (np.clip(each(pixels), 0, 255) for each in (run, original))
    errors = ((given - wanted) ** 2).mean((1, 2, 3))
    return {"PSNR": round(float((10 * np.log10(255**2 / np.maximum(errors, 1e-6))).mean()), 2)}


def _in(folder: str) -> Callable[[list[str]], list[str]]:
    """Every so-manieth image of a folder, so that the first ones are spread over it."""

    def chosen(names: list[str]) -> list[str]:
        these = [name for name in names if name.startswith(folder) and name.endswith(".jpg")]
        return these[:: max(len(these) // SEEN, 1)]

    return chosen


def _sized(width: int, height: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((width, height), Image.Resampling.BILINEAR)


SUBJECTS = {
    "yolox_nano": Subject("coco128.zip", _in("images/train"), _boxed, {"scale": 255, "order": "BGR"}, _detection),
    "mobilefacenet": Subject(
        "lfw.zip", _in("images/"), _face, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, _faces
    ),
    "espnet_camvid": Subject(
        "camvid.zip", _in("images/train"), _sized(480, 360),
        {"scale": 255, "order": "BGR", "mean": (110.331, 108.409, 105.033),
         "std": tuple(255 * s for s in (72.126, 72.691, 69.904))}, _streets,
    ),
    "age": Subject(
        "utkface.zip", _in("images/train"), _sized(64, 64),
        {"scale": 255, "mean": (122.782, 117.001, 104.298), "std": (256.0,) * 3}, _ages,
    ),
    "style_la_muse": Subject("photos.zip", _in(""), _sized(256, 256), {"scale": 255}, _style),
}  # fmt: skip


def table(rows: dict[str, Row]) -> str:
    """The figures, in Markdown."""
    lines = ["| file | float | int8 | pruned to 70% of the MACs |", "| --- | --- | --- | --- |"]
    for name in SUBJECTS:
        cells = []
        for form in FORMS:
            row = rows.get(f"{name}/{form}", {})
            figures = ", ".join(f"{key} {value:g}" for key, value in row.get("figures", {}).items())
            cells.append(row.get("failed") or f"{figures} ({row['bytes'] / 1e6:.2f} MB)" if row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made(rows.values())])


if __name__ == "__main__":
    main()
