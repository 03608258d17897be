"""Scales of weights that come nearest to the weights themselves, each error weighed by how much its input matters.

The widest weight need not decide the step of all. Eight weights of 0.2 and one of 1.0, in 3 bits (codes -3 to 3): with
the scale 1/3, which reaches 1.0, each 0.2 becomes 0.333, and the squared errors sum up to 0.142. With 0.82 of it,
0.273, the large one is clipped to 0.82 and each 0.2 becomes 0.273: 0.075. So shares of the full range are tried, from 1
down.
"""

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Granularity, Grid, quantize

# Shares of the full range that are tried, until so many in a row gain nothing: with 8 bits and more, clipping never
# pays. (The scales were those of all 36 shares wherever that was compared: normal and heavy tails, 3 to 7 bits.)
_SHRINK, _MANY_BITS, _PATIENCE = torch.linspace(1.0, 0.3, 36).tolist(), 8, 4
# Weights looked at together: so many as a processor's cache holds.
_CHUNK = 2**18


def best_scales(
    w: Tensor, importance: Tensor, grid: Grid, granularity: Granularity, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Scales and zero points `[stack, outputs, blocks]` of least weighted squared error of the weights.

    Args:
        w: The weights `[stack, outputs, inputs]`.
        importance: How much each input's error counts, `[stack, inputs]`: the mean square of what it reads, or ones.
        grid: The codes that there are.
        granularity: Which weights share a scale.
        power_of_two: Whether scales are powers of two.

    Raises:
        FloatingPointError: a weight is not a finite number.

    Example:
        >>> weights = torch.tensor([[[*[0.2] * 8, 1.0]]])
        >>> scale, zero = best_scales(weights, torch.ones(1, 9), Grid(3), Granularity())
        >>> round(float(scale), 3), float(zero)
        (0.273, 0.0)
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
    """As `best_scales`, in one piece."""
    blocks = _in_blocks(w, granularity)
    low, high = blocks.amin(3), blocks.amax(3)
    weight_of_error = _in_blocks(importance[:, None].expand(-1, w.shape[1], -1), granularity)
    least = torch.full_like(low, float("inf"))
    scale, zero, idle = torch.ones_like(low), torch.zeros_like(low), 0
    for shrink in (1.0,) if grid.bits >= _MANY_BITS else _SHRINK:
        s, z = (t.to(w.dtype) for t in _scales_of(low * shrink, high * shrink, grid, granularity, power_of_two))
        values = (quantize(blocks, s[..., None], z[..., None], grid) - z[..., None]) * s[..., None]
        error = ((values - blocks).square() * weight_of_error).sum(3)
        if granularity.kind == "tensor":
            error = error.sum((0, 1), keepdim=True).expand_as(error)
        better = error < least
        idle = 0 if bool(better.any()) else idle + 1
        if idle == _PATIENCE:
            break
        least, scale = torch.where(better, error, least), torch.where(better, s, scale)
        zero = torch.where(better, z, zero)
    return scale, zero


def _scales_of(low: Tensor, high: Tensor, grid: Grid, granularity: Granularity, power: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points that cover ranges `[stack, outputs, blocks]`; for a whole tensor all get the widest's."""
    if granularity.kind == "tensor":
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return grid.scales(low, high, power)


def _in_blocks(w: Tensor, granularity: Granularity) -> Tensor:
    """`[stack, outputs, inputs]` as `[stack, outputs, blocks, block]`; what fills the last block is zero.

    Example:
        >>> _in_blocks(torch.tensor([[[1, 2, 3, 4, 5]]]), Granularity("block", 2)).tolist()
        [[[[1, 2], [3, 4], [5, 0]]]]
    """
    if granularity.kind != "block":
        return w[:, :, None]
    missing = -w.shape[2] % granularity.block
    padded: Tensor = torch.nn.functional.pad(w, (0, missing))
    return padded.reshape(*w.shape[:2], -1, granularity.block)
