"""Rounding weights so that the layer's output suffers least, not the weights.

For weights `W` of a layer that reads rows `x`, rounding them to `V` costs `tr((V - W) H (V - W)^T)` with `H` the second
moment of `x`. It is minimised over codes in three steps: columns in order, the error of each spread over those that
follow (optimal brain surgeon; GPTQ, Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3); then sweeps of exact
coordinate descent over all codes, which can only lower the cost; then the scale of each row is solved for anew.

A constant that can be added to the outputs is taken out beforehand: its best value makes `H` the covariance of `x`.

An example: one output, two inputs that mostly go together, and for the sake of short numbers a scale of 1, so that
codes are the values themselves.

    W = [1.4  1.4]      H = [1.0  0.9]      inverse of H = U^T U,    U = [2.294  -2.065]
                            [0.9  1.0]                                   [0       1    ]

- To nearest, `V = [1 1]`. Both errors are -0.4 and add up in the output: the cost is
  `0.4^2 + 0.4^2 + 2 * 0.9 * 0.4 * 0.4 = 0.608`.
- In order (`_rounded_in_order`): 1.4 becomes 1, and 0.4 of input 0 is lost. Input 1 makes up for it, as far as it goes
  with input 0: its weight becomes `1.4 - (0.4 / 2.294) * -2.065 = 1.76` before it is rounded, to 2. `V = [1 2]` costs
  0.088.
- Sweeps (`_coordinate_descent`): with all others as they are, the cost is a parabola of one weight, and its minimum is
  the weight less half the slope, `(V - W) H`, by the curvature, `H_jj`. From `[1 1]` half the slope is `[-0.76 -0.76]`:
  input 0 wants 1.76 and takes 2, which changes the slope of input 1 by `0.9 * 1` to 0.14; that wants 0.86 and stays 1.
  So `[2 1]` is reached, at 0.088 too. `[1 2]` has the slopes `[0.14 0.24]`, wants `[0.86 1.76]`, and stays.
- The scale (`_rescaled`): the codes `q = [1 2]` held still, the best one is `q H W / q H q = 7.98 / 8.6 = 0.928`. With
  `V = [0.928 1.856]` the cost is 0.043, a fourteenth of that of rounding to nearest.

Outputs, and the scales that are tried for each, do not depend on each other: they lie side by side as rows, and what
is done for one input is done for all of them, in one piece of memory (`[stack, inputs, rows]`): three outputs with two
scales each are rows `0 1 2` with the first scale, then `0 1 2` again with the second.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Granularity, Grid
from afina.techniques.quantize.scales import best_scales

# What is added to the diagonal of a moment, as a share of its mean.
_DAMPING, _TINY = 1e-4, 1e-12
# Inputs whose changes are passed on to all later ones together, and rows that are worked on together: the changes of
# a panel stay in the processor's cache.
_PANEL, _ROWS = 128, 1024
# Scales that are tried around the one that suits the weights alone, where codes are few.
_FACTORS = (1.0, 0.92, 0.84, 1.08)
# Sweeps over all codes, and turns of scales and codes, at most.
_SWEEPS, _ROUNDS = 4, 3
# So few bits that other scales are tried.
_FEW_BITS = 4


@dataclass(frozen=True)
class Rounded:
    """Rounded weights, as the values that their codes stand for, with their grids.

    Attributes:
        values: The rounded weights `[stack, outputs, inputs]`, each on its grid.
        scale: The scales `[stack, outputs, blocks]`, in units of the weights for one step.
        zero: The zero points `[stack, outputs, blocks]`.
        error: What each output loses, as a share of its energy, `[stack, outputs]`.
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
    stays_zero: Tensor | None = None,
) -> Rounded:
    """Weights rounded so that what they give changes least, by the second moment of what they multiply.

    With 4 bits or fewer, and scales that may be chosen, some scales around that of the weights alone are tried too.

    Args:
        weights: `[stack, outputs, inputs]`; a stack of layers (groups of a convolution, blocks of a wide layer).
        moment: The mean of `x x^T` over rows `x` of inputs, or their covariance, `[stack, inputs, inputs]`.
        grid: The codes that there are.
        granularity: Which weights share a scale.
        power_of_two: Whether scales are powers of two.
        scales: Scales and zero points `[stack, outputs, blocks]` to keep to; None to choose them here.
        stays_zero: Which weights stay zero, booleans `[stack, outputs, inputs]`: those of a sparse network; None for
            none.

    Raises:
        FloatingPointError: a weight is not a finite number, and scales are chosen here.

    Example:
        >>> weights, moment = torch.tensor([[[1.4, 1.4]]]), torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
        >>> ones = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        >>> round_weights(weights, moment, Grid(4), Granularity(), scales=ones).values.tolist()
        [[[1.0, 2.0]]]
        >>> alone = torch.eye(2)[None]  # inputs that have nothing to do with each other: to nearest
        >>> round_weights(weights, alone, Grid(4), Granularity(), scales=ones).values.tolist()
        [[[1.0, 1.0]]]
    """
    dtype = torch.float64 if weights.shape[2] <= 1024 else torch.float32
    w, damped = weights.to(dtype), _Moment.of(moment.to(dtype))
    importance = damped.h.diagonal(dim1=1, dim2=2)
    scale, zero = (part.to(dtype) for part in scales or best_scales(w, importance, grid, granularity, power_of_two))
    is_scale_free = grid.bits <= _FEW_BITS and not power_of_two and scales is None
    factors = _FACTORS if is_scale_free else (1.0,)
    outputs_at_once = w.shape[1] if granularity.kind == "tensor" else _ROWS // len(factors)
    parts = []
    for start in range(0, w.shape[1], outputs_at_once):
        outputs = slice(start, start + outputs_at_once)
        mask = None if stays_zero is None else _inputs_first(stays_zero[:, outputs], len(factors))
        row_weights, row_zeros = (_inputs_first(part[:, outputs], len(factors)) for part in (w, zero))
        layer = _Layer(row_weights, row_zeros, mask, damped, grid, granularity)
        row_scales = torch.cat([_inputs_first(scale[:, outputs] * factor) for factor in factors], 2)
        parts.append(_best(layer, _solve(layer, row_scales, is_scale_free), len(factors)))
    return Rounded(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _inputs_first(values: Tensor, scales_tried: int = 1) -> Tensor:
    """`[stack, outputs, n]` as `[stack, n, scales_tried * outputs]`: all outputs, then all again for the next scale.

    Example:
        >>> _inputs_first(torch.tensor([[[1, 2], [3, 4]]]), scales_tried=2).tolist()
        [[[1, 3, 1, 3], [2, 4, 2, 4]]]
    """
    return values.transpose(1, 2).repeat(1, 1, scales_tried)


@dataclass(frozen=True)
class _Moment:
    """The second moment of what a layer reads, damped, and the upper Cholesky factor of its inverse.

    Attributes:
        h: The damped moment `[stack, inputs, inputs]`.
        inverse_factor: The upper triangular `U` with `U^T U` the inverse of `h`, `[stack, inputs, inputs]`. Row `j`
            says how the weights of inputs `j + 1 ...` make up best for an error of input `j` while those before it
            stay: by `-U[j, j+1:] / U[j, j]` for each unit of the error (the module's example: 0.9).
    """

    h: Tensor
    inverse_factor: Tensor

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
    """What is rounded.

    Attributes:
        w: The weights `[stack, inputs, rows]`.
        zero: The zero points `[stack, blocks, rows]`.
        stays_zero: Which weights stay zero, `[stack, inputs, rows]`; None for none.
        moment: The second moment of the inputs.
        grid: The codes that there are.
        granularity: Which weights share a scale.
    """

    w: Tensor
    zero: Tensor
    stays_zero: Tensor | None
    moment: _Moment
    grid: Grid
    granularity: Granularity

    @cached_property
    def product(self) -> Tensor:
        """`H W` of the weights before they are rounded, `[stack, inputs, rows]`."""
        return self.moment.h @ self.w

    def trial(self, values: Tensor, scale: Tensor) -> "_Trial":
        """These values, which lie on the grids of these scales."""
        return _Trial(values, self.moment.h @ (values - self.w), scale)

    def cost(self, trial: "_Trial") -> Tensor:
        """What the outputs lose with these values for weights, `(V - W) H (V - W)^T` of each row: `[stack, rows]`."""
        return (trial.slopes * (trial.values - self.w)).sum(1)


class _Trial(NamedTuple):
    """One way to round all rows.

    Attributes:
        values: The rounded weights `V`, `[stack, inputs, rows]`.
        slopes: `H (V - W)`, half the slope of the cost by each value, `[stack, inputs, rows]`.
        scale: The scales that the values lie on, `[stack, blocks, rows]`.
    """

    values: Tensor
    slopes: Tensor
    scale: Tensor

    def with_rows(self, rows: Tensor, other: "_Trial") -> "_Trial":
        """This trial with the other's rows in the place of those that `rows` marks, booleans `[stack, rows]`."""
        return _Trial(*(torch.where(rows[:, None], b, a) for a, b in zip(self, other, strict=True)))


class _Codes:
    """The values that the weights of a layer can take with these scales, `[stack, blocks, rows]`."""

    def __init__(self, layer: _Layer, scale: Tensor) -> None:
        self._scales = scale.unbind(1)
        self._lowest = (layer.grid.low - layer.zero).unbind(1)
        self._highest = (layer.grid.high - layer.zero).unbind(1)
        self._block = layer.granularity.block if layer.granularity.kind == "block" else layer.w.shape[1]
        self._stays_zero = layer.stays_zero

    def take_nearest(self, column: Tensor, j: int) -> None:
        """Round the weights `[stack, rows]` of input `j` to the nearest values that there are, in place."""
        block = j // self._block
        scale = self._scales[block]
        column.div_(scale).round_().clamp_(self._lowest[block], self._highest[block]).mul_(scale)
        if self._stays_zero is not None:
            column.masked_fill_(self._stays_zero[:, j], 0.0)


def _solve(layer: _Layer, scale: Tensor, is_scale_free: bool) -> _Trial:
    """Values for each row's scale `[stack, blocks, rows]`; where the scale may be chosen, also a better one.

    The sweeps start from whichever of two roundings costs a row less: inputs in order, or each to nearest.
    """
    codes = _Codes(layer, scale)
    nearest = layer.w.clone()
    for j, column in enumerate(nearest.unbind(1)):
        codes.take_nearest(column, j)
    ordered, to_nearest = layer.trial(_rounded_in_order(layer, codes), scale), layer.trial(nearest, scale)
    swept = _coordinate_descent(layer, ordered.with_rows(layer.cost(to_nearest) < layer.cost(ordered), to_nearest))
    return _rescaled(layer, swept) if is_scale_free and layer.granularity.kind == "channel" else swept


def _best(layer: _Layer, trial: _Trial, scales_tried: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each output the best of its `scales_tried` rows, which differ in their scales, as the parts of `Rounded`.

    Where all outputs share a scale, all take the one of the least error in sum.
    """
    energy = (layer.product * layer.w).sum(1).clamp_min(torch.finfo(layer.w.dtype).tiny)
    error = (layer.cost(trial) / energy).unflatten(1, (scales_tried, -1))
    best = error.argmin(1, keepdim=True)
    if layer.granularity.kind == "tensor":
        best = error.sum((0, 2)).argmin().expand_as(best)

    def best_rows(rows: Tensor) -> Tensor:
        split: Tensor = rows.unflatten(2, (scales_tried, -1))
        return split.gather(2, best[:, None].expand(-1, rows.shape[1], -1, -1))[:, :, 0].transpose(1, 2)

    return best_rows(trial.values), best_rows(trial.scale), best_rows(layer.zero), error.gather(1, best)[:, 0]


def _rounded_in_order(layer: _Layer, codes: _Codes) -> Tensor:
    """Values `[stack, inputs, rows]` input by input, the error of each spread over the inputs that follow it.

    With `U` the factor of the inverse: weight `j` becomes the nearest value `v_j`, its error is
    `e_j = (w_j - v_j) / U[j, j]`, and each later weight becomes `w_k - e_j U[j, k]` (GPTQ, equation 2, and section 3.3
    for the factor). Inside a panel a weight is corrected when it is reached, by the errors of the panel so far; the
    inputs behind the panel are corrected at its end, by one product of matrices.
    """
    corrected, inputs, factor = layer.w.clone(), layer.w.shape[1], layer.moment.inverse_factor
    values, diagonal = torch.empty_like(corrected), factor.diagonal(dim1=1, dim2=2)[:, :, None].unbind(1)
    for start in range(0, inputs, _PANEL):
        end = min(start + _PANEL, inputs)
        errors = torch.empty_like(corrected[:, start:end])
        columns = zip(corrected[:, start:end].unbind(1), values[:, start:end].unbind(1), errors.unbind(1), strict=True)
        for j, (weight, value, error) in enumerate(columns, start):
            target = _plus_shares(weight, factor[:, start:j, j], errors, -1)
            codes.take_nearest(value.copy_(target), j)
            torch.sub(target, value, out=error).div_(diagonal[j])
        corrected[:, end:].baddbmm_(factor[:, start:end, end:].transpose(1, 2), errors, alpha=-1)
    return values


def _coordinate_descent(layer: _Layer, trial: _Trial) -> _Trial:
    """Sweeps in which each weight takes the best of its values given all others, until none changes.

    With half the slope `g = H (V - W)` the best real value of weight `j` is `v_j - g_j / H[j, j]`, and the best value
    on the grid is the one nearest to that. A step `d` of weight `j` changes `g` by `H[:, j] d`: inside a panel when a
    later weight is reached, for all others at the end of the panel.
    """
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
                slope_now = _plus_shares(slope, h[:, start:j, j], steps, 1)
                best = torch.addcdiv(value, slope_now, diagonal[j], value=-1)
                codes.take_nearest(best, j)
                torch.sub(best, value, out=step)
                value.copy_(best)
            if bool(steps.any()):
                changed = True
                slopes.baddbmm_(h[:, :, start:end], steps)
        if not changed:
            break
    return _Trial(values, slopes, trial.scale)


def _plus_shares(column: Tensor, shares: Tensor, changes: Tensor, sign: int) -> Tensor:
    """`column + sign * sum_i shares_i changes_i`: what one input gets of the changes of those before it in the panel.

    Args:
        column: Of the input, `[stack, rows]`.
        shares: One for each input before it, `[stack, n]`.
        changes: Of the panel's inputs `[stack, panel, rows]`; the first `n` are taken.
        sign: 1 or -1.
    """
    return torch.baddbmm(column[:, None], shares[:, None], changes[:, : shares.shape[1]], alpha=sign)[:, 0]


def _rescaled(layer: _Layer, best: _Trial) -> _Trial:
    """Scales solved for given the codes, `s = q H w / q H q`, and codes again given the scales, in turns.

    `q` are the codes less the zero point. `H q` needs no product: `H V = H (V - W) + H W` is known, and `V = s q`.
    """
    for _ in range(_ROUNDS):
        q, hq = best.values / best.scale, (best.slopes + layer.product) / best.scale
        scale = ((hq * layer.w).sum(1) / (hq * q).sum(1).clamp_min(1e-30))[:, None]
        is_sane = (scale > 0.2 * best.scale) & (scale < 5 * best.scale) & scale.isfinite()
        scale = torch.where(is_sane, scale, best.scale)
        trial = _coordinate_descent(layer, _Trial(q * scale, hq * scale - layer.product, scale))
        better = layer.cost(trial) < layer.cost(best)
        best = best.with_rows(better, trial)
        if not bool(better.any()):
            break
    return best
