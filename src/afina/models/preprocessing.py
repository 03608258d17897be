"""How images are made ready for a network, as a user says it: in options, or in a YAML file beside an ONNX file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from afina.errors import InputError, did_you_mean
from afina.tasks import named_task
from afina.types import InputSpec, Interpolation, Order, Resize, TaskSpec

_KEYS = ("mean", "std", "scale", "order", "resize", "interpolation")
_OTHERS = ("input_size", "labels", "task")


@dataclass(frozen=True)
class Preprocessing:
    """How the user says that images are made ready; None for what the model or the data says.

    Attributes:
        mean: One number for each channel, or one for all, of pixels in 0..1.
        std: Likewise.
        resize: The way of resizing.
        crop_share: Of that way, as in `InputSpec`.
        fill: Of that way: one number of 0..255, or one for each channel; empty for black.
        interpolation: The filter.
        order: The order of the channels.
        scale: What a white pixel is, where that is not 1: `mean` and `std` are of such pixels then, and 0 and 1 where
            they are not given.
        known: Whether what the data suggests is known to be right: images come as tensors that are ready, or the user
            gave a whole `InputSpec`.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Resize | None = None
    crop_share: float = 1.0
    fill: tuple[int, ...] = ()
    interpolation: Interpolation | None = None
    order: str | None = None
    scale: float | None = None
    known: bool = False

    @property
    def states_scaling(self) -> bool:
        """Whether it says how pixels are scaled."""
        return any(value is not None for value in (self.mean, self.std, self.scale))

    def applied(self, input: InputSpec) -> InputSpec:
        """The input, made ready in this way.

        Raises:
            InputError: there is not one number for each channel, or a name is not known.
        """
        fill = self.fill * input.channels if len(self.fill) == 1 else self.fill
        mean, std = (
            None if numbers is None else numbers * (input.channels if len(numbers) == 1 else 1)
            for numbers in (self.mean, self.std)
        )
        for name, numbers, example in (
            ("mean", mean, ["0.5"]), ("std", std, ["0.5"]), ("resize letterbox", fill or None, ["114"]),
        ):  # fmt: skip
            if numbers is not None and len(numbers) != input.channels:
                raise InputError(
                    f"--{name} has {len(numbers)} numbers, and the model takes images of {input.channels} channels.",
                    fix="Give one number for each channel, as in "
                    f"--{name}{':' if ' ' in name else ' '}{','.join(example * input.channels)}",
                )
        if self.resize is not None:
            input = replace(input, resize=self.resize, crop_share=self.crop_share, fill=fill)
        input = replace(self._scaled(input, mean, std), interpolation=self.interpolation or input.interpolation)
        _check_names(input)
        if self.order is not None and len(self.order) != input.channels:
            raise InputError(
                f"--order {self.order} has {len(self.order)} channels, and the model's images have {input.channels}.",
                fix="Give RGB or BGR for pictures in colour, L for grey ones.",
            )
        return input if self.order is None else replace(input, order=cast(Order, self.order))

    def _scaled(self, input: InputSpec, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> InputSpec:
        """The input with the mean and std of its pixels in 0..1."""
        if self.scale is None:
            return replace(input, mean=mean or input.mean, std=std or input.std)
        mean, std = mean or (0.0,) * input.channels, std or (1.0,) * input.channels
        return replace(input, mean=tuple(n / self.scale for n in mean), std=tuple(n / self.scale for n in std))


ASSUMED = Preprocessing()


def _check_names(input: InputSpec) -> None:
    allowed = {"resize": get_args(Resize), "interpolation": get_args(Interpolation)}
    if not input.antialias:
        allowed["interpolation"] = ("nearest", "bilinear", "bicubic")
    for field, names in allowed.items():
        if (value := getattr(input, field)) not in names:
            raise InputError(f"An input cannot have {field} {value!r}.", fix=did_you_mean(str(value), names))


def parse_preprocessing(given: Mapping[str, Any], prefix: str = "--") -> Preprocessing:
    """What is said in texts and numbers: `mean`, `std`, `scale`, `order`, `resize`, `interpolation`.

    Args:
        given: What is said, by these names; what is missing or None is not said.
        prefix: What stands before a name in messages.

    Raises:
        InputError: a value cannot be understood.

    Example:
        >>> said = parse_preprocessing({"mean": "110,108,105", "std": 70, "scale": 255, "order": "BGR"})
        >>> said.applied(InputSpec(8, 8)).order, [round(n, 3) for n in said.applied(InputSpec(8, 8)).std]
        ('BGR', [0.275, 0.275, 0.275])
    """
    mean, std = (_several(given.get(name), f"{prefix}{name}") for name in ("mean", "std"))
    if std is not None and min(std) <= 0:
        raise InputError(f"{prefix}std is {given['std']}.", fix="Give numbers of more than 0.")
    scale, order = given.get("scale"), given.get("order")
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0):
        raise InputError(f"{prefix}scale is {scale!r}.", fix="Give what a white pixel is, as in 255.")
    if order is not None and order not in get_args(Order):
        raise InputError(f"{prefix}order is {order!r}.", fix=did_you_mean(str(order).upper(), get_args(Order)))
    resize, crop_share, fill = parse_resize(given.get("resize"))
    return Preprocessing(mean, std, resize, crop_share, fill, given.get("interpolation"), order, scale)


def _several(value: Any, name: str) -> tuple[float, ...] | None:
    """Numbers as `0.5,0.5,0.5`, in a sequence, or one for all channels."""
    if value is None:
        return None
    try:
        parts = value.split(",") if isinstance(value, str) else value if hasattr(value, "__iter__") else (value,)
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise InputError(
            f"{name} {value!r} is not a list of numbers.", fix=f"Write one for each channel: {name} 0.5,0.5,0.5"
        )
    return numbers


def parse_resize(text: str | None) -> tuple[Resize | None, float, tuple[int, ...]]:
    """The way of resizing, its crop share and its fill, from `crop:0.875` or `letterbox:114,114,114`.

    Raises:
        InputError: there is no such way, or its number is out of range.

    Example:
        >>> parse_resize("crop:0.875"), parse_resize("letterbox:114"), parse_resize(None)
        (('crop', 0.875, ()), ('letterbox', 1.0, (114,)), (None, 1.0, ()))
    """
    if text is None:
        return None, 1.0, ()
    name, colon, detail = str(text).partition(":")
    if name not in get_args(Resize):
        raise InputError(f"--resize {text!r} is not a way to resize.", fix=did_you_mean(name, get_args(Resize)))
    way = cast(Resize, name)
    try:
        if not colon:
            return way, 1.0, ()
        if name == "letterbox":
            fill = tuple(int(part) for part in detail.split(","))
            if 0 <= min(fill) <= max(fill) <= 255:
                return way, 1.0, fill
        elif name != "cover" and 0.1 <= float(detail) <= 2:
            return way, float(detail), ()
    except ValueError:
        pass
    raise InputError(
        f"--resize {text!r} cannot be understood.",
        fix="Write cover, stretch, crop, crop:0.875 (a share of 0.1 to 2), letterbox or letterbox:114 (0 to 255).",
    )


@dataclass(frozen=True)
class Description:
    """What a file beside a model says of it.

    Attributes:
        file: The file.
        preprocessing: How images are made ready.
        size: Height and width of the images; None where it does not say.
        task: What the outputs mean; None where it does not say.
    """

    file: Path
    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    task: TaskSpec | None = None


def described_beside(model: Path) -> Description | None:
    """What `NAME.yaml` or `model.yaml` beside a model file says; None where there is neither.

    ```yaml
    scale: 255                 # pixels are 0..255
    mean: [123.7, 116.3, 103.5]
    std: [58.4, 57.1, 57.4]
    order: BGR
    resize: letterbox:114
    input_size: 416            # or [height, width]
    task: classification
    labels: [cat, dog]
    ```

    Raises:
        InputError: it is no such file: the key, and what is allowed.
    """
    file = next((f for f in (model.with_suffix(".yaml"), model.with_name("model.yaml")) if f.is_file()), None)
    if file is None:
        return None
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read.", why=str(error).splitlines()[0], fix=_EXAMPLE) from error
    if not isinstance(given, Mapping):
        raise InputError(f"{file} is no list of keys and values.", fix=_EXAMPLE)
    unknown = [str(key) for key in given if key not in (*_KEYS, *_OTHERS)]
    if unknown:
        raise InputError(f"{file} has the key {unknown[0]!r}.", fix=did_you_mean(unknown[0], (*_KEYS, *_OTHERS)))
    return Description(file, parse_preprocessing(given, f"{file}: "), _size(given, file), _task(given, file))


_EXAMPLE = "Write, for example: `scale: 255` and `order: BGR`, one key in each line."


def _size(given: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    size = given.get("input_size")
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else size
    if sides is None:
        return None
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise InputError(f"{file}: input_size is {size!r}.", fix="Write `input_size: 416`, or `[height, width]`.")
    return sides


def _task(given: Mapping[str, Any], file: Path) -> TaskSpec | None:
    labels, name = given.get("labels", []), given.get("task", "classification" if "labels" in given else None)
    if not isinstance(labels, list) or not (name is None or isinstance(name, str)):
        raise InputError(f"{file}: labels or task are not as they should be.", fix="Write `labels: [cat, dog]`.")
    return None if name is None else replace(named_task(name), labels=tuple(map(str, labels)))
