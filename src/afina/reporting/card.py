"""The Markdown model card, with a few lines of Python in it that load the artifact and predict."""

import re
from pathlib import Path
from typing import Any

from afina.reporting.facts import best_achievable, certainty, comparison, headline, judged_quality, title
from afina.reporting.words import (
    flat,
    input_words,
    metric_words,
    output_words,
    provenance,
    recipe_words,
    resized_to,
    spread_words,
)
from afina.store.files import write
from afina.types import InputSpec, Measurement, Result
from afina.units import format_measurement

_SPECIAL = re.compile(r"([\\`*<>\[\]|]|(?<!\w)_|_(?!\w))")
_MOST_LABELS = 20


def write_card(result: Result, path: Path) -> Path:
    """Write the model card: numbers, recipe, data, machine, use, limits, and code that runs in the run folder.

    Raises:
        StorageError: it cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afina", "reporting"),
        autoescape=False,  # which is for HTML; `finalize` escapes what Markdown would read
        finalize=_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    winner = result.candidate(result.winner)
    text = environment.get_template("card.md").render(
        result=result,
        title=title(result),
        headline=headline(result),
        rows=[(row, _cell(row.original), _cell(row.winner)) for row in comparison(result)],
        provenance=[(row.label, provenance(row.winner)) for row in comparison(result) if row.winner],
        winner=winner,
        recipe=recipe_words(winner.recipe),
        achievable=best_achievable(result),
        metric=metric_words(result.metric),
        labels=result.task.labels[:_MOST_LABELS],
        more_labels=max(0, len(result.task.labels) - _MOST_LABELS),
        outputs=output_words(result.guide),
        preprocessing=input_words(result.input),
        machine=flat(result.machine),
        limits=limitations(result),
        code=_Raw(snippet(result)),
    )
    write(Path(path), text.encode())
    return Path(path)


def snippet(result: Result) -> str:
    """Python that loads the artifact and predicts for `photo.jpg`, run in the run folder.

    The lines that load and run the file are the runtime's own (`Result.usage`), where it gives none, the snippet is
    empty; those that read the outputs are the task's (`Result.guide`). It preprocesses as the validation images were
    (transparency and 16-bit images aside, which Pillow converts in its own way here).
    """
    if not result.usage:
        return ""
    usage = result.usage.splitlines()
    imports = [line for line in usage if line.startswith(("import ", "from "))]
    return "\n".join(
        [
            "import json",
            "import numpy as np",
            *imports,
            "from PIL import Image, ImageOps",
            "",
            *_preprocessing(result.input),
            *(line for line in usage if line not in imports),
            'labels = json.load(open("artifact/metadata.json"))["labels"]',
            *(result.guide.code or "print(outputs)").splitlines(),
        ]
    )


def limitations(result: Result) -> list[str]:
    """What the numbers do not say, from the facts of this run alone."""
    winner = result.candidate(result.winner)
    sentences = []
    if quality := judged_quality(winner):
        sentences.append(_quality_limit(result, quality))
    if latency := winner.measurements.get("latency"):
        sentences.append(
            f"Latency was {latency.how} on {result.machine.get('processor', 'the machine below')}"
            f"{f' ({latency.where})' if latency.where else ''}; other processors, thread counts, batches and versions "
            f"of {result.runtime} give other times."
        )
    missing = [row.label.lower() for row in comparison(result) if row.winner is None]
    if missing:
        sentences.append(f"Not measured: {', '.join(missing)}.")
    if winner.parity is not None:
        sentences.append(
            f"The file's outputs differ from those of the network it was made from by at most {winner.parity:.2g} "
            "(relative), on the images that were compared."
        )
    sentences.append(
        "Nothing was measured on other data: not other cameras, places or times, not damaged or adversarial images, "
        "and not how errors are spread over groups of people or things."
    )
    return sentences


def _quality_limit(result: Result, quality: Measurement) -> str:
    metric = metric_words(result.metric)
    split = "test" if "test_quality" in result.candidate(result.winner).measurements else "validation"
    images = f"{quality.n} {split} images" if quality.n else f"{split} images"
    text = f"The {metric} is {quality.how} on {images} of {result.data}"
    if spread := spread_words(quality):
        text += f" ({spread}, one standard error)"
    text += "."
    text += f" {certainty(result)}" if result.judged else ""
    if result.metric.of_original:
        text += " The data has no labels, so it compares with the original model, whatever that is worth."
    return text


def _preprocessing(spec: InputSpec) -> list[str]:
    """Lines that turn `photo.jpg` into `x`, float32 [1, C, H, W], as `afina.data` does."""
    mode = "L" if spec.order == "L" else "RGB"
    pixels = f"np.asarray(image){'[:, :, ::-1]' if spec.order == 'BGR' else ''}"
    batch = "[None, None]" if spec.order == "L" else ".transpose(2, 0, 1)[None]"
    mean, std = (_numbers(numbers) for numbers in (spec.mean, spec.std))
    return [
        f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")',
        *_resizing(spec, mode),
        f'x = (({pixels} / 255 - {mean}) / {std}){batch}.astype("float32", order="C")',
    ]


def _resizing(spec: InputSpec, mode: str) -> list[str]:
    """Lines that give `image` the network's size."""
    method = f"Image.Resampling.{spec.interpolation.upper()}"

    def resized(size: str, box: str = "(0, 0, *image.size)") -> str:
        if spec.antialias:
            return f"image = image.resize({size}, {method})"
        return f"image = image.transform({size}, Image.Transform.EXTENT, {box}, {method})"

    size, (width, height) = (spec.width, spec.height), resized_to(spec)
    if spec.resize == "cover":
        lines = [f"if abs(np.log(image.width / image.height * {spec.height} / {spec.width})) > np.log(1.1):"]
        if spec.antialias:
            return [*lines, f"    image = ImageOps.fit(image, {size}, {method})", resized(str(size))]
        return [
            f"aspect, box = {spec.width} / {spec.height}, (0, 0, *image.size)",
            *lines,
            "    width, height = min(image.width, image.height * aspect), min(image.height, image.width / aspect)",
            "    left, top = (image.width - width) / 2, (image.height - height) / 2",
            "    box = (left, top, left + width, top + height)",
            resized(str(size), "box"),
        ]
    if spec.resize == "stretch":
        lines = [resized(str((width, height)))]
    elif spec.resize == "crop" and width == height:
        lines = [resized(f"[int({width} * side / min(image.size)) for side in image.size]")]
    else:
        which = "min" if spec.resize == "crop" else "max"
        lines = [f"ratio = {which}(image.width / {width}, image.height / {height})"]
        lines += [resized("[max(1, round(side / ratio)) for side in image.size]")]
    if spec.resize == "stretch" and (width, height) == size:
        return lines
    lines += [
        f"starts = [(side - goal) / 2 for side, goal in zip(image.size, {size})]",
        "left, top = (round(start) if start > 0 else int(start) for start in starts)",
    ]
    if spec.resize == "letterbox" or spec.crop_share > 1:
        fill = spec.fill or (0,) * spec.channels
        colour = fill[0] if spec.channels == 1 else fill[::-1] if spec.order == "BGR" else fill
        return [
            *lines,
            f'canvas = Image.new("{mode}", {size}, {colour})',
            "canvas.paste(image, (-left, -top))",
            "image = canvas",
        ]
    return [*lines, f"image = image.crop((left, top, left + {spec.width}, top + {spec.height}))"]


def _numbers(values: tuple[float, ...]) -> str:
    return repr(values[0]) if len(values) == 1 else f"[{', '.join(map(repr, values))}]"


class _Raw(str):
    """Text that is Markdown already."""

    __slots__ = ()


def _markdown(value: Any) -> Any:
    """A user's text, escaped so that Markdown shows it as it is, on one line."""
    if not isinstance(value, str) or isinstance(value, _Raw):
        return value
    return _SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", value)).replace("&", "&amp;")


def _cell(measurement: Measurement | None) -> str:
    if measurement is None:
        return "not measured"
    return f"{format_measurement(measurement)} {spread_words(measurement)}".strip()
