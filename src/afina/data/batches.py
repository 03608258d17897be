"""`Batches`: images as a network takes them, made ahead of their use, with their targets."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from afina.data.augment import Augmentation, Drawn, draw
from afina.data.decode import normalise
from afina.data.listing import Listing, Part
from afina.data.loading import ahead, stream
from afina.data.own import Fitter
from afina.types import InputSpec

# Difference between the seeds of two parts of the same batches; it is large, since epochs have consecutive seeds.
_SEED_STRIDE = 7919
_LEAST_AHEAD = 2**20  # numbers in a batch from which on it is made ahead of its use


class BatchPart(NamedTuple):
    """A batch, or what one of several devices gets of it.

    Attributes:
        places: Numbers of its images in the split.
        whole: How many images the whole batch has.
        weight: Factor of the mean over these images. The mean of the parts' means, each times its weight, is the mean
            over the batch: of 10 images on 4 devices the parts have 3, 3, 2 and 2, and the weights 1.2, 1.2, 0.8, 0.8.
    """

    places: np.ndarray
    whole: int
    weight: float


class Batches:
    """An iterable with a length, of float32 `[n, C, H, W]` and targets as `Task.loss` takes them; each time the same.

    Attributes:
        seed: Seed of the augmentation of these images; each part of the same batches has another one.
        parts: The images of each batch, in turn.
    """

    def __init__(
        self,
        listing: Listing,
        part: Part,
        input: InputSpec,
        pixels: Tensor | None,
        rows: np.ndarray | None,
        order: np.ndarray,
        batch_size: int,
        kind: Augmentation | None,
        seed: int,
        share: tuple[int, int],
        fitter: Fitter,
        *,
        join: bool,
    ) -> None:
        self._listing, self._part, self._input = listing, part, input
        self._pixels, self._rows, self._fitter = pixels, rows, fitter
        part_number, part_count = share
        self._kind, self.seed = kind, seed + _SEED_STRIDE * part_number
        starts = list(range(0, len(order), batch_size))
        if join and len(starts) > 1 and len(order) - starts[-1] == 1:
            starts.pop()
        self.parts = list[BatchPart]()
        for batch in np.split(order, starts[1:]):
            places = batch[part_number::part_count] if len(batch) >= 2 * part_count else batch
            weight = part_count * len(places) / len(batch) if places is not batch else 1.0
            self.parts.append(BatchPart(places, len(batch), weight))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        # Threads make small batches no faster: handing them over takes as long as the work.
        small = max((len(part.places) for part in self.parts), default=0) * math.prod(self._input.shape) < _LEAST_AHEAD
        if self._pixels is not None and small:
            return (task() for task in self._tasks())
        return ahead(self._tasks())

    def _tasks(self) -> Iterator[Callable[[], tuple[Tensor, Any]]]:
        """For each batch a function that makes it, on any thread; what is random in it is drawn here, in order."""
        generator, size = torch.Generator().manual_seed(self.seed), (self._input.height, self._input.width)
        for (places, _, _), images in zip(self.parts, self._images(), strict=True):
            drawn = None if self._kind is None else draw(len(places), *size, self._kind, generator)
            yield partial(self._made, places, images, drawn)

    def _made(
        self, places: np.ndarray, images: Callable[[], np.ndarray] | None, drawn: Drawn | None
    ) -> tuple[Tensor, Any]:
        if images is not None:
            pixels = torch.from_numpy(images())
        else:
            assert self._pixels is not None
            pixels = self._pixels[places if self._rows is None else self._rows[places]]
        strong = None if drawn is None else drawn.strong
        if drawn is not None:
            pixels = drawn.applied(pixels)
        if strong is not None:
            pixels = strong.changed(pixels, self._input)
        if not self._listing.source.prepared:
            pixels = normalise(pixels, self._input)
        targets = self._targets(places, drawn)
        return (pixels, targets) if strong is None else strong.mix(pixels, targets)

    def _targets(self, places: np.ndarray, drawn: Drawn | None) -> Any:
        """Their targets as `Task.loss` takes them: a tensor, or what the task puts together of its own."""
        targets = self._part.targets[places]
        if targets.dtype != object:
            return torch.from_numpy(targets)
        fitted = [
            self._fitter.fit(
                self._part.keys[place], target, self._input, None if drawn is None else partial(drawn.view_of, number)
            )
            for number, (place, target) in enumerate(zip(places, targets, strict=True))
        ]
        return self._fitter.task.collate(fitted)

    def _images(self) -> Iterator[Callable[[], np.ndarray] | None]:
        """For each batch a function that waits for its images; None where they are in the cache."""
        if self._pixels is not None:
            return repeat(None, len(self.parts))
        keys = [[self._part.keys[i] for i in part.places] for part in self.parts]
        return stream(self._listing.source, keys, self._input, self.seed)
