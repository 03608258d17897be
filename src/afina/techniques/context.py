"""What a technique is given beside the network and its configuration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from afina.errors import InputError
from afina.progress import Progress


@dataclass(frozen=True)
class Context:
    """The surroundings of a technique; the same context gives the same result.

    Attributes:
        calibration: Gives, at each call, a fresh run through batches of preprocessed images
            (float32 `[N, C, H, W]`); None where there is no data.
        images: About how many images that is.
        seed: For everything that is drawn by chance.
        progress: Where long work is told.
    """

    calibration: Callable[[], Iterable[Tensor]] | None = None
    images: int = 512
    seed: int = 0
    progress: Progress = field(default_factory=Progress)

    def stream(self) -> Iterable[Tensor]:
        """A fresh run through the calibration images. Raises `InputError` where there are none."""
        if self.calibration is None:
            raise InputError("There are no calibration images.", fix="Give data with training images.")
        return self.calibration()
