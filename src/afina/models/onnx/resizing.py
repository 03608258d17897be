"""Resizing and sampling of maps, in the modes that runtimes agree on."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.calls import Call, operator

_CUBIC = -0.75  # what torch computes with


@operator("Resize", "Upsample")
def resize(call: Call) -> Tensor:
    """A map of another height and width.

    Where torch has the same rule it is torch's operator; other rules (nearest with another rounding, corners that
    coincide for nearest) are a look-up of rows and columns, or a product with matrices of weights.
    """
    x = call.tensor(0)
    scales, sizes = _wanted(call, x)
    spatial = [axis for axis in range(x.ndim) if _changes(x, axis, scales, sizes)]
    if not spatial:
        return x
    if min(spatial) < 2:
        raise call.refuse("It resizes the channels or the batch.")
    mode, rule, rounding, output = _rules(call, x, scales, sizes)
    if call.attribute("antialias", 0):
        raise call.refuse("It filters what it makes smaller, and runtimes do not agree on the borders.")
    coefficient, inside = float(call.attribute("cubic_coeff_a", _CUBIC)), bool(call.attribute("exclude_outside", 0))
    if not inside and (mode != "cubic" or math.isclose(coefficient, _CUBIC)):
        fast = _fast(x, mode, rule, rounding, output, scales)
        if fast is not None:
            return fast
    if rule not in _COORDINATES:
        raise call.refuse(f"Its way of resizing ({mode}, {rule}) is not read.")
    for axis in spatial:
        length, size = int(x.shape[axis]), output[axis - 2]
        factor = scales[axis] if scales is not None else size / length
        where = _COORDINATES[rule](np.arange(size, dtype=np.float64), length, size, factor)
        name = f"{call.step.outputs[0]}.{axis}"
        if mode == "nearest":
            places = np.clip(_ROUNDINGS[rounding](where), 0, length - 1).astype(np.int64)
            x = x.index_select(axis, call.module.stored(f"{name}.places", places))
            continue
        weights = _weights(where, length, _FILTERS[mode](coefficient), inside)
        matrix = call.module.stored(f"{name}.weights", weights)
        x = torch.matmul(x.movedim(axis, -1), matrix.transpose(0, 1)).movedim(-1, axis)
    return x


def _wanted(call: Call, x: Tensor) -> tuple[list[float] | None, list[Any] | None]:
    """The scales, or the sizes, of all dimensions."""
    if "scales" in call.step.attributes:  # version 7
        return [float(n) for n in call.step.attributes["scales"]], None
    place = 1 if call.step.operator == "Upsample" or call.opset < 11 else 2
    axes = [axis % x.ndim for axis in call.attribute("axes", range(x.ndim))]
    if place == 2 and call.has(3) and call.known(3).size:
        sizes = list(x.shape)
        for axis, size in zip(axes, call.sizes(3), strict=True):
            sizes[axis] = size
        if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise call.refuse("It keeps the aspect ratio.")
        return None, sizes
    scales = [1.0] * x.ndim
    for axis, scale in zip(axes, call.known(place).reshape(-1).tolist(), strict=True):
        scales[axis] = scale
    return [float(n) for n in scales], None


def _changes(x: Tensor, axis: int, scales: list[float] | None, sizes: list[Any] | None) -> bool:
    if scales is not None:
        return scales[axis] != 1
    assert sizes is not None
    return axis > 1 and bool(sizes[axis] != x.shape[axis])


def _rules(
    call: Call, x: Tensor, scales: list[float] | None, sizes: list[Any] | None
) -> tuple[str, str, str, list[int]]:
    """The filter, how coordinates are mapped, how they are rounded, and the sizes that come out."""
    mode = call.attribute("mode", "nearest")
    older = call.step.operator == "Upsample" or call.opset < 11
    rule = "asymmetric" if older else call.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if older else call.attribute("nearest_mode", "round_prefer_floor")
    if scales is None:
        assert sizes is not None
        output = [int(n) for n in sizes[2:]]
    else:
        output = [
            math.floor(np.float32(int(size)) * np.float32(scale))
            for size, scale in zip(x.shape[2:], scales[2:], strict=True)
        ]
    return mode, rule, rounding, output


def _fast(
    x: Tensor, mode: str, rule: str, rounding: str, output: list[int], scales: list[float] | None
) -> Tensor | None:
    """What torch's own operator gives, where it has that rule; None where it has not."""
    ratios = [o / int(n) for o, n in zip(output, x.shape[2:], strict=True)]
    whole = all(ratio == int(ratio) for ratio in ratios)
    exact = scales is None or all(math.isclose(a, b) for a, b in zip(ratios, scales[2:], strict=True))
    if not exact:
        return None
    if mode == "nearest":
        if (rule, rounding) == ("asymmetric", "floor") or (whole and _copies(rule, rounding)):
            return F.interpolate(x, output, mode="nearest")
        return None
    names = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}
    name = names.get(mode, {}).get(len(output))
    if name is None or rule not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if rule == "pytorch_half_pixel" and 1 in output:
        return None
    return F.interpolate(x, output, mode=name, align_corners=rule == "align_corners")


def _copies(rule: str, rounding: str) -> bool:
    """Whether nearest, of a whole number of times the size, is each pixel so many times: as torch does it."""
    return rule in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric") and rounding in (
        "round_prefer_floor",
        "round_prefer_ceil",
    )


_COORDINATES: dict[str, Callable[..., Any]] = {
    "half_pixel": lambda i, n, m, s: (i + 0.5) / s - 0.5,
    "half_pixel_symmetric": lambda i, n, m, s: n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, n, m, s: (i + 0.5) / s - 0.5 if m > 1 else np.zeros_like(i),
    "align_corners": lambda i, n, m, s: i * (n - 1) / (n * s - 1) if n * s > 1 else np.zeros_like(i),
    "asymmetric": lambda i, n, m, s: i / s,
}
_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(coefficient: float) -> tuple[int, Any]:
    """Half the width of the filter of linear interpolation, and its weight at a distance."""
    return 1, lambda distance: np.maximum(1 - distance, 0)


def _cubic(coefficient: float) -> tuple[int, Any]:
    """As `_linear`, of the cubic convolution of Keys (1981), equation 3."""
    a = coefficient

    def weight(d: np.ndarray) -> np.ndarray:
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return 2, weight


_FILTERS = {"linear": _linear, "cubic": _cubic}


def _weights(where: np.ndarray, length: int, filter: Any, inside: bool) -> np.ndarray:
    """The weights `[sizes, length]` of the places that each output is made of.

    Args:
        where: The place of each output among the `length` that there are.
        length: How many there are.
        filter: Half its width, and its weight at a distance.
        inside: Whether places beyond the borders count for nothing; else they are those at the border.
    """
    half, weight = filter
    weights = np.zeros((len(where), length))
    for offset in range(-half, half + 1):
        places = np.floor(where) + offset
        share = weight(np.abs(where - places))
        share = np.where((places < 0) | (places >= length), 0.0, share) if inside else share
        np.add.at(weights, (np.arange(len(where)), np.clip(places, 0, length - 1).astype(np.int64)), share)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


@operator("GridSample")
def sampled(call: Call) -> Tensor:
    """A map read at given places."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.attribute("mode", "linear"), call.attribute("mode", "linear")
    )
    padding, corners = call.attribute("padding_mode", "zeros"), bool(call.attribute("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), mode, padding, corners)


@operator("AffineGrid")
def grid(call: Call) -> Tensor:
    """The places that an affine map reads."""
    return F.affine_grid(call.tensor(0), call.sizes(1), bool(call.attribute("align_corners", 0)))


@operator("CenterCropPad")
def centred(call: Call) -> Tensor:
    """Cut or filled up to a size, around the middle."""
    x, sizes = call.tensor(0), call.sizes(1)
    axes = [axis % x.ndim for axis in call.attribute("axes", range(len(sizes)))]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for axis, size in zip(axes, sizes, strict=True):
        less = int(x.shape[axis]) - size
        begin[axis] = -(less // 2) if less >= 0 else (-less) // 2
        end[axis] = -(less + begin[axis])
    pairs = list(zip(begin, end, strict=True))
    return F.pad(x, list(itertools.chain.from_iterable(reversed(pairs))))
