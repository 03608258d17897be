"""Random variation of training images, on whole batches at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SHIFT = 8  # an image moves by at most one in this many of its pixels
_AREA = 0.5  # the least part of it that a crop has
_LEAST_AREA = 0.08
_ASPECT = 4 / 3


@dataclass(frozen=True)
class Augmentation:
    """The random changes of an image.

    Attributes:
        shift: Whether it moves by whole pixels, reflected at the border.
        flip: Whether it is mirrored left and right, half of the time.
        crop: Whether a random part of 0.5 to 1 of its area, aspect ratio 3:4 to 4:3, is scaled up to the full size
            (Szegedy et al. 2015, section 6).
        strength: Factor of the distance of a shift, of the area that a crop may lose and of the logarithm of its aspect
            ratio; below 1 also of the share of mirrored images.
    """

    shift: bool = False
    flip: bool = False
    crop: bool = False
    strength: float = 1.0


AUGMENTATIONS = {
    "none": Augmentation(),
    "shift": Augmentation(shift=True),
    "shift+flip": Augmentation(shift=True, flip=True),
    "crop": Augmentation(crop=True),
    "crop+flip": Augmentation(crop=True, flip=True),
}


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """A varied copy of `[N, C, H, W]`: of the same dtype, or float32 after a crop (of the same range)."""
    chance = 0.5 * min(1.0, kind.strength)
    flips = torch.rand(len(images), generator=generator) < chance if kind.flip else None
    if kind.crop:
        return _crop(images, kind.strength, flips, generator)
    if kind.shift or kind.flip:
        return _move(images, kind.strength if kind.shift else 0.0, flips, generator)
    return images


def _move(images: Tensor, strength: float, flips: Tensor | None, generator: torch.Generator) -> Tensor:
    n, channels, height, width = images.shape
    rows, columns = (_positions(n, size, int(strength * size / _SHIFT), generator) for size in (height, width))
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, height * width)
    moved = images.reshape(n, channels, height * width).gather(2, pixels.expand(n, channels, -1))
    return moved.view(n, channels, height, width)


def _positions(n: int, size: int, most: int, generator: torch.Generator) -> Tensor:
    """For each image and each place along one side, where its pixel comes from: int64 `[n, size]`."""
    places = torch.arange(size).expand(n, size)
    if most == 0:
        return places
    # A side of 5 pixels, moved by -2 and by 2, each reflected at the border that it crosses:
    #   0 1 2 3 4  ->  -2 -1 0 1 2  ->  2 1 0 1 2
    #   0 1 2 3 4  ->   2  3 4 5 6  ->  2 3 4 3 2
    places = (places + torch.randint(-most, most + 1, (n, 1), generator=generator)).abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def _crop(images: Tensor, strength: float, flips: Tensor | None, generator: torch.Generator) -> Tensor:
    n = len(images)
    draw = torch.rand(4, n, generator=generator)
    least = max(1 - strength * (1 - _AREA), _LEAST_AREA)
    side = (least + (1 - least) * draw[0]).sqrt()
    most = strength * math.log(_ASPECT) / 2
    stretch = (most * (2 * draw[1] - 1)).exp()
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    # `affine_grid` takes coordinates of the result, -1 to 1 along each side, to those of the image. A crop of half the
    # width that touches the left border is x -> 0.5 x - 0.5: -1 to 1 become -1 to 0. A mirrored one has -0.5 x.
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 2], matrix[:, 1, 2] = (1 - width) * (2 * draw[2] - 1), (1 - height) * (2 * draw[3] - 1)
    matrix[:, 0, 0] = width if flips is None else torch.where(flips, -width, width)
    matrix[:, 1, 1] = height
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
