"""Numbers, recipes and provenance in words: the one place where the report decides how something reads."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from afina.types import InputSpec, Measurement, MetricInfo, OutputGuide, Step
from afina.units import format_size, format_value

_ORDERS = {"RGB": "RGB", "BGR": "BGR", "L": "grey"}
_LONG_VALUE = 60  # characters
_LONG_LIST = 8  # entries


def metric_words(metric: MetricInfo) -> str:
    """`accuracy`, `mean absolute error`."""
    return metric.words or metric.name.replace("_", " ")


def difference(value: float, share: bool) -> str:
    """A quality difference without its sign, in points where the metric is a share.

    Example:
        >>> difference(-0.0028, True), difference(0.01, True), difference(0.031, False)
        ('0.28 points', '1 point', '0.031')
    """
    if not share:
        return f"{abs(value):.3g}"
    text = f"{abs(value) * 100:.2f}".rstrip("0").rstrip(".")
    return f"{text} {'point' if text == '1' else 'points'}"


def signed_difference(value: float, share: bool) -> str:
    """A quality difference with its sign: `−0.28 points`; `same` where nothing of it would show."""
    text = difference(value, share)
    if not any(digit in text for digit in "123456789"):
        return "same"
    return f"{'−' if value < 0 else '+'}{text}"


def times(ratio: float) -> str:
    """A ratio as a factor.

    Example:
        >>> times(9.41), times(12.2), times(1.042)
        ('9.4×', '12×', '1.04×')
    """
    return f"{ratio:.{2 if ratio < 2 else 1 if ratio < 10 else 0}f}×"


def spread_words(measurement: Measurement) -> str:
    """`± 0.52 points`, `± 12 µs`; empty where no spread is known."""
    if measurement.spread is None or not math.isfinite(measurement.spread):
        return ""
    if measurement.share:
        return f"± {difference(measurement.spread, True)}"
    return f"± {format_value(measurement.spread, measurement.unit)}"


def provenance(measurement: Measurement) -> str:
    """How a number was obtained: `measured; ± 0.52 points (one standard error); n = 360; onnxruntime, 1 thread`."""
    parts: list[str] = [measurement.how]
    if spread := spread_words(measurement):
        kind = "half the interquartile range" if measurement.unit == "s" else "one standard error"
        parts.append(f"{spread} ({kind})")
    if measurement.n is not None:
        parts.append(f"n = {measurement.n}")
    if measurement.where:
        parts.append(measurement.where)
    return "; ".join(parts)


def step_words(step: Step, most: int | None = None) -> str:
    """`prune (ratio 0.5, epochs 3)`; with `most`, only so many settings.

    Long lists, such as the units that pruning takes away, are there to do the step again, and are left out.

    Example:
        >>> step_words(Step("prune", {"ratio": 0.5, "skip": ["head"], "removed": {"stem": [3, 1]}}))
        'prune (ratio 0.5, skip head)'
    """
    settings = [
        f"{_spaced(key)} {shortened(_plain(value), _LONG_VALUE)}" for key, value in _readable(step.config).items()
    ]
    if most is not None and len(settings) > most:
        settings = [*settings[:most], "…"]
    return _spaced(step.technique) + (f" ({', '.join(settings)})" if settings else "")


def recipe_words(recipe: Iterable[Step], most: int | None = None) -> str:
    """The steps in order, or that there are none; with `most`, only so many settings of each."""
    return ", then ".join(step_words(step, most) for step in recipe) or "as it is"


def input_words(spec: InputSpec) -> tuple[str, ...]:
    """How to preprocess an image, one sentence for each step."""
    mean, std = (", ".join(f"{x:g}" for x in numbers) for numbers in (spec.mean, spec.std))
    return (
        "Decode the image, turn it upright (EXIF), lay it over white where it is transparent, and convert it to "
        f"{_ORDERS[spec.order]} ({spec.channels} channel{'s' if spec.channels > 1 else ''}).",
        _resize_words(spec),
        "Divide by 255, so that pixels lie in 0 to 1.",
        f"Subtract the mean ({mean}) and divide by the standard deviation ({std}), channel by channel.",
        f"Arrange as float32 [N, {spec.channels}, {spec.height}, {spec.width}]: batch, channels, height, width.",
    )


def output_words(guide: OutputGuide) -> str:
    """The outputs with their shapes, and what they mean.

    Example:
        >>> output_words(OutputGuide(meaning="One score for each class.", shapes={"outputs": (10,)}))
        'outputs [N, 10]. One score for each class.'
    """
    shapes = (f"{name} [{', '.join(['N', *map(str, shape)])}]" for name, shape in guide.shapes.items())
    return " ".join([*([f"{listing(shapes)}."] if guide.shapes else []), guide.meaning])


def _resize_words(spec: InputSpec) -> str:
    filter = f"({spec.interpolation}{', antialiased' if spec.antialias else ', not antialiased'})"
    final = f"{spec.width} pixels wide and {spec.height} high"
    if spec.resize == "cover":
        return (
            f"If its aspect ratio is within 10% of {spec.width}:{spec.height}, resize it whole to {final}; otherwise "
            f"cut out the largest centred part of that aspect ratio and resize that {filter}."
        )
    width, height = resized_to(spec)
    fill = ", ".join(map(str, spec.fill)) if any(spec.fill) else "black"
    if spec.resize == "stretch":
        text = f"Resize it whole to {width} pixels wide and {height} high {filter}"
    else:
        whole, side = ("covers", "shorter") if spec.resize == "crop" else ("fits into", "longer")
        text = f"Resize it, in its own aspect ratio, so that its {side} side is {width} pixels {filter}"
        if width != height:
            text = f"Resize it, in its own aspect ratio, so that it just {whole} {width} x {height} pixels {filter}"
    if spec.resize == "letterbox":
        return f"{text}, and lay it on the middle of an image {final}, filled with {fill}."
    if (width, height) == (spec.width, spec.height) and spec.resize == "stretch":
        return f"{text}."
    return f"{text}, and cut out the centre, {final}{f', filled around with {fill}' if spec.crop_share > 1 else ''}."


def resized_to(spec: InputSpec) -> tuple[int, int]:
    """Width and height that an image is resized for, before the network's size is cut out of it."""
    return math.floor(spec.width / spec.crop_share), math.floor(spec.height / spec.crop_share)


def listing(parts: Iterable[str]) -> str:
    """One or more parts as one text.

    Example:
        >>> listing(["size"]), listing(["size", "latency", "memory"])
        ('size', 'size, latency and memory')
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def flat(machine: Mapping[str, Any]) -> dict[str, str]:
    """A machine as lines for a table; what has no value is left out.

    Example:
        >>> flat({"processor": "x86", "memory": 8_000_000_000, "versions": {"torch": "2"}, "features": []})
        {'processor': 'x86', 'memory': '8 GB', 'versions': 'torch 2'}
    """
    rows: dict[str, str] = {}
    for key, value in machine.items():
        if isinstance(value, Mapping):
            rows[_spaced(key)] = ", ".join(f"{name} {text}" for name, text in flat(value).items())
        elif key == "memory" and isinstance(value, int):
            rows[_spaced(key)] = format_size(value)
        elif value not in ((), [], None, ""):
            rows[_spaced(key)] = _plain(value)
    return rows


def shortened(text: str, width: int) -> str:
    """`text`, or its beginning and an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _spaced(name: str) -> str:
    return str(name).replace("_", " ")


def _readable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value and are neither a long list nor lists by name; inside mappings too."""
    readable = dict[str, Any]()
    for key, value in settings.items():
        shown = value
        if isinstance(value, Mapping):
            lists = all(isinstance(item, (list, tuple)) for item in value.values())
            shown = {} if lists else _readable(value)
        elif isinstance(value, (list, tuple)) and len(value) > _LONG_LIST:
            shown = ()
        if shown is not None and shown not in ("", [], (), {}):
            readable[key] = shown
    return readable


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        value = ", ".join(_plain(item) for item in value)
    return str(value)
