"""The evaluation transforms of timm and torchvision, as `InputSpec`."""

import math
from collections.abc import Mapping
from typing import Any, cast

from afina.types import InputSpec, Interpolation, Resize

# timm's `crop_mode`, and what a module may state under this name.
CROP_MODES: dict[str, Resize] = {"center": "crop", "squash": "stretch", "border": "letterbox"}


def timm_input(config: Mapping[str, Any]) -> InputSpec:
    """What `timm.data.create_transform` does to an image for a model with this `pretrained_cfg`.

    Example:
        >>> spec = timm_input({"input_size": (3, 160, 160), "crop_pct": 0.95, "interpolation": "bicubic"})
        >>> spec.resize, spec.crop_share, spec.interpolation
        ('crop', 0.95, 'bicubic')
    """
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(config))
    mean = tuple(float(number) for number in data["mean"])
    resize = CROP_MODES[data["crop_mode"]]
    _, height, width = data["input_size"]
    return InputSpec(
        height,
        width,
        mean,
        tuple(float(number) for number in data["std"]),
        "RGB" if len(mean) == 3 else "L",
        resize=resize,
        crop_share=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        fill=tuple(round(255 * number) for number in mean) if resize == "letterbox" else (),
    )


def torchvision_input(preset: Any) -> InputSpec:
    """What a preset of torchvision's image classifiers (`weights.transforms()`) does to an image.

    Example:
        >>> from torchvision.models import ResNet18_Weights
        >>> spec = torchvision_input(ResNet18_Weights.DEFAULT.transforms())
        >>> spec.shape, spec.resize, spec.crop_share
        ((3, 224, 224), 'crop', 0.875)
    """
    side, resized = preset.crop_size[0], preset.resize_size[0]
    share = side / resized
    if math.floor(side / share) < resized:  # 1 / (1 / 49) is less than 49
        share = math.nextafter(share, 0)
    return InputSpec(
        side,
        side,
        tuple(preset.mean),
        tuple(preset.std),
        resize="crop",
        crop_share=share,
        interpolation=cast(Interpolation, preset.interpolation.value),
    )
