"""Ranges of activations from a stream, in bounded memory: one histogram for each tensor, never the tensor itself."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Grid

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]
_BINS = 8192
_SHRINK_STEPS = 64
# Values of one batch that are counted: counting more took as long as a quarter of a ResNet-50, and ranges stay.
_COUNTED = 2**15
_SMALLEST_SHRINK, _SHRINKS = 0.4, 5
_SHARE_KEPT = 0.9999
# What a moving average keeps of what was before, over so many images.
_MEMORY, _REMEMBERED = 0.9, 64
# Grids of more codes than this are finer than what a histogram can tell apart.
_MOST_CODES = 256
_TINY = 1e-12
# Sums in float32 overflow beyond this: a network that gives such values is as broken as one that gives infinity.
_LARGEST = 1e36


class Histogram:
    """What a tensor was seen to hold: its extremes, their moving average, and counts in 8192 bins.

    Values are counted over `[-reach, reach]`. When one falls outside, the reach doubles and each pair of bins becomes
    one, so nothing already counted is approximated a second time. Memory: 64 KiB, whatever the number of images.
    """

    def __init__(self) -> None:
        self.reach = 0.0
        self.low, self.high = 0.0, 0.0
        self.average: tuple[float, float] | None = None
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, x: Tensor, images: int = _REMEMBERED) -> None:
        """Count the values of a tensor, of so many images.

        Raises `FloatingPointError` where one is not a finite number.
        """
        values = _as_stored(x.detach().float())
        low, high = (float(v) for v in values.aminmax())
        if not (abs(low) < _LARGEST and abs(high) < _LARGEST):
            raise FloatingPointError("calibration met a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        before, kept = self.average or (low, high), _MEMORY ** (images / _REMEMBERED)
        self.average = kept * before[0] + (1 - kept) * low, kept * before[1] + (1 - kept) * high
        self._reach_for(max(-low, high))
        if self.reach:
            # Of large activations a part is counted: what a histogram says of them does not change with more.
            part = values.flatten()[:: _step(values.numel() // _COUNTED, values.shape[-1])]
            self.counts += torch.histc(part, _BINS, -self.reach, self.reach).double().cpu()
        else:
            self.counts[_BINS // 2] += values.numel()

    @property
    def constant(self) -> bool:
        """Whether nothing but one value was ever seen."""
        return self.reach == 0 or bool((self.counts > 0).sum() <= 1)

    def values(self) -> tuple[Tensor, Tensor]:
        """The middles of the bins that were hit, no further out than the extremes, and their counts (float64)."""
        used = self.counts.nonzero().squeeze(1)
        middles = (used.double() + 0.5) * (2 * self.reach / _BINS) - self.reach
        return middles.clamp(self.low, self.high), self.counts[used]

    def _reach_for(self, largest: float) -> None:
        if not self.reach:
            self.reach = largest
        while self.reach and self.reach < largest:
            self.reach *= 2
            quarter = _BINS // 4
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[quarter : quarter + _BINS // 2] = merged


def _as_stored(x: Tensor) -> Tensor:
    """Images with their channels where they are in memory, so that to flatten them is no copy."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1) if last else x


def _step(least: int, row: int) -> int:
    """From one value to the next that is counted: without a divisor in common with a row, so that all columns are."""
    step = max(1, least)
    while math.gcd(step, row) > 1:
        step += 1
    return step


def range_of(seen: Histogram, grid: Grid, method: Method) -> tuple[float, float]:
    """The range that a grid should cover, by one method."""
    if not seen.reach:
        return 0.0, 0.0
    low, high = _METHODS[method](seen, grid)
    return min(low, 0.0), max(high, 0.0)


def _minmax(seen: Histogram, grid: Grid) -> tuple[float, float]:
    return seen.low, seen.high


def _average(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The moving average of the batches' extremes (Jacob et al. 2018, section 3.1)."""
    assert seen.average is not None
    return seen.average


def _percentile(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """What holds 99.99% of the values, the same share left out at both ends."""
    centers, counts = seen.values()
    share = counts.cumsum(0) / counts.sum()
    outside = (1 - _SHARE_KEPT) / 2
    last = len(centers) - 1
    first = min(int(torch.searchsorted(share, outside)), last)
    end = min(int(torch.searchsorted(share, 1 - outside)), last)
    return float(centers[first]), float(centers[end])


def _mse(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range of least mean squared error: both ends shrunk together, as far as that helps, then each alone."""
    centers, counts = seen.values()
    shrink = torch.linspace(_SMALLEST_SHRINK, 1.0, _SHRINK_STEPS, dtype=torch.float64)

    def best(lows: Tensor, highs: Tensor) -> tuple[float, float, int]:
        scale, zero = (t.double()[:, None] for t in grid.scales(lows, highs))
        codes = (torch.round(centers / scale) + zero).clamp(grid.low, grid.high)
        found = int((((codes - zero) * scale - centers).square() @ counts).argmin())
        return float(lows[found]), float(highs[found]), found

    first, last = seen.low, seen.high
    for _ in range(_SHRINKS):
        low, high, found = best(first * shrink, last * shrink)
        if found:
            break
        first, last = low, high  # few bits and far outliers: the smallest that was tried may not be small enough
    if grid.scheme == "affine" and seen.low < 0 < seen.high:
        low, high, _ = best(first * shrink, torch.full_like(shrink, high))
        low, high, _ = best(torch.full_like(shrink, low), last * shrink)
    return low, high


def _entropy(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range of least relative entropy KL(p, q) (Migacz 2017): p clipped to it, q what its codes can tell apart.

    Zeros are left out: every grid holds them exactly, and behind a ReLU they would outweigh all else.
    """
    centers, counts = seen.values()
    varied = centers.abs() > 2 * seen.reach / _BINS
    centers, counts = centers[varied], counts[varied]
    codes = min(2**grid.bits, _MOST_CODES)
    best, least = (seen.low, seen.high), float("inf")
    for shrink in torch.linspace(_SMALLEST_SHRINK, 1.0, _SHRINK_STEPS // 2).tolist():
        low, high = seen.low * shrink, seen.high * shrink
        clipped = centers.clamp(low, high)
        bins = ((clipped - low) / max(high - low, _TINY) * codes).long().clamp(0, codes - 1)
        inside = (centers >= low) & (centers <= high)
        if not bool(inside.any()):
            continue  # all that was seen is far from zero
        # q is made of what lies inside alone, so that what is clipped costs.
        held = torch.zeros(codes, dtype=torch.float64).index_add_(0, bins[inside], counts[inside])
        number = torch.zeros(codes, dtype=torch.float64).index_add_(0, bins[inside], torch.ones_like(counts[inside]))
        q = (held / number.clamp_min(1))[bins] * inside
        p = counts * inside
        p[int(inside.nonzero()[0])] += float(counts[centers < low].sum())
        p[int(inside.nonzero()[-1])] += float(counts[centers > high].sum())
        p, q = p / p.sum(), q / q.sum().clamp_min(_TINY)
        divergence = float((p * ((p + _TINY) / (q + _TINY)).log()).sum())
        if divergence < least:
            best, least = (low, high), divergence
    return best


_METHODS: dict[str, Callable[[Histogram, Grid], tuple[float, float]]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
METHODS: tuple[Method, ...] = ("mse", "minmax", "average", "percentile", "entropy")
