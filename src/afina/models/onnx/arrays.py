"""Operators of ONNX on what is known before there are images: arithmetic on sizes, with numpy.

Sizes that depend on the number of images are symbols in arrays of type `object`; numpy calls their own operators.
"""

import math
import operator as of
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from afina.models.onnx.calls import Call, array_of, is_symbol, on_arrays, settled

_KINDS = {1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
          10: np.float32, 11: np.float32, 12: np.uint32, 13: np.uint64, 16: np.float32}  # fmt: skip


_MOST_REPEATED, _MOST_JOINED = 2**20, 2**26


def kind_of(number: int) -> Any:
    """numpy's type of ONNX's number of a type; fractions of all widths in 32 bits; None for others."""
    return _KINDS.get(int(number))


def _quotient(a: Any, b: Any) -> Any:
    """A quotient; of whole numbers cut off towards zero, which for sizes is rounding down."""
    fraction = any(isinstance(n, (float, np.floating, torch.SymFloat)) for n in (a, b))
    if fraction:
        return a / b
    if is_symbol(a) or is_symbol(b):
        return a // b
    return math.trunc(a / b) if b else 0


_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": of.add, "Sub": of.sub, "Mul": of.mul, "Div": _quotient, "Mod": of.mod, "Equal": of.eq, "Greater": of.gt,
    "GreaterOrEqual": of.ge, "Less": of.lt, "LessOrEqual": of.le, "Pow": of.pow,
    "Min": lambda a, b: torch.sym_min(a, b) if is_symbol(a) or is_symbol(b) else min(a, b),
    "Max": lambda a, b: torch.sym_max(a, b) if is_symbol(a) or is_symbol(b) else max(a, b),
    "And": lambda a, b: bool(a) and bool(b), "Or": lambda a, b: bool(a) or bool(b),
}  # fmt: skip
_SINGLES: dict[str, Callable[[Any], Any]] = {
    "Neg": of.neg, "Abs": abs, "Floor": math.floor, "Ceil": math.ceil, "Not": of.not_, "Identity": lambda n: n,
    "Sqrt": lambda n: torch.sym_sqrt(n) if is_symbol(n) else math.sqrt(n), "Round": round,
}  # fmt: skip


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """A function of numbers on arrays, as numpy broadcasts them."""
    if math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) > _MOST_REPEATED:
        raise ValueError("more numbers than sizes are")
    spread = np.broadcast_arrays(*(array.astype(object) for array in arrays))
    result = np.empty(spread[0].shape, object)
    for index in np.ndindex(result.shape):
        result[index] = function(*(array[index] for array in spread))
    return result


def _same_kind(result: np.ndarray, *arrays: np.ndarray) -> np.ndarray:
    """A result with the type of what it was made of, where it is plain numbers."""
    result = settled(result)
    kinds = {array.dtype for array in arrays if array.dtype != object}
    if result.dtype == object or result.dtype == np.bool_ or len(kinds) != 1:
        return result
    (kind,) = kinds
    return result if kind == np.bool_ else result.astype(kind)


@on_arrays(*_PAIRS)
def pair(call: Call) -> np.ndarray:
    """An operator of two arrays, or of any number of them."""
    if call.step.operator == "Mod" and (call.attribute("fmod", 0) or not np.all(call.known(1))):
        return np.asarray(np.fmod(call.known(0), call.known(1)))
    result = call.known(0)
    for place in range(1, len(call.values)):
        other = call.known(place)
        result = _same_kind(_each(_PAIRS[call.step.operator], result, other), result, other)
    return result


@on_arrays(*_SINGLES)
def single(call: Call) -> np.ndarray:
    """An operator of one array."""
    array = call.known(0)
    result = _each(_SINGLES[call.step.operator], array)
    kept = call.step.operator in ("Floor", "Ceil", "Round") and array.dtype != object
    return settled(result).astype(array.dtype) if kept else _same_kind(result, array)


@on_arrays("Cast")
def cast(call: Call) -> np.ndarray:
    """Numbers of another type."""
    array, kind = call.known(0), kind_of(call.attribute("to"))
    if kind is None:
        raise call.refuse("It makes numbers of a type that is not known.")
    if array.dtype != object:
        return array.astype(kind)
    if np.issubdtype(kind, np.floating):
        return settled(_each(lambda n: torch.sym_float(n) if is_symbol(n) else float(n), array))
    if np.issubdtype(kind, np.integer):
        return settled(_each(lambda n: torch.sym_int(n) if is_symbol(n) else int(n), array))
    raise call.refuse("It asks about the number of images.")


@on_arrays("Where")
def where(call: Call) -> np.ndarray:
    """One of two, by a condition."""
    condition, a, b = (call.known(place) for place in range(3))
    if condition.dtype == object:
        raise call.refuse("It asks about the number of images.")
    return _same_kind(_each(lambda c, x, y: x if c else y, condition, a, b), a, b)


@on_arrays("Expand", "Tile")
def repeated(call: Call) -> np.ndarray:
    """Repeated along dimensions of size one, or end to end."""
    array, sizes = call.known(0), call.sizes(1)
    if any(map(is_symbol, sizes)) or math.prod(sizes) * array.size > _MOST_REPEATED:
        raise call.refuse("It repeats what is known by the number of images, or very often.")
    if call.step.operator == "Tile":
        return np.tile(array, sizes)
    return np.array(np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(sizes))))


@on_arrays("Concat")
def concatenated(call: Call) -> np.ndarray:
    """Arrays end to end."""
    arrays = [call.known(place) for place in range(len(call.values))]
    if sum(array.size for array in arrays) > _MOST_JOINED:
        raise call.refuse("It joins more numbers than are known.")
    if any(array.dtype == object for array in arrays):
        arrays = [array.astype(object) for array in arrays]
    return np.concatenate(arrays, int(call.attribute("axis", 0)))


@on_arrays("Gather")
def gathered(call: Call) -> np.ndarray:
    """Entries by their places."""
    array, places = call.known(0), call.known(1)
    if places.dtype == object:
        raise call.refuse("It asks about the number of images.")
    return settled(np.asarray(np.take(array, places.astype(np.int64), axis=int(call.attribute("axis", 0)))))


@on_arrays("Slice")
def sliced(call: Call) -> np.ndarray:
    """A part along dimensions."""
    array = call.known(0)
    for axis, part in slices(call, array.ndim):
        array = array[(slice(None),) * axis + (part,)]
    return settled(np.asarray(array))


def slices(call: Call, dimensions: int) -> list[tuple[int, slice]]:
    """The dimensions that a `Slice` cuts, and the part of each."""
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = call.integers("steps", 4) or [1] * len(starts)
    cuts = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not is_symbol(end) and step < 0 and end < -(2**31):
            end = None  # to the very first
        cuts.append((axis % dimensions, slice(start, end, step)))
    return cuts


@on_arrays("Split")
def split(call: Call) -> tuple[np.ndarray, ...]:
    """Several parts along one dimension."""
    array, axis = call.known(0), int(call.attribute("axis", 0))
    widths = part_sizes(call, array.shape[axis])
    ends = np.cumsum(widths)[:-1]
    return tuple(settled(part) for part in np.split(array, ends, axis))


def part_sizes(call: Call, whole: Any) -> list[Any]:
    """How long the parts of a `Split` are, of a dimension of that length."""
    sizes = call.integers("split", 1)
    if sizes is not None:
        return sizes
    count = int(call.attribute("num_outputs", len(call.step.outputs)))
    each = -(-whole // count)
    return [each] * (count - 1) + [whole - each * (count - 1)]


@on_arrays("Reshape", "Flatten")
def reshaped(call: Call) -> np.ndarray:
    """The same numbers in another shape."""
    array = call.known(0)
    if call.step.operator == "Flatten":
        axis = int(call.attribute("axis", 1))
        return array.reshape(math.prod(array.shape[:axis]), -1)
    return array.reshape(filled_in(call, call.sizes(1), array.shape))


def filled_in(call: Call, sizes: list[Any], shape: Any) -> list[Any]:
    """The sizes of a `Reshape`, where a zero stands for the size that was there."""
    if call.attribute("allowzero", 0):
        return sizes
    return [shape[i] if not is_symbol(size) and size == 0 else size for i, size in enumerate(sizes)]


@on_arrays("Squeeze")
def squeezed(call: Call) -> np.ndarray:
    """Without dimensions of size one."""
    axes = call.integers("axes", 1)
    return np.squeeze(call.known(0), None if axes is None else tuple(axes))


@on_arrays("Unsqueeze")
def unsqueezed(call: Call) -> np.ndarray:
    """With further dimensions of size one."""
    return np.expand_dims(call.known(0), tuple(call.integers("axes", 1) or []))


@on_arrays("Transpose")
def transposed(call: Call) -> np.ndarray:
    """With its dimensions in another order."""
    return np.transpose(call.known(0), call.attribute("perm"))


@on_arrays("Shape")
def shape(call: Call) -> np.ndarray:
    """The sizes of an array."""
    return array_of(call.known(0).shape[_part(call)])


def _part(call: Call) -> slice:
    return slice(call.attribute("start", 0), call.attribute("end"))


@on_arrays("ReduceProd", "ReduceSum", "ReduceMin", "ReduceMax")
def reduced(call: Call) -> np.ndarray:
    """A product or sum of sizes."""
    array, axes = call.known(0), call.integers("axes", 1)
    name = {"ReduceProd": "multiply", "ReduceSum": "add", "ReduceMin": "minimum", "ReduceMax": "maximum"}
    function: Any = getattr(np, name[call.step.operator])
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return array
    axis = tuple(axes) if axes else tuple(range(array.ndim))
    result = array
    for one in sorted((a % array.ndim for a in axis), reverse=True):
        result = function.reduce(result, axis=one, keepdims=bool(call.attribute("keepdims", 1)))
    return settled(np.asarray(result))


@on_arrays("Size")
def size(call: Call) -> np.ndarray:
    """The number of elements."""
    return np.asarray(call.known(0).size, np.int64)


@on_arrays("ScatterElements", "ScatterND")
def scattered(call: Call) -> np.ndarray:
    """Sizes, of which some are replaced."""
    array, places, news = call.known(0).copy(), call.known(1), call.known(2)
    if call.attribute("reduction", "none") != "none" or array.ndim != 1:
        raise call.refuse("It adds to what is there.")
    array = array.astype(object) if news.dtype == object else array
    array[places.reshape(-1).astype(np.int64)] = news.reshape(-1)
    return array
