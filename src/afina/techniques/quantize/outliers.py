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
# What is worth telling, in dB, and as a share of a range.
_WORTH_DB, _WORTH_RANGE = 0.5, 0.99
_TINY = 1e-30


def outliers_of(weight: Tensor, held: WeightEdge, inputs: Any, moved: bool) -> dict[str, Any]:
    """What outliers cost a layer, and the remedies; empty where it has none.

    `weights_reach` and `inputs_reach` are the largest values in root mean squares. `..._lost_db` is by how much
    outliers would raise the noise of rounding: on one range that reaches to them, against the other values on a range
    of their own. `..._won_db` is by how much what was chosen lowers it again. `inputs_cut_off` is the share of the
    inputs outside the range, and `remedy` what was done.

    Args:
        weight: Of the layer.
        held: Its edge.
        inputs: The edge of what the layer reads; anything else where that is not quantized.
        moved: Whether scale was moved from what it reads into its weight.
    """
    remedies = ["scale moved into the weights"] if moved else []
    row = _of_weight(weight, held, remedies)
    if isinstance(inputs, ActivationEdge) and inputs.seen.reach and inputs.grid.bits <= _MOST_BITS:
        row |= _of_inputs(inputs, remedies)
    return row | ({"remedy": ", ".join(remedies) or "none"} if row else {})


def told(layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A note on the layer that outliers cost most, from the rows of all layers; none where no layer has outliers."""
    costs = {
        (name, what): (row[f"{what}_lost_db"], row[f"{what}_won_db"], row["remedy"])
        for name, row in layers.items()
        for what in ("inputs", "weights")
        if f"{what}_lost_db" in row
    }
    if not costs:
        return ()
    (name, what), (lost, won, remedy) = max(costs.items(), key=lambda item: item[1][0])
    count = len({name for name, _ in costs})
    return (
        f"{count} {'layer has' if count == 1 else 'layers have'} outliers. Most in the {what} of {name}: {lost:g} dB "
        f"more noise, {won:g} of them won back (remedy: {remedy}).",
    )


def _of_weight(weight: Tensor, edge: WeightEdge, remedies: list[str]) -> dict[str, Any]:
    values = weight.flatten().float()
    ones = torch.ones_like(values)
    reach = _reach(values, ones)
    if reach <= _FAR or edge.half is not None:
        return {}
    rounded = edge.rounded(weight).flatten()
    plain, near = _on_one_range(values, ones, edge.grid), _without_far(values, ones, edge.grid)
    won = _db(plain, float((rounded - values).square().mean()))
    if won > _WORTH_DB:
        kind = edge.granularity.kind
        told = {"tensor": "range of least error", "channel": "scale per channel"}
        remedies.append(told.get(kind, f"blocks of {edge.granularity.block}"))
    return {"weights_reach": round(reach, 1), "weights_lost_db": _db(plain, near), "weights_won_db": won}


def _of_inputs(edge: ActivationEdge, remedies: list[str]) -> dict[str, Any]:
    values, counts = (tensor.float() for tensor in edge.seen.values())
    reach = _reach(values, counts)
    if reach <= _FAR:
        return {}
    low, high = ((code - float(edge.zero)) * float(edge.scale) for code in (edge.grid.low, edge.grid.high))
    outside = (values < low - edge.scale.item()) | (values > high + edge.scale.item())
    plain, near = _on_one_range(values, counts, edge.grid), _without_far(values, counts, edge.grid)
    share = (min(high, edge.seen.high) - max(low, edge.seen.low)) / (edge.seen.high - edge.seen.low)
    if share < _WORTH_RANGE:
        remedies.append(f"range cut to {share:.0%}")
    return {
        "inputs_reach": round(reach, 1),
        "inputs_cut_off": round(float(counts[outside].sum() / counts.sum()), 6),
        "inputs_lost_db": _db(plain, near),
        "inputs_won_db": _db(plain, _noise(values, counts, edge.scale.detach(), edge.zero, edge.grid)),
    }


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
    return round(10 * math.log10(max(more, _TINY) / max(less, _TINY)), 1)
