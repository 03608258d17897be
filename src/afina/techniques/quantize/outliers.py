"""What values that reach far cost a layer, and what was done about them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from afina.techniques.quantize.edges import ActivationEdge, WeightEdge
from afina.techniques.quantize.grids import Grid, fake_quantize

# Values further out than so many root mean squares are outliers.
_FAR = 8.0
# A histogram is too coarse for grids of more bits.
_MOST_BITS = 8
# What is worth reporting: a gain in dB, and a range cut to less than this share. Ratios end at `_MOST_DB`: where all
# but outliers is zero, near values have no noise at all.
_WORTH_DB, _WORTH_RANGE, _MOST_DB = 0.5, 0.99, 60.0
_TINY = 1e-30


def outliers_of(weight: Tensor, weight_edge: WeightEdge, input_edge: Any, is_equalized: bool) -> dict[str, Any]:
    """What outliers cost a layer, and the remedies; empty where it has none.

    `weights_reach` and `inputs_reach` are the largest values in root mean squares. `..._lost_db` is by how much
    outliers would raise the noise of rounding: on one range that reaches to them, against the other values on a range
    of their own. `..._left_db` is the same with the scales that were chosen, which may be below zero, since these serve
    the other values as well; `..._remedy` says how they were chosen. `inputs_cut_off` is the share of the inputs
    outside the range.

    A thousand weights between -1 and 1 and one of 64 have a root mean square of 2.1: the one reaches to 30 of these,
    and more than 8 is an outlier. In 8 bits the steps of one range for all are 64 / 127 = 0.504, those of a range for
    the thousand 1 / 127 = 0.0079. So the outlier makes 36 dB more noise (`weights_lost_db`), unless it is clipped, or
    shares its scale with few of the others.

    Args:
        weight: The layer's weight before it was rounded.
        weight_edge: The edge of the weight.
        input_edge: The edge of what the layer reads; anything else where that is not quantized.
        is_equalized: Whether scale was moved from what the layer reads into its weight.
    """
    row = _weight_outliers(weight, weight_edge)
    if isinstance(input_edge, ActivationEdge) and input_edge.histogram.reach and input_edge.grid.bits <= _MOST_BITS:
        row |= _input_outliers(input_edge, is_equalized)
    return row


def outliers_note(layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A note on the layer that outliers cost most, from the rows of all layers; no note where no layer has outliers.

    Example:
        >>> row = {"inputs_lost_db": 12.0, "inputs_left_db": 1.5, "inputs_remedy": "range cut to 40%"}
        >>> (note,) = outliers_note({"stem": {}, "head": row})
        >>> note[:56]
        '1 layer has outliers. Most in the inputs of head: 12 dB '
    """
    costs = {
        (name, what): (row[f"{what}_lost_db"], row[f"{what}_left_db"], row[f"{what}_remedy"])
        for name, row in layers.items()
        for what in ("inputs", "weights")
        if f"{what}_lost_db" in row
    }
    if not costs:
        return ()
    (name, what), (lost, left, remedy) = max(costs.items(), key=lambda item: item[1][0])
    count = len({name for name, _ in costs})
    return (
        f"{count} {'layer has' if count == 1 else 'layers have'} outliers. Most in the {what} of {name}: {lost:g} dB "
        f"more noise on one range for all, {left:g} dB on what was chosen (remedy: {remedy}).",
    )


def _weight_outliers(weight: Tensor, edge: WeightEdge) -> dict[str, Any]:
    """The entries of a layer's row on its weight; none where that has no outliers, or is stored in 16-bit floats."""
    values = weight.flatten().float()
    ones = torch.ones_like(values)
    reach = _reach(values, ones)
    if reach <= _FAR or edge.half is not None:
        return {}
    rounded = edge.rounded(weight).flatten()
    plain, near = _on_one_range(values, ones, edge.grid), _without_outliers(values, ones, edge.grid)
    chosen = float((rounded - values).square().mean())
    kinds = {"tensor": "range of least error", "channel": "scale per channel"}
    remedy = kinds.get(edge.granularity.kind, f"blocks of {edge.granularity.block}")
    return {"weights_reach": round(reach, 1), **_row("weights", plain, near, chosen, remedy)}


def _input_outliers(edge: ActivationEdge, is_equalized: bool) -> dict[str, Any]:
    """The entries of a layer's row on what it reads, by the histogram; none where that has no outliers."""
    values, counts = (tensor.float() for tensor in edge.histogram.values())
    reach = _reach(values, counts)
    if reach <= _FAR:
        return {}
    low, high = ((code - float(edge.zero)) * float(edge.scale) for code in (edge.grid.low, edge.grid.high))
    seen_low, seen_high = edge.histogram.low, edge.histogram.high
    outside = (values < low - edge.scale.item()) | (values > high + edge.scale.item())
    plain, near = _on_one_range(values, counts, edge.grid), _without_outliers(values, counts, edge.grid)
    share = (min(high, seen_high) - max(low, seen_low)) / (seen_high - seen_low)
    remedies = ["scale moved into the weights"] if is_equalized else []
    if share < _WORTH_RANGE:
        remedies.append(f"range cut to {share:.0%}")
    chosen = _noise(values, counts, edge.scale.detach(), edge.zero, edge.grid)
    return {
        "inputs_reach": round(reach, 1),
        "inputs_cut_off": round(float(counts[outside].sum() / counts.sum()), 6),
        **_row("inputs", plain, near, chosen, " and ".join(remedies)),
    }


def _row(what: str, plain: float, near: float, chosen: float, remedy: str) -> dict[str, Any]:
    """The entries of a row from three mean squared errors, of the `weights` or the `inputs`.

    Args:
        what: `weights` or `inputs`.
        plain: The error of all values on one range.
        near: That of the values without outliers, on a range of their own.
        chosen: That of all values with the scales that were chosen.
        remedy: How those were chosen.
    """
    floor = max(near, plain * 10 ** (-_MOST_DB / 10))
    lost, left = _db(plain, floor), _db(chosen, floor)
    helped = remedy if lost - left > _WORTH_DB else ""
    return {f"{what}_lost_db": lost, f"{what}_left_db": left, f"{what}_remedy": helped or "none"}


def _reach(values: Tensor, counts: Tensor) -> float:
    """The largest value in root mean squares."""
    return float(values.abs().amax()) / math.sqrt(max(_mean(values.square(), counts), _TINY))


def _on_one_range(values: Tensor, counts: Tensor, grid: Grid) -> float:
    """Mean squared error of values on a range that holds them all."""
    low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
    return _noise(values, counts, *grid.scales(low.reshape(1), high.reshape(1)), grid)


def _without_outliers(values: Tensor, counts: Tensor, grid: Grid) -> float:
    """Mean squared error of the values that are not outliers, on a range that they alone decide."""
    near = values.abs() <= _FAR * math.sqrt(_mean(values.square(), counts))
    return _on_one_range(values[near], counts[near], grid)


def _noise(values: Tensor, counts: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> float:
    """Mean squared error of values, each of which is there `counts` times, with one scale."""
    return _mean((fake_quantize(values, scale, zero, grid) - values).square(), counts)


def _mean(values: Tensor, counts: Tensor) -> float:
    return float(values.double() @ counts.double() / counts.double().sum())


def _db(more: float, less: float) -> float:
    """The ratio of two mean squares in decibels, with one decimal.

    Example:
        >>> _db(100.0, 1.0), _db(1.0, 2.0)
        (20.0, -3.0)
    """
    return round(max(10 * math.log10(max(more, _TINY) / max(less, _TINY)), -_MOST_DB), 1) + 0.0
