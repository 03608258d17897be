"""Number grids: what an integer stands for, and the three pure functions that everything else is made of.

A grid of `bits` bits writes a real value `x` as a code `q` in `low..high` with a scale `s > 0` and a zero point `z`:

    q = clip(round(x / s) + z, low, high),    x' = (q - z) s

with rounding to nearest, ties to even. Inside the range `(low - z) s .. (high - z) s` the error is at most `s / 2`;
outside, the value is clipped to the nearer end. Zero is written exactly, since `z` is a code.

With 3 bits without sign, and values from -1 to 2.5: the scale is `3.5 / 7 = 0.5`, the zero point `1 / 0.5 = 2`, and

    codes       0     1     2     3     4     5     6     7
    stand for  -1   -0.5    0    0.5    1    1.5    2    2.5

so 0.7 becomes `round(1.4) + 2 = 3`, that is 0.5, and 3.1 becomes `round(6.2) + 2 = 8`, clipped to 7, that is 2.5.

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
    """The codes that there are: integers of `bits` bits.

    Attributes:
        bits: 2 to 8, or 16.
        signed: Whether codes go from `-2^(bits-1)`, else from 0.
        scheme: `absmax` (symmetric: zero point 0 where signed, in the middle where not) or `affine`.
        full: Whether signed codes of `absmax` include the lowest, which has no positive counterpart.

    Raises:
        InputError: a number of bits that there is no grid of.

    Example:
        >>> weights, activations = Grid(4), Grid(8, signed=False, scheme="affine")
        >>> (weights.low, weights.high), (activations.low, activations.high)
        ((-7, 7), (0, 255))
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
        """The lowest code."""
        if not self.signed:
            return 0
        lowest = -(1 << (self.bits - 1))
        return lowest + 1 if self.scheme == "absmax" and not self.full else lowest

    @property
    def high(self) -> int:
        """The highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that codes are stored in: 8 bits, or 16 where there are more than 8."""
        return _STORED[self.signed, self.bits > 8]

    def scales(self, low: Tensor, high: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) that cover `low..high`, elementwise; the range 0..0 gets scale 1.

        The range is widened to hold zero, and clipped to half of what float32 holds. With `power_of_two` the scale is
        the next power of two above.

        Args:
            low: Lower ends, of any shape, in the units of the values.
            high: Upper ends, in the same shape.
            power_of_two: Whether scales are powers of two.

        Raises:
            FloatingPointError: an end is not a finite number.

        Example:
            >>> scale, zero = Grid(3, signed=False, scheme="affine").scales(torch.tensor(-1.0), torch.tensor(2.5))
            >>> float(scale), int(zero)
            (0.5, 2)
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

    Example:
        >>> Granularity.parse("block:4").spread(torch.tensor([[0.1, 0.2]]), inputs=6)
        tensor([[0.1000, 0.1000, 0.1000, 0.1000, 0.2000, 0.2000]])
    """

    kind: Literal["tensor", "channel", "block"] = "channel"
    block: int = 0

    @classmethod
    def parse(cls, text: str) -> "Granularity":
        """The granularity that a text names: `tensor`, `channel` or `block:32`. Raises `InputError`."""
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

    Example:
        >>> grid = Grid(3, signed=False, scheme="affine")
        >>> quantize(torch.tensor([-1.0, 0.7, 3.1]), torch.tensor(0.5), torch.tensor(2), grid)
        tensor([0., 3., 7.])
    """
    return (torch.round(_in_steps(x, scale)) + zero).clamp(grid.low, grid.high)


def _in_steps(x: Tensor, scale: Tensor) -> Tensor:
    """`x` in steps of the scale. By one scale it is multiplied, as the nodes do that the edges of activations become.

    The two ways differ in the last bit, which decides where a value lies between two steps: 500,000 at a scale of
    333,333.34 is 1.5 steps by one and a little less by the other.
    """
    return x * scale.double().reciprocal().to(x.dtype).reshape(()) if scale.numel() == 1 else x / scale


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values that codes stand for: `(codes - zero) * scale`, in the units of `scale`.

    For codes from `quantize` they are at most `scale / 2` from `x` where that is inside `(low - zero) scale .. (high -
    zero) scale`; outside, they are the nearer end. 0 becomes 0 again.

    Args:
        codes: Whole numbers, of any shape.
        scale: The scale that the codes were made with; broadcasts against the codes.
        zero: The zero point that the codes were made with; broadcasts against the codes.

    Example:
        >>> dequantize(torch.tensor([0.0, 3.0, 7.0]), torch.tensor(0.5), torch.tensor(2))
        tensor([-1.0000,  0.5000,  2.5000])
    """
    return (codes - zero) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """`x` quantized and dequantized, in its type and shape; the error inside the range is at most `scale / 2`.

    Differentiable by the straight-through estimator: the gradient to `x` is that of clipping, the gradient to `scale`
    that of learned step sizes (Esser et al. 2020, arXiv 1902.08153, equation 3), scaled as there.

    Example:
        >>> x = torch.tensor([0.7, 3.1], requires_grad=True)
        >>> value = fake_quantize(x, torch.tensor(0.5), torch.tensor(2), Grid(3, signed=False, scheme="affine"))
        >>> value.sum().backward()
        >>> value.tolist(), x.grad.tolist()
        ([0.5, 2.5], [1.0, 0.0])
    """
    # In 32 bits whatever autocast gives: codes of 16 bits are beyond halves.
    wide = x.float()
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _StraightThrough.apply(wide, scale, zero, grid.low, grid.high).to(x.dtype)  # type: ignore[no-any-return]
    # In one piece of memory: torch's own operator takes fifteen times as long on a processor.
    return _in_steps(wide, scale).round_().add_(zero).clamp_(grid.low, grid.high).sub_(zero).mul_(scale).to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of the values without the rounding.

    For one value with `t = x / s + z` and code `q = round(x / s) + z`, inside the range:

        x' = (q - z) s      dx'/dx = 1 (the rounding counts as the identity)      dx'/ds = q - t, the error in steps

    and outside, with the end `q = low` or `high`: `dx'/dx = 0`, `dx'/ds = q - z`. So a large value that is clipped
    pulls the scale up by many steps, and values inside by half a step at most.
    """

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
