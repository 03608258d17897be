"""What is worked out of an ONNX file before it is run: its layout, its weights, the order of its nodes."""

import math
import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError
from afina.models.onnx.file import OnnxGraph, Step

_WITH_WEIGHTS = frozenset("Conv ConvTranspose Gemm MatMul PRelu BatchNormalization LayerNormalization".split())
_CHANNELS, _USUAL = (1, 3), (224, 224)


def is_of_exporter(name: str) -> bool:
    """Whether exporters call values so (`val_3`, `conv2d_1`): a weight of that name would meet one at an export."""
    base = re.sub(r"_\d+$", "", name)
    return base == "val" or (base.isidentifier() and hasattr(torch.ops.aten, base))


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor with memory of its own; unsigned numbers that torch hardly computes with become wider ones."""
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))


def layout(
    graph: OnnxGraph, size: tuple[int, int] | None, suggested: tuple[int, int] | None
) -> tuple[bool, tuple[int, int, int]]:
    """Whether the file wants channels last, and the channels, height and width of its images."""
    _, *sizes = graph.shape
    channels_last = sizes[0] not in _CHANNELS and sizes[-1] in _CHANNELS
    channels, *sides = (sizes[-1], *sizes[:2]) if channels_last else sizes
    if channels is None:
        channels = _stem_channels(graph)
    if channels not in _CHANNELS:
        raise InputError(
            f"{graph.path} takes images of {channels} channels.", fix="Give a network for pictures of 1 or 3 channels."
        )
    height, width = (fixed or asked for fixed, asked in zip(sides, size or suggested or _USUAL, strict=True))
    if size is not None and (height, width) != tuple(size):
        raise InputError(
            f"{graph.path} takes images of {height}x{width}, and cannot take {size[0]}x{size[1]}.",
            why="The size is fixed in the file.",
            fix="Leave --input-size out, or export the file for that size.",
        )
    return channels_last, (channels, height, width)


def constant_weights(graph: OnnxGraph) -> set[str]:
    """The names of weights that exporters wrote as constants."""
    read = {name for step in graph.steps if step.operator in _WITH_WEIGHTS for name in step.inputs[1:]}
    return {
        name for name, array in graph.constants.items() if name in read and array.dtype.kind == "f" and array.size > 1
    }


def _stem_channels(graph: OnnxGraph) -> int:
    """Channels that the first convolution takes, where the file leaves them open."""
    for step in graph.steps:
        if step.operator == "Conv" and len(step.inputs) > 1 and step.inputs[1] in graph.weights:
            return int(graph.weights[step.inputs[1]].shape[1]) * int(step.attributes.get("group", 1))
    return 3


def growing(before: tuple[int, ...], after: tuple[int, ...], sizes: tuple[int, ...]) -> int | None:
    """The place in `sizes`, for which `before` was reshaped, that grows as `before` became `after`; None for none.

    Example:
        >>> growing((1, 255, 52, 52), (2, 255, 52, 52), (1, 3, 85, 2704))
        0
        >>> growing((8, 1, 64), (8, 2, 64), (8, 1, 4, 16))
        1
    """
    place = next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), None)
    if place is None:
        return None
    ahead = math.prod(before[:place])
    return next((i for i in range(len(sizes)) if math.prod(sizes[:i]) == ahead), None)


def needed(steps: Iterable[Step], outputs: Iterable[str]) -> list[Step]:
    """The nodes that outputs depend on."""
    wanted, needed = set(outputs), []
    for step in reversed(list(steps)):
        if wanted & set(step.outputs):
            wanted |= set(step.inputs)
            needed.append(step)
    return needed[::-1]


def last_uses(steps: Iterable[Step], outputs: Iterable[str]) -> list[list[str]]:
    """For each node, the values that no later one reads."""
    seen, spent = set(outputs), []
    for step in reversed(list(steps)):
        last = [name for name in dict.fromkeys((*step.inputs, *step.outputs)) if name and name not in seen]
        seen.update(last)
        spent.append(last)
    return spent[::-1]
