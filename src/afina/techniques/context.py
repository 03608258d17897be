"""`Context`: the images, the seed and the progress that a technique gets beside the network and its configuration."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from afina.errors import InputError
from afina.graph.network import Network
from afina.graph.statistics import Moments, Reader, gather
from afina.progress import Progress
from afina.techniques.kept import KeptStatistics

# Multiply-accumulates that measuring sensitivities may take, and the fewest and the most images that it rests on.
_WORK = 1e12
_FEWEST, _MOST = 16, 256


def few(macs: float) -> int:
    """How many images a measurement rests on that takes so many multiply-accumulates for each (see `Context.first`)."""
    return int(min(max(_WORK / max(macs, 1.0), _FEWEST), _MOST))


@dataclass(frozen=True)
class Context:
    """The surroundings of a technique; the same context gives the same result.

    Attributes:
        calibration: Gives, at each call, a fresh run through batches of preprocessed images
            (float32 `[N, C, H, W]`); None where there is no data.
        images: About how many images one such run has.
        held_out: Gives, in the same way, a few images that nothing is fitted to; None where there are none.
        seed: The seed of everything that is drawn by chance.
        progress: Shows the user how far long work has come.
        kept: Statistics that earlier commands left for the same images; None for none.
        known: Moments of the network that the context is for, by the weight's name, which were measured before.

    Example:
        >>> context = Context(calibration=lambda: torch.zeros(40, 3, 2, 2).split(8), images=40)
        >>> [len(batch) for batch in context.stream()]
        [8, 8, 8, 8, 8]
        >>> context.first(macs=1e6, most=20).shape
        torch.Size([20, 3, 2, 2])
    """

    calibration: Callable[[], Iterable[Tensor]] | None = None
    images: int = 512
    held_out: Callable[[], Iterable[Tensor]] | None = None
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    kept: KeptStatistics | None = None
    known: Mapping[str, Moments] = field(default_factory=dict)

    def moments(self, network: Network, readers: Mapping[str, Reader]) -> dict[str, Moments]:
        """Second moments of what some layers read over the calibration images, by the weight's name (`gather`).

        Raises:
            InputError: there are no calibration images.
            AfinaError: an activation is not a finite number; the layer is named.
        """

        def measure(some: Mapping[str, Reader]) -> dict[str, Moments]:
            return gather(network, some, self.stream(), self.images, self.progress)

        missing = {name: reader for name, reader in readers.items() if name not in self.known}
        found = dict[str, Moments]()
        if missing:
            found = measure(missing) if self.kept is None else self.kept.moments(network, missing, measure)
        return {name: found[name] if name in found else self.known[name] for name in readers}

    def measured(self, network: Network, what: str, measure: Callable[[], Any]) -> Any:
        """A value that JSON can hold: as an earlier command left it, else measured.

        Args:
            network: The network.
            what: What it is, with all that it depends on but the network and this context.
            measure: Gives it.
        """
        return measure() if self.kept is None else self.kept.values(network, f"{what} {self.seed}", measure)

    def first(self, macs: float, most: int = _MOST) -> Tensor:
        """The first calibration images, as many as the work on each of them allows: 16 to 256, and at most `most`.

        Args:
            macs: Multiply-accumulates that will be spent on each image. The images together get 1e12 of them, so that
                2.5e10 for each allows 40 images.
            most: The largest number of images.

        Returns:
            Images `[N, C, H, W]`; fewer than allowed where the stream ends before.

        Raises:
            InputError: there are no calibration images.
        """
        allowed = min(few(macs), most)
        batches: list[Tensor] = []
        for batch in self.stream():
            batches.append(batch[: allowed - sum(map(len, batches))])
            if sum(map(len, batches)) >= allowed:
                break
        if not batches:
            raise InputError("There are no calibration images.", fix="Give data with training images.")
        return torch.cat(batches)

    def stream(self) -> Iterable[Tensor]:
        """A fresh run through the calibration images, in batches `[N, C, H, W]`.

        Raises:
            InputError: there are no calibration images.
        """
        if self.calibration is None:
            raise InputError("There are no calibration images.", fix="Give data with training images.")
        return self.calibration()
