"""What a technique is given beside the network and its configuration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from afina.errors import InputError
from afina.progress import Progress

# Multiply-accumulates that measuring sensitivities may take, and the images that it rests on.
_WORK = 4e12
_FEWEST, _MOST = 16, 256


@dataclass(frozen=True)
class Context:
    """The surroundings of a technique; the same context gives the same result.

    Attributes:
        calibration: Gives, at each call, a fresh run through batches of preprocessed images
            (float32 `[N, C, H, W]`); None where there is no data.
        images: About how many images that is.
        held_out: Likewise, of a few images that nothing is fitted to; None where there are none.
        seed: For everything that is drawn by chance.
        progress: Where long work is told.
    """

    calibration: Callable[[], Iterable[Tensor]] | None = None
    images: int = 512
    held_out: Callable[[], Iterable[Tensor]] | None = None
    seed: int = 0
    progress: Progress = field(default_factory=Progress)

    def first(self, macs: float, most: int = _MOST) -> Tensor:
        """As many calibration images as work of `macs` multiply-accumulates for each image allows, in one tensor."""
        wanted = min(int(min(max(_WORK / max(macs, 1.0), _FEWEST), _MOST)), most)
        batches: list[Tensor] = []
        for batch in self.stream():
            batches.append(batch[: wanted - sum(map(len, batches))])
            if sum(map(len, batches)) >= wanted:
                break
        if not batches:
            raise InputError("There are no calibration images.", fix="Give data with training images.")
        return torch.cat(batches)

    def stream(self) -> Iterable[Tensor]:
        """A fresh run through the calibration images. Raises `InputError` where there are none."""
        if self.calibration is None:
            raise InputError("There are no calibration images.", fix="Give data with training images.")
        return self.calibration()
