"""Operators of ONNX that move, cut, join, repeat and make tensors, as torch's."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.arrays import filled_in, kind_of, part_sizes, slices
from afina.models.onnx.calls import Call, array_of, is_symbol, on_arrays, operator, part_of
from afina.models.onnx.layers import padded

_MOST_ELEMENTS = 2**27
_FURTHEST = 2**31 - 1  # "to the end"
_TORCH = {np.uint8: torch.uint8, np.int8: torch.int8, np.int16: torch.int16, np.int32: torch.int32,
          np.int64: torch.int64, np.float32: torch.float32, np.bool_: torch.bool, np.uint16: torch.int64,
          np.uint32: torch.int64, np.uint64: torch.int64}  # fmt: skip
_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Reshape")
def reshape(call: Call) -> Tensor:
    """The same numbers in another shape."""
    x = call.tensor(0)
    sizes = filled_in(call, call.sizes(1), x.shape)
    return x.reshape(call.module.resized(call.step, x, sizes))


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """Two dimensions of many."""
    x, axis = call.tensor(0), int(call.attribute("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1)
    ahead: Any = 1
    for size in x.shape[:axis]:
        ahead = ahead * size
    return x.reshape(ahead, -1)


@operator("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Without dimensions of size one."""
    x, axes = call.tensor(0), call.integers("axes", 1)
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if not is_symbol(size) and size == 1]
    return x.squeeze([axis % x.ndim for axis in axes])


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """With further dimensions of size one."""
    x, axes = call.tensor(0), call.integers("axes", 1) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(call: Call) -> Tensor:
    """Its dimensions in another order."""
    x = call.tensor(0)
    order = [int(n) for n in call.attribute("perm", list(range(x.ndim))[::-1])]
    moved = [i for i, n in enumerate(order) if i != n]
    return x.transpose(*moved) if len(moved) == 2 else x.permute(order)


@operator("Concat")
def concat(call: Call) -> Tensor:
    """End to end along one dimension."""
    tensors = [call.tensor(place) for place in range(len(call.values))]
    tensors = [tensor for tensor in tensors if tensor.ndim > 1 or tensor.shape[0] != 0] or tensors
    axis = int(call.attribute("axis", 0)) % tensors[0].ndim
    return torch.cat(call.module.repeated(call.step, tensors, axis), axis)


@operator("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Several parts along one dimension."""
    x, axis = call.tensor(0), int(call.attribute("axis", 0))
    return tuple(torch.split(x, part_sizes(call, x.shape[axis]), axis))


@operator("SplitToSequence")
def split_to_list(call: Call) -> tuple[list[Tensor]]:
    """Several parts along one dimension, as one list."""
    x, axis = call.tensor(0), int(call.attribute("axis", 0))
    if not call.has(1):
        parts = list(torch.split(x, 1, axis))
        return (parts if call.attribute("keepdims", 1) else [part.squeeze(axis) for part in parts],)
    sizes = call.sizes(1)
    return (list(torch.split(x, sizes if call.known(1).ndim else sizes[0], axis)),)


@operator("SequenceConstruct")
def listed(call: Call) -> tuple[list[Tensor]]:
    """Tensors as one list."""
    return ([call.tensor(place) for place in range(len(call.values))],)


@operator("SequenceAt")
def element(call: Call) -> Tensor:
    """One of a list."""
    part: Tensor = call.values[0][int(call.number(1))]
    return part


@operator("ConcatFromSequence")
def concat_list(call: Call) -> Tensor:
    """A list end to end, along a dimension that there is or a new one."""
    axis = int(call.attribute("axis", 0))
    return torch.stack(call.values[0], axis) if call.attribute("new_axis", 0) else torch.cat(call.values[0], axis)


@operator("Slice")
def cut(call: Call) -> Tensor:
    """A part along some dimensions."""
    x = call.tensor(0)
    for axis, part in slices(call, x.ndim):
        if not is_symbol(part.step) and part.step < 0:
            x = _backwards(x, axis, part)
            continue
        end = None if part.stop is None or (not is_symbol(part.stop) and part.stop >= _FURTHEST) else part.stop
        x = part_of(x, axis, part.start, end, part.step)
    return x


def _backwards(x: Tensor, axis: int, part: slice) -> Tensor:
    """A part in reverse order: torch's slices only go forwards."""
    places = range(int(x.shape[axis]))[part]
    if not places:
        return x.narrow(axis, 0, 0)
    low, high = min(places), max(places)
    x = x.narrow(axis, low, high - low + 1).flip(axis)
    return x if part.step == -1 else part_of(x, axis, 0, None, -part.step)


@operator("Expand")
def expand(call: Call) -> Tensor:
    """Repeated along dimensions of size one."""
    x, sizes = call.tensor(0), call.sizes(1)
    sizes = [1] * max(x.ndim - len(sizes), 0) + sizes
    shape = [1] * (len(sizes) - x.ndim) + list(x.shape)
    whole = [size if (not is_symbol(was) and was == 1) else was for was, size in zip(shape, sizes, strict=True)]
    return x.expand(whole)


@operator("Tile")
def tile(call: Call) -> Tensor:
    """Repeated end to end."""
    return call.tensor(0).repeat(call.sizes(1))


@operator("Pad")
def pad(call: Call) -> Tensor:
    """Filled up (or cut off) on all sides."""
    x = call.tensor(0)
    sizes = call.integers("pads", 1) or []
    axes = [axis % x.ndim for axis in (call.integers("axes", 3) or range(len(sizes) // 2))]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for axis, before, after in zip(axes, sizes[: len(axes)], sizes[len(axes) :], strict=True):
        begin[axis], end[axis] = before, after
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        value = call.number(2, call.attribute("value", 0.0))
        first = next((i for i in range(x.ndim) if begin[i] or end[i]), x.ndim)
        return padded(x, begin[first:], end[first:], value) if first < x.ndim else x
    used = [i for i in range(x.ndim) if begin[i] or end[i]]
    if not used:
        return x
    if min(used) < 2 or x.ndim not in (3, 4, 5):
        raise call.refuse(f"It fills up channels by {mode}.")
    pairs = [n for i in range(x.ndim - 1, 1, -1) for n in (begin[i], end[i])]
    return F.pad(x, pairs, mode=_PAD_MODES[mode])


@operator("Shape")
def shape(call: Call) -> np.ndarray:
    """The sizes of a tensor, which are known."""
    return array_of(list(call.tensor(0).shape)[slice(call.attribute("start", 0), call.attribute("end"))])


@operator("Size")
def size(call: Call) -> np.ndarray:
    """The number of elements, which is known."""
    return array_of([call.tensor(0).numel()]).reshape(())


@operator("CastLike")
def cast_like(call: Call) -> Any:
    """Numbers of the type that another value has."""
    kind = call.tensor(1).dtype
    if not call.is_known(0):
        return call.tensor(0).to(kind)
    return call.known(0).astype(next(of for of, to in _TORCH.items() if to == kind))


@operator("Cast")
def cast(call: Call) -> Tensor:
    """Numbers of another type; fractions stay in 32 bits."""
    x = call.tensor(0)
    kind = kind_of(call.attribute("to"))
    if kind is None:
        raise call.refuse("It makes numbers of a type that is not known.")
    if x.is_floating_point() and kind is np.uint8 and call.step.inputs[0] == call.module.images:
        return x
    if x.is_floating_point() and kind is np.float32:  # in whatever precision the network is computed
        return x
    return x if x.dtype == _TORCH[kind] else x.to(_TORCH[kind])


@on_arrays("ConstantOfShape")
def filled(call: Call) -> Any:
    """One number everywhere."""
    sizes = call.sizes(0)
    value = call.attribute("value", np.zeros(1, np.float32))
    if not any(map(is_symbol, sizes)):
        _check_elements(call, math.prod(sizes))
        return np.full(sizes, value.reshape(-1)[0], value.dtype)
    return torch.full(sizes, value.reshape(-1)[0].item(), dtype=_TORCH[value.dtype.type])


@on_arrays("Range")
def numbers(call: Call) -> Any:
    """Numbers from one to another."""
    start, end, step = (call.known(place).reshape(-1).tolist()[0] for place in range(3))
    if any(map(is_symbol, (start, end, step))):
        return torch.arange(start, end, step)
    _check_elements(call, math.ceil((end - start) / step) if step else math.inf)
    return np.arange(start, end, step, dtype=call.known(0).dtype if call.known(0).dtype != object else np.int64)


def _check_elements(call: Call, count: float) -> None:
    if count > _MOST_ELEMENTS:
        raise call.refuse(f"It asks for {count:.2g} numbers.")


@on_arrays("EyeLike")
def identity(call: Call) -> np.ndarray:
    """A matrix with ones on a diagonal."""
    like = call.known(0)
    kind = kind_of(call.attribute("dtype", 1)) if "dtype" in call.step.attributes else like.dtype
    rows, columns = like.shape
    return np.asarray(np.eye(rows, columns, int(call.attribute("k", 0)), dtype=kind))


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Channels as pixels."""
    x, block = call.tensor(0), int(call.attribute("blocksize"))
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, channels, height, width = x.shape
    x = x.reshape(n, block, block, channels // block**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Pixels as channels."""
    x, block = call.tensor(0), int(call.attribute("blocksize"))
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // block, block, width // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * block**2, height // block, width // block)


@operator("Trilu")
def triangle(call: Call) -> Tensor:
    """The part above or below a diagonal."""
    function = torch.triu if call.attribute("upper", 1) else torch.tril
    return function(call.tensor(0), int(call.number(1, 0)))
