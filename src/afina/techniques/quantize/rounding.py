"""Rounding weights so that the layer's output suffers least, not the weights.

For weights `W` of a layer that reads rows `x`, rounding them to `V` costs `tr((V - W) H (V - W)^T)` with `H` the second
moment of `x`. It is minimised over codes in three steps: columns in order, the error of each spread over those that
follow (optimal brain surgeon; GPTQ, Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3); then sweeps of exact
coordinate descent over all codes, which can only lower the cost; then the scale of each row is solved for anew.

A constant that can be added to the outputs is taken out beforehand: its best value makes `H` the covariance of `x`.

Outputs, and the scales that are tried for each, do not depend on each other: they lie side by side as rows, and what
is done for one input is done for all of them, in one piece of memory (`[stack, inputs, rows]`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Granularity, Grid
from afina.techniques.quantize.scales import best_scales

_DAMPING, _TINY = 1e-4, 1e-12
# Inputs whose changes are passed on to all later ones together, and rows that are worked on together: the changes of
# a panel stay in the processor's cache.
_PANEL, _ROWS = 128, 1024
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
    w, reads = weights.to(dtype), _Moment.of(moment.to(dtype))
    found = scales or best_scales(w, reads.h.diagonal(dim1=1, dim2=2), grid, granularity, power_of_two)
    scale, zero = (part.to(dtype) for part in found)
    free = grid.bits <= _FEW_BITS and not power_of_two and scales is None
    factors = _FACTORS if free else (1.0,)
    together = w.shape[1] if granularity.kind == "tensor" else _ROWS // len(factors)
    parts = []
    for start in range(0, w.shape[1], together):
        rows = slice(start, start + together)
        mask = None if zeros is None else _inputs_first(zeros[:, rows], len(factors))
        mine, codes = (_inputs_first(part[:, rows], len(factors)) for part in (w, zero))
        layer = _Layer(mine, codes, mask, reads, grid, granularity)
        tried = torch.cat([_inputs_first(scale[:, rows] * factor) for factor in factors], 2)
        parts.append(_best(layer, _solve(layer, tried, free), len(factors)))
    return Rounded(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _inputs_first(values: Tensor, times: int = 1) -> Tensor:
    """`[stack, outputs, n]` as `[stack, n, times * outputs]`."""
    return values.transpose(1, 2).repeat(1, 1, times)


@dataclass(frozen=True)
class _Moment:
    """The second moment of what a layer reads, damped, and the upper Cholesky factor of its inverse."""

    h: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, h: Tensor) -> "_Moment":
        """`h` with a little added to its diagonal, so that inputs that never vary, or were seen too rarely, do no harm.

        More is added where the factor does not exist yet.
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
                    return cls(damped, upper)
            share *= 10


@dataclass(frozen=True)
class _Layer:
    """What is rounded: weights, zero points and where a weight stays zero, `[stack, inputs or blocks, rows]` each."""

    w: Tensor
    zero: Tensor
    zeros: Tensor | None
    moment: _Moment
    grid: Grid
    granularity: Granularity

    @cached_property
    def product(self) -> Tensor:
        """`H W`, `[stack, inputs, rows]`."""
        return self.moment.h @ self.w

    def trial(self, values: Tensor, scale: Tensor) -> "_Trial":
        """These values, which lie on the grids of these scales."""
        return _Trial(values, self.moment.h @ (values - self.w), scale)

    def cost(self, trial: "_Trial") -> Tensor:
        """What the outputs lose with these values for weights, `[stack, rows]`."""
        return (trial.slopes * (trial.values - self.w)).sum(1)


class _Trial(NamedTuple):
    """Values, `H (V - W)` (half the slope of the cost), and scales, each `[stack, inputs or blocks, rows]`."""

    values: Tensor
    slopes: Tensor
    scale: Tensor

    def or_where(self, rows: Tensor, other: "_Trial") -> "_Trial":
        """The same, but the other's rows where `rows`, `[stack, rows]`."""
        return _Trial(*(torch.where(rows[:, None], b, a) for a, b in zip(self, other, strict=True)))


class _Codes:
    """The values that the weights of a layer can take with these scales, `[stack, blocks, rows]`."""

    def __init__(self, layer: _Layer, scale: Tensor) -> None:
        self._scales = scale.unbind(1)
        self._lowest = (layer.grid.low - layer.zero).unbind(1)
        self._highest = (layer.grid.high - layer.zero).unbind(1)
        self._block = layer.granularity.block if layer.granularity.kind == "block" else layer.w.shape[1]
        self._zeros = layer.zeros

    def take_nearest(self, column: Tensor, j: int) -> None:
        """Give each of the weights of input `j`, `[stack, rows]`, the value nearest to it."""
        block = j // self._block
        scale = self._scales[block]
        column.div_(scale).round_().clamp_(self._lowest[block], self._highest[block]).mul_(scale)
        if self._zeros is not None:
            column.masked_fill_(self._zeros[:, j], 0.0)


def _solve(layer: _Layer, scale: Tensor, free: bool) -> _Trial:
    """Values for each row's scale; where scales are `free`, also better ones."""
    codes = _Codes(layer, scale)
    nearest = layer.w.clone()
    for j, column in enumerate(nearest.unbind(1)):
        codes.take_nearest(column, j)
    ordered, plain = layer.trial(_in_order(layer, codes), scale), layer.trial(nearest, scale)
    found = _descend(layer, ordered.or_where(layer.cost(plain) < layer.cost(ordered), plain))
    return _rescaled(layer, found) if free and layer.granularity.kind == "channel" else found


def _best(layer: _Layer, trial: _Trial, times: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the rows that are the same output with other scales, the best, as the parts of `Rounded`.

    Where all rows share a scale, that of the least error in all.
    """
    energy = (layer.product * layer.w).sum(1).clamp_min(torch.finfo(layer.w.dtype).tiny)
    error = (layer.cost(trial) / energy).unflatten(1, (times, -1))
    best = error.argmin(1, keepdim=True)
    if layer.granularity.kind == "tensor":
        best = error.sum((0, 2)).argmin().expand_as(best)

    def of(rows: Tensor) -> Tensor:
        split: Tensor = rows.unflatten(2, (times, -1))
        return split.gather(2, best[:, None].expand(-1, rows.shape[1], -1, -1))[:, :, 0].transpose(1, 2)

    return of(trial.values), of(trial.scale), of(layer.zero), error.gather(1, best)[:, 0]


def _in_order(layer: _Layer, codes: _Codes) -> Tensor:
    """Input by input, the error of each spread over those that follow it, in panels."""
    left, inputs, inverse = layer.w.clone(), layer.w.shape[1], layer.moment.inverse
    values, diagonal = torch.empty_like(left), inverse.diagonal(dim1=1, dim2=2)[:, :, None].unbind(1)
    for start in range(0, inputs, _PANEL):
        end = min(start + _PANEL, inputs)
        errors = torch.empty_like(left[:, start:end])
        columns = zip(left[:, start:end].unbind(1), values[:, start:end].unbind(1), errors.unbind(1), strict=True)
        for j, (weight, value, error) in enumerate(columns, start):
            wanted = _plus(weight, inverse[:, start:j, j], errors, -1)
            codes.take_nearest(value.copy_(wanted), j)
            torch.sub(wanted, value, out=error).div_(diagonal[j])
        left[:, end:].baddbmm_(inverse[:, start:end, end:].transpose(1, 2), errors, alpha=-1)
    return values


def _descend(layer: _Layer, trial: _Trial) -> _Trial:
    """Sweeps in which each code takes its best value given all others, until none changes."""
    codes, values, slopes = _Codes(layer, trial.scale), trial.values.clone(), trial.slopes.clone()
    inputs, h = layer.w.shape[1], layer.moment.h
    diagonal = h.diagonal(dim1=1, dim2=2)[:, :, None].unbind(1)
    for _ in range(_SWEEPS):
        changed = False
        for start in range(0, inputs, _PANEL):
            end = min(start + _PANEL, inputs)
            steps = torch.empty_like(values[:, start:end])
            columns = zip(values[:, start:end].unbind(1), slopes[:, start:end].unbind(1), steps.unbind(1), strict=True)
            for j, (value, slope, step) in enumerate(columns, start):
                wanted = torch.addcdiv(value, _plus(slope, h[:, start:j, j], steps, 1), diagonal[j], value=-1)
                codes.take_nearest(wanted, j)
                torch.sub(wanted, value, out=step)
                value.copy_(wanted)
            if bool(steps.any()):
                changed = True
                slopes.baddbmm_(h[:, :, start:end], steps)
        if not changed:
            break
    return _Trial(values, slopes, trial.scale)


def _plus(column: Tensor, shares: Tensor, changes: Tensor, sign: int) -> Tensor:
    """What one input's `[stack, rows]` become by the changes of the first others, of which there are as many shares."""
    return torch.baddbmm(column[:, None], shares[:, None], changes[:, : shares.shape[1]], alpha=sign)[:, 0]


def _rescaled(layer: _Layer, best: _Trial) -> _Trial:
    """Scales solved for given the codes, `s = q H w / q H q`, and codes again given the scales, in turns."""
    for _ in range(_ROUNDS):
        steps, product = best.values / best.scale, (best.slopes + layer.product) / best.scale
        new = ((product * layer.w).sum(1) / (product * steps).sum(1).clamp_min(1e-30))[:, None]
        good = (new > 0.2 * best.scale) & (new < 5 * best.scale) & new.isfinite()
        new = torch.where(good, new, best.scale)
        found = _descend(layer, _Trial(steps * new, product * new - layer.product, new))
        better = layer.cost(found) < layer.cost(best)
        best = best.or_where(better, found)
        if not bool(better.any()):
            break
    return best
