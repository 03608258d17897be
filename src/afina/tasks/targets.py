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
        mirrored: Whether it is mirrored left and right after that, as a varied training image may be.
    """

    box: tuple[float, float, float, float]
    input: InputSpec
    mirrored: bool = False

    def part(self, left: float, top: float, width: float, height: float, mirrored: bool) -> "View":
        """The view of a part of what this one shows, which begins at and is as large as these shares of it say.

        Example:
            >>> View((0.0, 0.0, 40.0, 20.0), InputSpec(8, 8)).part(0.5, 0.0, 0.5, 1.0, mirrored=False).box
            (20.0, 0.0, 40.0, 20.0)
        """
        across, down = self.box[2] - self.box[0], self.box[3] - self.box[1]
        x, y = self.box[0] + left * across, self.box[1] + top * down
        return View((x, y, x + width * across, y + height * down), self.input, mirrored)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Places `[..., 2]` (x, y) in pixels of the image, as places in pixels of the network's input.

        Those that the network does not see lie outside of it.

        Example:
            >>> View((10.0, 0.0, 30.0, 20.0), InputSpec(40, 40)).points(np.array([[10, 0], [20, 10]])).tolist()
            [[0.0, 0.0], [20.0, 20.0]]
            >>> View((0.0, 0.0, 8.0, 8.0), InputSpec(8, 8), mirrored=True).points(np.array([[1, 2]])).tolist()
            [[7.0, 2.0]]
        """
        left, top, right, bottom = self.box
        scale = np.array([self.input.width / (right - left), self.input.height / (bottom - top)])
        places = np.asarray((np.asarray(xy, dtype=np.float64) - (left, top)) * scale)
        if self.mirrored:
            places[..., 0] = self.input.width - places[..., 0]
        return places

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
        left, top, right, bottom = self.box
        if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
            seen = image.resize((width, height), Image.Resampling.NEAREST, box=self.box)
        else:
            seen = image.transform((width, height), Image.Transform.EXTENT, self.box, Image.Resampling.NEAREST)
        return np.asarray(seen)[:, ::-1] if self.mirrored else np.asarray(seen)
