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
# A histogram tells no more codes apart.
_MOST_BITS = 8
# What is worth telling, in dB, and as a share of a range. More is not told: where all but outliers is zero, near values
# have no noise at all.
_WORTH_DB, _WORTH_RANGE, _MOST_DB = 0.5, 0.99, 60.0
_TINY = 1e-30


def outliers_of(weight: Tensor, held: WeightEdge, inputs: Any, moved: bool) -> dict[str, Any]:
    """What outliers cost a layer, and the remedies; empty where it has none.

    `weights_reach` and `inputs_reach` are the largest values in root mean squares. `..._lost_db` is by how much
    outliers would raise the noise of rounding: on one range that reaches to them, against the other values on a range
    of their own. `..._left_db` is the same with what was chosen, which may be below zero, since it serves the other
    values as well; `..._remedy` says what that was. `inputs_cut_off` is the share of the inputs outside the range.

    Args:
        weight: Of the layer.
        held: Its edge.
        inputs: The edge of what the layer reads; anything else where that is not quantized.
        moved: Whether scale was moved from what it reads into its weight.
    """
    row = _of_weight(weight, held)
    if isinstance(inputs, ActivationEdge) and inputs.seen.reach and inputs.grid.bits <= _MOST_BITS:
        row |= _of_inputs(inputs, moved)
    return row


def told(layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A note on the layer that outliers cost most, from the rows of all layers; none where no layer has outliers."""
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


def _of_weight(weight: Tensor, edge: WeightEdge) -> dict[str, Any]:
    values = weight.flatten().float()
    ones = torch.ones_like(values)
    reach = _reach(values, ones)
    if reach <= _FAR or edge.half is not None:
        return {}
    rounded = edge.rounded(weight).flatten()
    plain, near = _on_one_range(values, ones, edge.grid), _without_far(values, ones, edge.grid)
    chosen = float((rounded - values).square().mean())
    kinds = {"tensor": "range of least error", "channel": "scale per channel"}
    remedy = kinds.get(edge.granularity.kind, f"blocks of {edge.granularity.block}")
    return {"weights_reach": round(reach, 1), **_row("weights", plain, near, chosen, remedy)}


def _of_inputs(edge: ActivationEdge, moved: bool) -> dict[str, Any]:
    values, counts = (tensor.float() for tensor in edge.seen.values())
    reach = _reach(values, counts)
    if reach <= _FAR:
        return {}
    low, high = ((code - float(edge.zero)) * float(edge.scale) for code in (edge.grid.low, edge.grid.high))
    outside = (values < low - edge.scale.item()) | (values > high + edge.scale.item())
    plain, near = _on_one_range(values, counts, edge.grid), _without_far(values, counts, edge.grid)
    share = (min(high, edge.seen.high) - max(low, edge.seen.low)) / (edge.seen.high - edge.seen.low)
    remedies = ["scale moved into the weights"] if moved else []
    if share < _WORTH_RANGE:
        remedies.append(f"range cut to {share:.0%}")
    chosen = _noise(values, counts, edge.scale.detach(), edge.zero, edge.grid)
    return {
        "inputs_reach": round(reach, 1),
        "inputs_cut_off": round(float(counts[outside].sum() / counts.sum()), 6),
        **_row("inputs", plain, near, chosen, " and ".join(remedies)),
    }


def _row(what: str, plain: float, near: float, chosen: float, remedy: str) -> dict[str, Any]:
    """What is told of noises: on one range for all, of the near values on their own, and with what was chosen."""
    floor = max(near, plain * 10 ** (-_MOST_DB / 10))
    lost, left = _db(plain, floor), _db(chosen, floor)
    helped = remedy if lost - left > _WORTH_DB else ""
    return {f"{what}_lost_db": lost, f"{what}_left_db": left, f"{what}_remedy": helped or "none"}


def _reach(values: Tensor, counts: Tensor) -> float:
    return float(values.abs().amax()) / math.sqrt(max(_mean(values.square(), counts), _TINY))


def _on_one_range(values: Tensor, counts: Tensor, grid: Grid) -> float:
    """Mean squared error of values on a range that holds them all."""
    low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
    return _noise(values, counts, *grid.scales(low.reshape(1), high.reshape(1)), grid)


def _without_far(values: Tensor, counts: Tensor, grid: Grid) -> float:
    """That of the values that are not far out, on a range of their own."""
    near = values.abs() <= _FAR * math.sqrt(_mean(values.square(), counts))
    return _on_one_range(values[near], counts[near], grid)


def _noise(values: Tensor, counts: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> float:
    return _mean((fake_quantize(values, scale, zero, grid) - values).square(), counts)


def _mean(values: Tensor, counts: Tensor) -> float:
    return float(values.double() @ counts.double() / counts.double().sum())


def _db(more: float, less: float) -> float:
    return round(max(10 * math.log10(max(more, _TINY) / max(less, _TINY)), -_MOST_DB), 1) + 0.0
