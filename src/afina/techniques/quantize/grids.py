"""Number grids: what an integer stands for, and the three pure functions that everything else is made of.

A grid of `bits` bits writes a real value `x` as a code `q` in `low..high` with a scale `s > 0` and a zero point `z`:

    q = clip(round(x / s) + z, low, high),    x' = (q - z) s

with rounding to nearest, ties to even. Inside the range `(low - z) s .. (high - z) s` the error is at most `s / 2`;
outside, the value is clipped to the nearer end. Zero is written exactly, since `z` is a code.
(Jacob et al. 2018, arXiv 1712.05877, equations 1 and 3; Nagel et al. 2021, arXiv 2106.08295, section 2.)
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from afina.errors import InputError

Scheme = Literal["absmax", "affine"]
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
# Scales below this are not normal numbers in half the runtimes' kernels.
SMALLEST_SCALE = 2.0**-100
# No code stands for more than this, so that nothing overflows: ranges that reach further are clipped to it.
LARGEST_VALUE = 2.0**127
_STORED: dict[tuple[bool, bool], torch.dtype] = {
    (True, False): torch.int8,
    (False, False): torch.uint8,
    (True, True): torch.int16,
    (False, True): torch.uint16,
}


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits.

    Attributes:
        bits: 2 to 8, or 16.
        signed: Codes from `-2^(bits-1)`, else from 0.
        scheme: `absmax` (symmetric: zero point 0 where signed, in the middle where not) or `affine`.
        full: For `absmax`, also the lowest signed code, which has no positive counterpart; restricted without.
    """

    bits: int
    signed: bool = True
    scheme: Scheme = "absmax"
    full: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"{self.bits} bits are no grid.", fix=f"Choose one of {', '.join(map(str, BITS))}.")

    @property
    def low(self) -> int:
        if not self.signed:
            return 0
        lowest = -(1 << (self.bits - 1))
        return lowest + 1 if self.scheme == "absmax" and not self.full else lowest

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """What codes are stored in."""
        return _STORED[self.signed, self.bits > 8]

    def scales(self, low: Tensor, high: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
        """Scale and zero point (int32) that cover `low..high`, elementwise; a range of nothing gets scale 1.

        The range is widened to hold zero, and clipped to half of what float32 holds. With `power_of_two` the scale is
        the next power of two above.

        Raises:
            FloatingPointError: an end is not a finite number.
        """
        if not bool(low.isfinite().all() and high.isfinite().all()):
            raise FloatingPointError("a range is not finite")
        low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
        if self.scheme == "absmax":
            middle = 0 if self.signed else 2 ** (self.bits - 1)
            steps = max(1, self.high - middle)
            scale, reach = torch.maximum(high, -low * (steps / (middle - self.low))) / steps, middle - self.low
        else:
            reach = self.high - self.low
            scale = (high - low) / reach
        empty = scale <= 0
        scale = scale.clamp(SMALLEST_SCALE, LARGEST_VALUE / reach)
        if power_of_two:
            scale = torch.exp2(torch.ceil(torch.log2(scale)).clamp_max(math.floor(math.log2(LARGEST_VALUE / reach))))
        scale = torch.where(empty, torch.ones_like(scale), scale)
        if self.scheme == "absmax":
            zero = torch.full_like(scale, middle)
        else:
            zero = (self.low - low / scale).round().clamp(self.low, self.high)
        return scale.float(), zero.to(torch.int32)


@dataclass(frozen=True)
class Granularity:
    """Which weights share a scale.

    Attributes:
        kind: `tensor`, `channel` (one scale for each output) or `block` (for each output and `block` inputs).
        block: Inputs in one block; the last block of an output may be shorter.
    """

    kind: Literal["tensor", "channel", "block"] = "channel"
    block: int = 0

    @classmethod
    def parse(cls, text: str) -> "Granularity":
        """`tensor`, `channel` or `block:32`. Raises `InputError`."""
        kind, _, size = text.partition(":")
        if kind in ("tensor", "channel") and not size:
            return cls(kind)  # type: ignore[arg-type]
        if kind == "block" and size.isdecimal() and int(size) >= 2:
            return cls("block", int(size))
        raise InputError(
            f"{text!r} is no granularity.", fix="Choose tensor, channel, or block:N with N of 2 or more inputs."
        )

    def __str__(self) -> str:
        return f"block:{self.block}" if self.kind == "block" else self.kind

    def spread(self, values: Tensor, inputs: int) -> Tensor:
        """Scales `[outputs, blocks]` as one for each weight, broadcast against `[outputs, inputs]`."""
        if self.kind != "block":
            return values
        return values.repeat_interleave(self.block, 1)[:, :inputs]

    def blocks(self, inputs: int) -> int:
        """How many blocks an output's `inputs` weights fall into."""
        return math.ceil(inputs / self.block) if self.kind == "block" else 1


def quantize(x: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Codes of `x`: `clip(round(x / scale) + zero, low, high)`, rounded to nearest, ties to even.

    Args:
        x: Float, of any shape.
        scale: Positive, in units of `x` for one step; broadcasts against `x`.
        zero: The code that stands for 0, a whole number; broadcasts against `x`.
        grid: Its lowest and highest code.

    Returns:
        Whole numbers in the type and shape of `x`, not yet in the grid's storage type.
    """
    return (torch.round(x / scale) + zero).clamp(grid.low, grid.high)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What codes stand for: `(codes - zero) * scale`, in the units of `scale`.

    Of codes from `quantize`, at most `scale / 2` from `x` where `x` is inside `(low - zero) scale .. (high - zero)
    scale`; outside, the nearer end. 0 is given back as 0.

    Args:
        codes: Whole numbers, of any shape.
        scale: As they were made with; broadcasts against the codes.
        zero: As they were made with; broadcasts against the codes.
    """
    return (codes - zero) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """`x` as the grid would give it back, in float; error at most `scale / 2` inside the range.

    Differentiable by the straight-through estimator: the gradient to `x` is that of clipping, the gradient to `scale`
    that of learned step sizes (Esser et al. 2020, arXiv 1902.08153, equation 3), scaled as there.
    """
    # In 32 bits whatever autocast gives: codes of 16 bits are beyond halves.
    wide = x.float()
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _Straight.apply(wide, scale, zero, grid.low, grid.high).to(x.dtype)  # type: ignore[no-any-return]
    # In one piece of memory: torch's own operator takes fifteen times as long on a processor. One scale is multiplied
    # by, as the nodes do that the edges of activations become; many are divided by, as codes of weights are made.
    steps = wide * scale.double().reciprocal().float().reshape(()) if scale.numel() == 1 else wide / scale
    return steps.round_().add_(zero).clamp_(grid.low, grid.high).sub_(zero).mul_(scale).to(x.dtype)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        ratio = x / scale
        steps, codes = ratio + zero, ratio.round_().add_(zero)
        ctx.save_for_backward(steps, codes, zero)
        ctx.limits, ctx.shape = (low, high), scale.shape
        return (codes.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        steps, codes, zero = ctx.saved_tensors
        low, high = ctx.limits
        inside = (codes >= low) & (codes <= high)
        to_x = grad * inside
        to_scale = None
        if ctx.needs_input_grad[1]:
            share = torch.where(inside, codes - steps, codes.clamp(low, high) - zero)
            to_scale = (grad * share).sum_to_size(ctx.shape)
            # So that a step of the scale is of the size of a step of the weights (the same paper, section 2.2).
            to_scale /= math.sqrt(grad.numel() / to_scale.numel() * max(high, -low))
        return to_x, to_scale, None, None, None
