"""Strong variation of training images: random changes of shape and colour, erased parts, mixtures of two images.

Networks that are trained for long or from scratch gain by it; a short fine-tuning rarely does. Everything works on
whole batches of uint8 images by `torchvision.transforms.v2.functional`: on one core, two random changes of an image of
32 x 32 pixels take 0.1 ms, where `v2.RandAugment` takes 0.3 ms image by image. Of 224 x 224 pixels both take 2 to 3 ms.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.types import InputSpec

_LAYERS = 2  # random changes of one image
_ERASED, _ERASED_ASPECT = (0.02, 1 / 3), 10 / 3
_Change = Callable[[Tensor, float, list[float]], Tensor]


@dataclass(frozen=True)
class Strong:
    """How strongly images are varied beside their shift, flip or crop; 0 for not at all.

    Attributes:
        randaugment: Magnitude, 0 to 10, of two random changes of each image (Cubuk et al. 2020): sheared, moved,
            turned, or other in brightness, contrast, colour, sharpness and number of shades; 9 is usual.
        erasing: Chance of an image to lose a rectangle (Zhong et al. 2020), which gets the mean colour.
        mixup: Both parameters of the beta distribution of the shares in which two images are laid over each other
            (Zhang et al. 2018); 0.2 is usual.
        cutmix: The same for a rectangle that is replaced by that of another image (Yun et al. 2019); 1 is usual. With
            `mixup`, each batch has one of the two.

    Example:
        >>> bool(Strong()), bool(Strong(mixup=0.2))
        (False, True)
    """

    randaugment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return any(astuple(self))


NOT_STRONG = Strong()


@dataclass(frozen=True)
class Mixed:
    """Targets of images that are mixtures of two.

    Attributes:
        first: Targets of the images.
        second: Targets of the images that were mixed in.
        share: Share of the first.
    """

    first: Any
    second: Any
    share: float

    def to(self, device: torch.device) -> "Mixed":
        """The same on another device."""
        return Mixed(self.first.to(device), self.second.to(device), self.share)


@dataclass(frozen=True)
class DrawnStrong:
    """What was drawn for one batch; None where images are not varied in this way.

    Attributes:
        changes: Of each image, the number of each of its changes in `_changes`, int64 `[N, 2]`.
        magnitude: Of the changes, 0 to 1.
        erased: First and last row and column of the part of each image that is erased, int64 `[N, 4]`.
        mixed: Share that each image keeps; and for a rectangle that comes from the other image, its sides.
    """

    changes: Tensor | None = None
    magnitude: float = 0.0
    erased: Tensor | None = None
    mixed: tuple[float, tuple[int, int, int, int] | None] | None = None

    def changed(self, images: Tensor, input: InputSpec) -> Tensor:
        """The images `[N, C, H, W]` in 0..255 with their random changes, uint8; as they are where none were drawn."""
        if self.changes is None:
            return images
        images = images.clone() if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
        fill = [round(255 * mean) for mean in input.mean]
        for changes in self.changes.T:
            for number in changes.unique().tolist():
                which = changes == number
                images[which] = _changes()[number](images[which], self.magnitude, fill)
        return images

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | Mixed]:
        """Erase parts of normalised images and mix them in pairs, in place; gives them and what is to be learnt."""
        if self.erased is not None:
            top, bottom, left, right = self.erased.T[:, :, None]
            rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
            inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
            images.masked_fill_(inside[:, None], 0.0)
        if self.mixed is None:
            return images, targets
        (share, rectangle), others = self.mixed, images.flip(0)
        if rectangle is None:
            images.lerp_(others, 1 - share)
        else:
            top, bottom, left, right = rectangle
            images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return images, Mixed(targets, targets.flip(0), share)


def draw_strong(count: int, height: int, width: int, strong: Strong, generator: torch.Generator) -> DrawnStrong:
    """Draw how a batch of `count` images of that size is varied; the generator alone decides."""
    changes = None
    if strong.randaugment:
        changes = torch.randint(len(_changes()), (count, _LAYERS), generator=generator)
    erased = _drawn_parts(count, height, width, strong.erasing, generator) if strong.erasing else None
    mixed = _drawn_mixture(height, width, strong, generator) if strong.mixup or strong.cutmix else None
    return DrawnStrong(changes, strong.randaugment / 10, erased, mixed)


def _drawn_parts(count: int, height: int, width: int, chance: float, generator: torch.Generator) -> Tensor:
    draws = torch.rand(5, count, generator=generator)
    area = (_ERASED[0] + (_ERASED[1] - _ERASED[0]) * draws[1]) * (draws[0] < chance)
    stretch = (math.log(_ERASED_ASPECT) * (2 * draws[2] - 1) / 2).exp()
    rows = (height * area.sqrt() * stretch).clamp(max=height)
    columns = (width * area.sqrt() / stretch).clamp(max=width)
    top, left = (height - rows) * draws[3], (width - columns) * draws[4]
    return torch.stack([top, top + rows, left, left + columns], dim=1).round().long()


def _drawn_mixture(
    height: int, width: int, strong: Strong, generator: torch.Generator
) -> tuple[float, tuple[int, int, int, int] | None]:
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    cut = bool(strong.cutmix) and (not strong.mixup or random.random() < 0.5)
    alpha = strong.cutmix if cut else strong.mixup
    share = float(random.beta(alpha, alpha))
    if not cut:
        return share, None
    rows, columns = (round(size * math.sqrt(1 - share)) for size in (height, width))
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    return 1 - rows * columns / (height * width), (top, top + rows, left, left + columns)


@cache
def _changes() -> tuple[_Change, ...]:
    """Each kind twice: with a sign and its opposite, or where it has none as it is, so that all are as frequent."""
    from torchvision.transforms.v2 import functional as v2

    both = (-1, 1)
    factors = (v2.adjust_brightness, v2.adjust_saturation, v2.adjust_contrast, v2.adjust_sharpness)
    unsigned: tuple[_Change, ...] = (
        lambda images, magnitude, fill: images,
        lambda images, magnitude, fill: v2.posterize(images, 8 - round(4 * magnitude)),
        lambda images, magnitude, fill: v2.solarize(images, 255 * (1 - magnitude)),
        lambda images, magnitude, fill: v2.autocontrast(images),
        lambda images, magnitude, fill: v2.equalize(images),
    )
    return (
        *(_affine(angle=30 * sign) for sign in both),
        *(_affine(right=0.45 * sign) for sign in both),
        *(_affine(down=0.45 * sign) for sign in both),
        *(_affine(shear=(17 * sign, 0)) for sign in both),
        *(_affine(shear=(0, 17 * sign)) for sign in both),
        *(_factor(function, 0.9 * sign) for function in factors for sign in both),
        *unsigned,
        *unsigned,
    )


def _affine(angle: float = 0.0, right: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0, 0)) -> _Change:
    """A change of shape: degrees, shares of the width and the height, degrees; each times the magnitude."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as v2

    def change(images: Tensor, magnitude: float, fill: list[float]) -> Tensor:
        height, width = images.shape[-2:]
        moved = [round(magnitude * right * width), round(magnitude * down * height)]
        sheared = [magnitude * side for side in shear]
        bilinear = InterpolationMode.BILINEAR
        result: Tensor = v2.affine(images, magnitude * angle, moved, 1.0, sheared, bilinear, fill=fill)
        return result

    return change


def _factor(function: Callable[[Tensor, float], Tensor], by: float) -> _Change:
    return lambda images, magnitude, fill: function(images, 1 + by * magnitude)
