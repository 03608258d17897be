"""Targets that a task reads itself: from which files, and how they follow their image to the network's input."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from afina.types import InputSpec


class DataFiles(Protocol):
    """The files of a folder or a zip, by their paths with `/` between folders.

    Attributes:
        label: What the user calls it.
    """

    label: str

    @property
    def names(self) -> Iterable[str]:
        """All paths."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def read(self, name: str) -> bytes:
        """The content of a file."""


@dataclass(frozen=True)
class ReadTargets:
    """What a task read from the data's files.

    Attributes:
        labels: The labels of its `TaskSpec`.
        targets: The target of each image, any object, by the image's path. Images of folders called `train`, `val`, ...
            are of that split; without such folders, 20% validate.
        content: What the targets were read from, for the fingerprint of the data: another text is other data.
    """

    labels: tuple[str, ...]
    targets: Mapping[str, Any] = field(default_factory=dict)
    content: bytes = b""


@dataclass(frozen=True)
class View:
    """Which part of an image a network sees, and how large.

    Attributes:
        box: Left, top, right and bottom of that part in pixels of the upright image.
        input: The network's input: the part is resized to its height and width.
    """

    box: tuple[float, float, float, float]
    input: InputSpec

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Places `[..., 2]` (x, y) in pixels of the image, as places in pixels of the network's input.

        Those that the network does not see lie outside of it.

        Example:
            >>> View((10.0, 0.0, 30.0, 20.0), InputSpec(40, 40)).points(np.array([[10, 0], [20, 10]])).tolist()
            [[0.0, 0.0], [20.0, 20.0]]
        """
        left, top, right, bottom = self.box
        scale = np.array([self.input.width / (right - left), self.input.height / (bottom - top)])
        return np.asarray((np.asarray(xy, dtype=np.float64) - (left, top)) * scale)

    def picture(self, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
        """An image of numbers beside the photo (a mask, say), `[height, width]`: the same part, nearest pixels.

        Where the network sees more than the image, 0.

        Args:
            image: As large as the photo.
            size: Height and width of the result; by default those of the network's input.

        Example:
            >>> mask = Image.fromarray(np.eye(4, dtype=np.uint8))
            >>> View((0.0, 0.0, 4.0, 4.0), InputSpec(2, 2)).picture(mask).shape
            (2, 2)
        """
        height, width = size or (self.input.height, self.input.width)
        whole = (0, 0, *image.size)
        inside = all(a >= b for a, b in zip(self.box[:2], whole[:2], strict=True)) and all(
            a <= b for a, b in zip(self.box[2:], whole[2:], strict=True)
        )
        if inside:
            return np.asarray(image.resize((width, height), Image.Resampling.NEAREST, box=self.box))
        return np.asarray(image.transform((width, height), Image.Transform.EXTENT, self.box, Image.Resampling.NEAREST))
