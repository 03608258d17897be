"""Rounding weights so that the layer's output suffers least, not the weights.

For weights `W` of a layer that reads rows `x`, rounding them to `V` costs `tr((V - W) H (V - W)^T)` with `H` the second
moment of `x`. It is minimised over codes in three steps: columns in order, the error of each spread over those that
follow (optimal brain surgeon; GPTQ, Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3); then sweeps of exact
coordinate descent over all codes, which can only lower the cost; then the scale of each row is solved for anew.

A constant that can be added to the outputs is taken out beforehand: its best value makes `H` the covariance of `x`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Granularity, Grid, quantize

_DAMPING, _TINY = 1e-4, 1e-12
_PANEL = 128
# Shares of the full range that are tried, until so many in a row gain nothing: with 8 bits and more, clipping never
# pays. (The scales were those of all 36 shares wherever that was compared: normal and heavy tails, 3 to 7 bits.)
_SHRINK, _MANY_BITS, _PATIENCE = torch.linspace(1.0, 0.3, 36).tolist(), 8, 4
# Weights looked at together: so many as a processor's cache holds.
_CHUNK = 2**18
# Scales that are tried around the one that suits the weights alone, where codes are few.
_FACTORS = (1.0, 0.92, 0.84, 1.08)
_SWEEPS, _ROUNDS = 4, 3
_FEW_BITS = 4


@dataclass(frozen=True)
class Rounded:
    """Codes as values, with their grid.

    Attributes:
        values: `[stack, outputs, inputs]`, each on its grid.
        scale, zero: `[stack, outputs, blocks]`.
        error: What the outputs lose, as a share of their energy, `[stack, outputs]`.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor
    error: Tensor


def round_weights(
    weights: Tensor,
    moment: Tensor,
    grid: Grid,
    granularity: Granularity,
    power_of_two: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
    zeros: Tensor | None = None,
) -> Rounded:
    """The best rounding found of weights given the second moment of what they multiply.

    Args:
        weights: `[stack, outputs, inputs]`.
        moment: `[stack, inputs, inputs]`.
        grid, granularity, power_of_two: As in the configuration.
        scales: Scales and zero points `[stack, outputs, blocks]` to keep to; found here where None.
        zeros: Weights that stay zero, `[stack, outputs, inputs]`: those of a sparse network; None for none.
    """
    dtype = torch.float64 if weights.shape[2] <= 1024 else torch.float32
    w = weights.to(dtype)
    h, inverse = _damped(moment.to(dtype))
    layer = _Layer(w, h, inverse, grid, granularity, zeros)
    energy = _cost(w, h).clamp_min(torch.finfo(dtype).tiny)
    scale, zero = scales or best_scales(w, h.diagonal(dim1=1, dim2=2), grid, granularity, power_of_two)
    scale, zero = scale.to(dtype), zero.to(dtype)
    free = grid.bits <= _FEW_BITS and not power_of_two and scales is None
    best: Rounded | None = None
    for factor in _FACTORS if free else (1.0,):
        tried = scale * factor
        values = _descend(layer, _better_start(layer, tried, zero), tried, zero)
        if free and granularity.kind == "channel":
            values, tried = _rescaled(layer, values, tried, zero)
        found = Rounded(values, tried, zero, layer.cost(values) / energy)
        best = found if best is None else _better(best, found, granularity)
    assert best is not None
    return best


@dataclass(frozen=True)
class _Layer:
    """What is rounded: weights, second moment (damped, and the factor of its inverse), grid, and what stays zero."""

    w: Tensor
    h: Tensor
    inverse: Tensor
    grid: Grid
    granularity: Granularity
    zeros: Tensor | None

    def cost(self, values: Tensor) -> Tensor:
        """What the outputs lose with these values for weights, `[stack, outputs]`."""
        return _cost(values - self.w, self.h)

    def rounded(self, column: Tensor, scale: Tensor, zero: Tensor, j: int) -> Tensor:
        """Weights of column `j`, `[stack, outputs]`, on the grid."""
        block = j // self.granularity.block if self.granularity.kind == "block" else 0
        s, z = scale[:, :, block], zero[:, :, block]
        values = (quantize(column, s, z, self.grid) - z) * s
        return values if self.zeros is None else values.masked_fill(self.zeros[:, :, j], 0.0)


def best_scales(
    w: Tensor, importance: Tensor, grid: Grid, granularity: Granularity, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Scales and zero points `[stack, outputs, blocks]` of least weighted squared error of the weights.

    Args:
        w: `[stack, outputs, inputs]`.
        importance: Weight of each input's error, `[stack, inputs]`.
        grid, granularity, power_of_two: As in the configuration.
    """
    outputs = w.shape[1]
    if granularity.kind == "tensor" or w.numel() <= _CHUNK:
        return _best_scales(w, importance, grid, granularity, power_of_two)
    rows = max(1, _CHUNK * outputs // w.numel())
    parts = [_best_scales(p, importance, grid, granularity, power_of_two) for p in w.split(rows, dim=1)]
    return torch.cat([scale for scale, _ in parts], 1), torch.cat([zero for _, zero in parts], 1)


def _best_scales(
    w: Tensor, importance: Tensor, grid: Grid, granularity: Granularity, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    blocks = _in_blocks(w, granularity)
    low, high = blocks.amin(3), blocks.amax(3)
    shares = _in_blocks(importance[:, None].expand(-1, w.shape[1], -1), granularity)
    least = torch.full_like(low, float("inf"))
    scale, zero, idle = torch.ones_like(low), torch.zeros_like(low), 0
    for shrink in (1.0,) if grid.bits >= _MANY_BITS else _SHRINK:
        s, z = (t.to(w.dtype) for t in _ends(low * shrink, high * shrink, grid, granularity, power_of_two))
        values = (quantize(blocks, s[..., None], z[..., None], grid) - z[..., None]) * s[..., None]
        error = ((values - blocks).square() * shares).sum(3)
        if granularity.kind == "tensor":
            error = error.sum((0, 1), keepdim=True).expand_as(error)
        better = error < least
        idle = 0 if bool(better.any()) else idle + 1
        if idle == _PATIENCE:
            break
        least, scale = torch.where(better, error, least), torch.where(better, s, scale)
        zero = torch.where(better, z, zero)
    return scale, zero


def _ends(low: Tensor, high: Tensor, grid: Grid, granularity: Granularity, power: bool) -> tuple[Tensor, Tensor]:
    if granularity.kind == "tensor":
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return grid.scales(low, high, power)


def _in_blocks(w: Tensor, granularity: Granularity) -> Tensor:
    """`[stack, outputs, inputs]` as `[stack, outputs, blocks, block]`; what fills the last block is zero."""
    if granularity.kind != "block":
        return w[:, :, None]
    missing = -w.shape[2] % granularity.block
    padded: Tensor = torch.nn.functional.pad(w, (0, missing))
    return padded.reshape(*w.shape[:2], -1, granularity.block)


def _damped(h: Tensor) -> tuple[Tensor, Tensor]:
    """`h` with a little added to its diagonal, and the upper Cholesky factor of its inverse.

    So inputs that never vary, or were seen too rarely, do no harm. More is added where the factor does not exist yet.
    """
    diagonal = h.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp_min(_TINY)
    share = _DAMPING
    while True:
        damped: Tensor = h + torch.diag_embed((share * mean).expand_as(diagonal))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed.any()):
                return damped, upper
        share *= 10


def _better_start(layer: _Layer, scale: Tensor, zero: Tensor) -> Tensor:
    """Row by row, what columns in order give or what rounding to nearest does, whichever costs less."""
    ordered = _in_order(layer, scale, zero)
    nearest = torch.stack([layer.rounded(layer.w[:, :, j], scale, zero, j) for j in range(layer.w.shape[2])], 2)
    return torch.where((layer.cost(ordered) <= layer.cost(nearest))[..., None], ordered, nearest)


def _in_order(layer: _Layer, scale: Tensor, zero: Tensor) -> Tensor:
    """Column by column, the error of each spread over the columns that follow it, in panels."""
    left, values, inputs, inverse = layer.w.clone(), torch.empty_like(layer.w), layer.w.shape[2], layer.inverse
    for start in range(0, inputs, _PANEL):
        end = min(start + _PANEL, inputs)
        errors = torch.empty_like(left[:, :, start:end])
        for j in range(start, end):
            values[:, :, j] = layer.rounded(left[:, :, j], scale, zero, j)
            error = (left[:, :, j] - values[:, :, j]) / inverse[:, j, j, None]
            left[:, :, j:end] -= error[:, :, None] * inverse[:, None, j, j:end]
            errors[:, :, j - start] = error
        left[:, :, end:] -= errors @ inverse[:, start:end, end:]
    return values


def _descend(layer: _Layer, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Sweeps in which each code takes its best value given all others, until none changes."""
    values, inputs, h = values.clone(), layer.w.shape[2], layer.h
    gradient = (values - layer.w) @ h
    diagonal = h.diagonal(dim1=1, dim2=2)
    for _ in range(_SWEEPS):
        changed = False
        for start in range(0, inputs, _PANEL):
            end = min(start + _PANEL, inputs)
            panel, before = gradient[:, :, start:end].clone(), values[:, :, start:end].clone()
            for j in range(start, end):
                wanted = values[:, :, j] - panel[:, :, j - start] / diagonal[:, j, None]
                step = layer.rounded(wanted, scale, zero, j) - values[:, :, j]
                values[:, :, j] += step
                panel += step[:, :, None] * h[:, None, j, start:end]
            moved = values[:, :, start:end] - before
            if bool(moved.any()):
                changed = True
                gradient += moved @ h[:, start:end]
        if not changed:
            break
    return values


def _rescaled(layer: _Layer, values: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Scales solved for given the codes, `s = q H w / q H q`, and codes again given the scales, in turns."""
    for _ in range(_ROUNDS):
        steps = values / scale
        product = steps @ layer.h
        new = ((product * layer.w).sum(2) / (product * steps).sum(2).clamp_min(1e-30))[..., None]
        good = (new > 0.2 * scale) & (new < 5 * scale) & new.isfinite()
        new = torch.where(good, new, scale)
        moved = _descend(layer, steps * new, new, zero)
        better = (layer.cost(moved) < layer.cost(values))[..., None]
        values, scale = torch.where(better, moved, values), torch.where(better, new, scale)
        if not bool(better.any()):
            break
    return values, scale


def _better(first: Rounded, second: Rounded, granularity: Granularity) -> Rounded:
    """Row by row the one of less error; where all rows share a scale, the one of less error in all."""
    less = second.error < first.error
    if granularity.kind == "tensor":
        less = (second.error.sum() < first.error.sum()).expand_as(less)
    rows = less[..., None]
    return Rounded(
        torch.where(rows, second.values, first.values),
        torch.where(rows, second.scale, first.scale),
        torch.where(rows, second.zero, first.zero),
        torch.where(less, second.error, first.error),
    )


def _cost(difference: Tensor, h: Tensor) -> Tensor:
    """`[stack, outputs]`."""
    return ((difference @ h) * difference).sum(2)
