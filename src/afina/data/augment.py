"""Random variation of training images, on whole batches at once."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.data.strong import NOT_STRONG, DrawnStrong, Strong, draw_strong
from afina.tasks import View

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
        strong: What is done to them beside that.
    """

    shift: bool = False
    flip: bool = False
    crop: bool = False
    strength: float = 1.0
    strong: Strong = NOT_STRONG


AUGMENTATIONS = {
    "none": Augmentation(),
    "shift": Augmentation(shift=True),
    "shift+flip": Augmentation(shift=True, flip=True),
    "crop": Augmentation(crop=True),
    "crop+flip": Augmentation(crop=True, flip=True),
}


@dataclass(frozen=True)
class Drawn:
    """What was drawn for the images of one batch; None where they are not varied in this way.

    Attributes:
        rows, columns: By how many pixels each image is shifted, int64 `[N, 1]`.
        flips: Whether each is mirrored, `[N]`.
        crops: Width and height of each crop as a share of the image's, and its place in what is left, `[4, N]`.
        strong: What else is done to them.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    flips: Tensor | None = None
    crops: Tensor | None = None
    strong: DrawnStrong | None = None

    def view_of(self, number: int, whole: View) -> View:
        """What is seen of an image of the batch, by its number, where `whole` is seen of it unvaried.

        What a shift reflects at the border is not there a second time.
        """
        mirrored = self.flips is not None and bool(self.flips[number])
        if self.crops is not None:
            width, height, left, top = self.crops[:, number].tolist()
            return whole.part((1 - width) * left, (1 - height) * top, width, height, mirrored)
        columns, rows = (0 if shifts is None else int(shifts[number]) for shifts in (self.columns, self.rows))
        return whole.part(columns / whole.input.width, rows / whole.input.height, 1.0, 1.0, mirrored)

    def applied(self, images: Tensor) -> Tensor:
        """A varied copy of `[N, C, H, W]`: of the same dtype, or float32 after a crop (of the same range)."""
        if self.crops is not None:
            return _crop(images, self.crops, self.flips)
        if self.rows is not None or self.flips is not None:
            return _move(images, self)
        return images


def draw(count: int, height: int, width: int, kind: Augmentation, generator: torch.Generator) -> Drawn:
    """Draw how each of `count` images of that size is varied; the generator alone decides."""
    drawn = _drawn_place(count, height, width, kind, generator)
    return replace(drawn, strong=draw_strong(count, height, width, kind.strong, generator)) if kind.strong else drawn


def _drawn_place(count: int, height: int, width: int, kind: Augmentation, generator: torch.Generator) -> Drawn:
    chance = 0.5 * min(1.0, kind.strength)
    flips = torch.rand(count, generator=generator) < chance if kind.flip else None
    if kind.crop:
        return Drawn(flips=flips, crops=_drawn_crops(count, kind.strength, generator))
    if not kind.shift:
        return Drawn(flips=flips)
    rows, columns = (_drawn_shifts(count, int(kind.strength * size / _SHIFT), generator) for size in (height, width))
    return Drawn(rows, columns, flips)


def _drawn_shifts(count: int, most: int, generator: torch.Generator) -> Tensor | None:
    return torch.randint(-most, most + 1, (count, 1), generator=generator) if most else None


def _drawn_crops(count: int, strength: float, generator: torch.Generator) -> Tensor:
    draws = torch.rand(4, count, generator=generator)
    least = max(1 - strength * (1 - _AREA), _LEAST_AREA)
    side = (least + (1 - least) * draws[0]).sqrt()
    most = strength * math.log(_ASPECT) / 2
    stretch = (most * (2 * draws[1] - 1)).exp()
    return torch.stack([(side * stretch).clamp(max=1), (side / stretch).clamp(max=1), draws[2], draws[3]])


def _move(images: Tensor, drawn: Drawn) -> Tensor:
    n, channels, height, width = images.shape
    rows, columns = _positions(n, height, drawn.rows), _positions(n, width, drawn.columns)
    if drawn.flips is not None:
        columns = torch.where(drawn.flips[:, None], columns.flip(1), columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, height * width)
    moved = images.reshape(n, channels, height * width).gather(2, pixels.expand(n, channels, -1))
    return moved.view(n, channels, height, width)


def _positions(n: int, size: int, shifts: Tensor | None) -> Tensor:
    """For each image and each place along one side, where its pixel comes from: int64 `[n, size]`."""
    places = torch.arange(size).expand(n, size)
    if shifts is None:
        return places
    # A side of 5 pixels, moved by -2 and by 2, each reflected at the border that it crosses:
    #   0 1 2 3 4  ->  -2 -1 0 1 2  ->  2 1 0 1 2
    #   0 1 2 3 4  ->   2  3 4 5 6  ->  2 3 4 3 2
    places = (places + shifts).abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def _crop(images: Tensor, crops: Tensor, flips: Tensor | None) -> Tensor:
    width, height, left, top = crops
    # `affine_grid` takes coordinates of the result, -1 to 1 along each side, to those of the image. A crop of half the
    # width that touches the left border is x -> 0.5 x - 0.5: -1 to 1 become -1 to 0. A mirrored one has -0.5 x.
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 2], matrix[:, 1, 2] = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
    matrix[:, 0, 0] = width if flips is None else torch.where(flips, -width, width)
    matrix[:, 1, 1] = height
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
