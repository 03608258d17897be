"""What a network takes and gives: its input, its task, what its outputs mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Resize = Literal["cover", "stretch", "crop", "letterbox"]
Order = Literal["RGB", "BGR", "L"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


# Images and pixels of a batch in inference.
_FEWEST_AT_ONCE, _MOST_AT_ONCE, _PIXELS_AT_ONCE = 2, 64, 4 * 224 * 224


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of an image: the whole preprocessing, in numbers.

    An image is decoded, converted to `order`, resized to `height` x `width` pixels, scaled to 0..1, and then
    `(pixel - mean) / std` for each channel.

    Ways of resizing to 224 x 224, of an image of 640 x 480 (width x height):

    - `cover`: the largest centred part of the network's aspect ratio, 480 x 480, is resized. An image whose aspect
      ratio is within 10% of the network's is resized whole. This is for networks that state nothing.
    - `stretch`: the whole image is resized, whatever its aspect ratio.
    - `crop`: the shorter side is resized to 224 (298 x 224), and the centred 224 x 224 are cut out.
    - `letterbox`: the longer side is resized to 224 (224 x 168), and the rest is filled.

    Attributes:
        height: Pixels.
        width: Pixels.
        mean: One number per channel, of pixels in 0..1.
        std: One number per channel, of pixels in 0..1.
        order: `RGB`, `BGR` or `L` (grey); its length is the number of channels.
        resize: One of the ways above.
        crop_share: Of all ways but `cover`: the network's size as a share of the size that the image is resized to.
            With 0.875, it is resized as for 256 x 256, and the centred 224 x 224 cut out. Above 1, it is filled around.
        interpolation: Pillow's name of the filter.
        antialias: Whether the filter grows with the factor by which an image shrinks, as Pillow's does and OpenCV's
            does not; without, only `nearest`, `bilinear` and `bicubic`.
        fill: What is outside the image: one number of 0..255 for each channel, in their order; empty for black.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: Order = "RGB"
    resize: Resize = "cover"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    fill: tuple[int, ...] = ()

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The specification that `asdict` made `plain` of, also by way of JSON; what is not in it has its default.

        Raises:
            TypeError: it has other keys, or lacks the size.

        Example:
            >>> InputSpec.from_plain({"height": 8, "width": 8, "mean": [0.5], "std": [0.2], "order": "L"})
            ... # doctest: +ELLIPSIS
            InputSpec(height=8, width=8, mean=(0.5,), std=(0.2,), order='L', resize='cover', ...)
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**values)

    @property
    def channels(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return (self.channels, self.height, self.width)

    @property
    def batch(self) -> int:
        """Images that a processor is given at once in inference: as many as suit its caches.

        At 224 pixels, 4 instead of 64 make a MobileNetV2 2.7 times faster in torch, and a ResNet-50 1.8 times.
        """
        return min(max(_PIXELS_AT_ONCE // (self.height * self.width), _FEWEST_AT_ONCE), _MOST_AT_ONCE)

    @property
    def few(self) -> int:
        """Images at once where the outputs of all layers are kept: a quarter of a batch."""
        return max(1, self.batch // 4)


@dataclass(frozen=True)
class TaskSpec:
    """What a network is for.

    Attributes:
        name: A name in the table of tasks, as `classification`; or that of a class in the user's `file`.
        labels: The classes in the order of the outputs; for regression, the name of each output.
        file: The user's Python file that defines the task; empty for a task of the table.
    """

    name: str
    labels: tuple[str, ...]
    file: str = ""

    @property
    def outputs(self) -> int:
        """Width of the network's last layer."""
        return len(self.labels)


def plain_task(task: TaskSpec) -> dict[str, Any]:
    """A task as files have it: those of a task of the table read as they did before there were any others.

    Example:
        >>> plain_task(TaskSpec("classification", ("cat", "dog")))
        {'name': 'classification', 'labels': ('cat', 'dog')}
    """
    return {"name": task.name, "labels": task.labels, **({"file": task.file} if task.file else {})}


# Of a network whose outputs no task is known for: it is judged by how far they are from the original's.
UNKNOWN_TASK = TaskSpec("outputs", ())


@dataclass(frozen=True)
class OutputGuide:
    """What a network's outputs mean, for reports and for whoever has only the file; the task says it.

    Attributes:
        label_word: What the labels are called, in the plural: `classes`.
        use: What the network is for, which continues "intended for": `classification of images into 10 classes`.
        meaning: What the outputs hold, as a sentence.
        shapes: The shape of each output for one image, by name.
        code: Lines of Python, with `np` (numpy) and `json` imported, that print the prediction for one image. They read
            `outputs`, the arrays `[1, ...]` by name, and `labels`. Empty where there is nothing to decode.
    """

    label_word: str = "outputs"
    use: str = ""
    meaning: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    code: str = ""
