"""Operators of ONNX that look entries up, sort and put them, as torch's."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.calls import Call, operator, part_of

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def gather(call: Call) -> Tensor:
    """Entries along one dimension."""
    x, axis = call.tensor(0), int(call.attribute("axis", 0))
    axis = axis % x.ndim
    if call.is_known(1) and call.known(1).dtype != object:
        places = call.known(1)
        if places.ndim == 0:
            return x.select(axis, int(places))
        where = _counted(places, x.shape[axis])
        if places.ndim == 1 and len(places) > 1 and _is_even(where):
            step = int(where[1] - where[0])
            return part_of(x, axis, int(where[0]), int(where[-1]) + 1, step)
    if call.is_known(1) and call.known(1).dtype != object and (call.known(1) < 0).any():
        which = _from_front(call, x, axis)
    else:
        which = call.tensor(1)
        which = which if call.is_known(1) else _positive(which.long(), x.shape[axis])
    if axis == 0 and x.ndim == 2 and not call.is_known(1):
        return F.embedding(which.long(), x)
    picked = x.index_select(axis, which.reshape(-1).long())
    return picked if which.ndim == 1 else picked.unflatten(axis, list(which.shape))


def _counted(places: np.ndarray, size: object) -> np.ndarray:
    places = places.astype(np.int64)
    return np.where(places < 0, places + size, places) if isinstance(size, int) else places


def _from_front(call: Call, x: Tensor, axis: int) -> Tensor:
    """Known places, counted from the front."""
    return call.module.stored(f"{call.step.outputs[0]}.places", _counted(call.known(1), x.shape[axis]))


def _is_even(places: np.ndarray) -> bool:
    """Whether places go up by the same step, none of them counted from the end."""
    steps = np.diff(places)
    return bool(places[0] >= 0 and steps[0] > 0 and (steps == steps[0]).all())


def _positive(places: Tensor, size: int) -> Tensor:
    """Places counted from the front."""
    return torch.where(places < 0, places + size, places)


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """An entry for each place of the indices."""
    x, axis = call.tensor(0), int(call.attribute("axis", 0))
    return x.gather(axis, _positive(call.tensor(1).long(), x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call) -> Tensor:
    """Entries by several coordinates each."""
    x, places, batch = call.tensor(0), call.tensor(1).long(), int(call.attribute("batch_dims", 0))
    if batch > 1:
        raise call.refuse("It has more than one batch dimension.")
    coordinates = places.unbind(-1)
    if batch == 0:
        return x[coordinates]
    rows = torch.arange(x.shape[0]).reshape(-1, *(1,) * (places.ndim - 2)).expand(places.shape[:-1])
    return x[(rows, *coordinates)]


@operator("ScatterElements", "Scatter")
def scatter(call: Call) -> Tensor:
    """An entry put to each place of the indices."""
    x, axis = call.tensor(0), int(call.attribute("axis", 0))
    places, news, reduction = _positive(call.tensor(1).long(), x.shape[axis]), call.tensor(2), _reduction(call)
    if reduction is None:
        return x.scatter(axis, places, news)
    return x.scatter_reduce(axis, places, news, reduction)


def _reduction(call: Call) -> str | None:
    name = call.attribute("reduction", "none")
    return None if name == "none" else _REDUCTIONS[name]


@operator("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """Entries put to places of several coordinates each."""
    x, places, news = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    reduction = call.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refuse(f"It combines by {reduction}.")
    return x.index_put(places.unbind(-1), news.to(x.dtype), accumulate=reduction == "add")


@operator("OneHot")
def one_hot(call: Call) -> Tensor:
    """A place as a vector with one entry that differs."""
    places, depth, axis = call.tensor(0).long(), int(call.number(1)), int(call.attribute("axis", -1))
    off, on = call.tensor(2).unbind(0)
    hot = _positive(places, depth).unsqueeze(-1) == torch.arange(depth, device=places.device)
    return torch.where(hot, on, off).movedim(-1, axis)


@operator("TopK")
def largest(call: Call) -> tuple[Tensor, Tensor]:
    """The largest or smallest entries, and where they are."""
    (count,) = call.integers("k", 1) or [0]
    x, axis = call.tensor(0), int(call.attribute("axis", -1))
    top = torch.topk(x, count, axis, bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1)))
    return top.values, top.indices


@operator("Compress")
def compress(call: Call) -> Tensor:
    """The entries that a known mask picks."""
    mask, x = call.known(1).astype(bool), call.tensor(0)
    axis = call.step.attributes.get("axis")
    x, axis = (x.flatten(), 0) if axis is None else (x, int(axis))
    where = np.flatnonzero(mask)
    return x.index_select(axis, call.module.stored(f"{call.step.outputs[0]}.places", where))


@operator("NonZero")
def nonzero(call: Call) -> np.ndarray:
    """The places of known entries that are not zero."""
    return np.stack(np.nonzero(call.known(0))).astype(np.int64)
