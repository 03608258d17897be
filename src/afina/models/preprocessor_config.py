"""How images are made ready for a model of `transformers`, read from its `preprocessor_config.json`."""

from collections.abc import Mapping
from typing import Any

from afina.errors import InputError, first_lines
from afina.types import InputSpec, Interpolation, Resize

_DEFAULT_SIZE = 224
_WARPED_FROM = 384  # from here on ConvNeXt resizes whole images
# Pillow's numbers of filters, as configurations have them.
_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def input_of_preprocessor(said: Mapping[str, Any], sides: tuple[int, int] | None = None) -> InputSpec:
    """The input of a `preprocessor_config.json`.

    Args:
        said: Its keys and values.
        sides: Height and width, where they are known from elsewhere.

    Example:
        >>> said = {"do_resize": True, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224,
        ...         "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        >>> spec = input_of_preprocessor(said)
        >>> spec.shape, spec.resize, spec.crop_share, spec.mean
        ((3, 224, 224), 'crop', 0.875, (0.5, 0.5, 0.5))
    """
    try:
        return _input(said, sides)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "How images are made ready cannot be read from the preprocessor's configuration.",
            why=first_lines(error, 1),
            fix="Say it in options: --input-size, --mean, --std, --resize; or correct the file.",
        ) from error


def _input(said: Mapping[str, Any], sides: tuple[int, int] | None) -> InputSpec:
    edge, whole = said.get("size"), sides_of(said.get("size"))
    crop = sides_of(said.get("crop_size")) if said.get("do_center_crop") else None
    shortest = edge.get("shortest_edge") if isinstance(edge, Mapping) else edge if isinstance(edge, int) else None
    height, width = sides or crop or whole or (_DEFAULT_SIZE, _DEFAULT_SIZE)
    resize: Resize = "stretch"
    share = 1.0
    if crop is not None:
        resize, share = "crop", min(crop) / min((shortest, shortest) if shortest else whole or crop)
    elif said.get("crop_pct") and not (shortest and shortest >= _WARPED_FROM):
        resize, share = "crop", float(said["crop_pct"])
    elif said.get("do_pad"):
        resize = "letterbox"
    elif shortest and not (isinstance(edge, int) or "height" in (edge or {})):
        resize = "crop"
    scale = float(said.get("rescale_factor", 1 / 255)) * 255 if said.get("do_rescale", True) else 255.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if said.get("do_normalize", True) and said.get("image_mean") is not None:
        mean, std = (_triple(said[key]) for key in ("image_mean", "image_std"))
    return InputSpec(
        height, width, tuple(m / scale for m in mean), tuple(s / scale for s in std), resize=resize,
        crop_share=share, interpolation=_FILTERS[2 if said.get("resample") is None else int(said["resample"])],
        order="BGR" if said.get("do_flip_channel_order") else "RGB",
    )  # fmt: skip


def _triple(value: Any) -> tuple[float, ...]:
    numbers = [float(n) for n in value] if isinstance(value, (list, tuple)) else [float(value)]
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def sides_of(size: Any) -> tuple[int, int] | None:
    """Height and width, as configurations write them; None where they do not say."""
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        edge = size.get("shortest_edge")
        return (int(edge), int(edge)) if isinstance(edge, int) else None
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return (int(size), int(size)) if isinstance(size, int) else None
