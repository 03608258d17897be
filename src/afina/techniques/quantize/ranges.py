"""Ranges of activations from a stream, in bounded memory: one histogram for each tensor, never the tensor itself.

A range that reaches to the extremes (`minmax`) clips nothing and has the largest steps; a narrower one has smaller
steps, and clips. Behind a ReLU most values are small and few are large: of a hundred thousand values between 0 and 1
and ten of 8, in 8 bits, the range 0 to 8 has steps of 0.031, the range 0 to 1, steps of 0.0039. The other methods are
answers to how much may be clipped for that.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from afina.techniques.quantize.grids import Grid

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]
_BINS = 8192
# Shares of a range that are tried by `mse` (half as many by `entropy`), from the smallest up to 1; and how often `mse`
# starts again from the smallest.
_SHRINK_STEPS, _SMALLEST_SHRINK, _SHRINKS = 64, 0.4, 5
# Values of one batch that are counted: counting all takes a quarter of the time of a ResNet-50 and changes no range.
_COUNTED = 2**15
# The share of the values that `percentile` does not clip.
_SHARE_INSIDE = 0.9999
# The share that a moving average keeps of its value over so many images (`_EMA_IMAGES`).
_EMA_KEPT, _EMA_IMAGES = 0.9, 64
# Grids of more codes than this are finer than what a histogram can tell apart.
_MOST_CODES = 256
_TINY = 1e-12
# Sums in float32 overflow beyond this: a network that gives such values is as broken as one that gives infinity.
_LARGEST = 1e36


class Histogram:
    """The values that a tensor had, over a stream of batches: extremes, their moving average, counts in 8192 bins.

    Values are counted over `[-reach, reach]`. When one falls outside, the reach doubles and each pair of bins becomes
    one, so nothing already counted is approximated a second time. With 8 bins over `[-1, 1]`, a value of 1.5 makes of
    `[a b c d e f g h]` the counts `[0 0 a+b c+d e+f g+h 0 0]` over `[-2, 2]`. Memory: 64 KiB, whatever the number of
    images.

    Attributes:
        reach: The end of the range that is counted; 0 until a value other than 0 is counted.
        low: The smallest value so far; 0 where all are positive.
        high: The largest value so far; 0 where all are negative.
        average: The moving average of the batches' smallest and largest values; None before the first batch.
        counts: How many values fell into each bin, `[8192]` (float64).

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(torch.tensor([-1.0, 0.5]))
        >>> histogram.add(torch.tensor([1.5]))
        >>> histogram.low, histogram.high, histogram.reach, float(histogram.counts.sum())
        (-1.0, 1.5, 2.0, 3.0)
    """

    def __init__(self) -> None:
        self.reach = 0.0
        self.low, self.high = 0.0, 0.0
        self.average: tuple[float, float] | None = None
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, x: Tensor, images: int = _EMA_IMAGES) -> None:
        """Count the values of one batch.

        Args:
            x: The tensor, of any shape.
            images: How many images it is of: the more, the more it weighs in the moving average.

        Raises:
            FloatingPointError: a value is not a finite number, or too large to be summed in float32.
        """
        values = _as_stored(x.detach().float())
        low, high = (float(v) for v in values.aminmax())
        if not (abs(low) < _LARGEST and abs(high) < _LARGEST):
            raise FloatingPointError("calibration met a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        average, share = self.average or (low, high), _EMA_KEPT ** (images / _EMA_IMAGES)
        self.average = share * average[0] + (1 - share) * low, share * average[1] + (1 - share) * high
        self._reach_for(max(-low, high))
        if self.reach:
            # Of large activations only a part is counted: their histograms do not change with more.
            part = values.flatten()[:: _step(values.numel() // _COUNTED, values.shape[-1])]
            self.counts += torch.histc(part, _BINS, -self.reach, self.reach).double().cpu()
        else:
            self.counts[_BINS // 2] += values.numel()

    @property
    def constant(self) -> bool:
        """Whether all values that were counted are one and the same."""
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
    """A batch with its dimensions in the order of memory, so that to flatten it is no copy."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1) if last else x


def _step(least: int, row: int) -> int:
    """The distance from one value that is counted to the next, at least `least`.

    It has no divisor in common with the length of a row, so that values of all columns are counted.

    Example:
        >>> _step(least=4, row=6)
        5
    """
    step = max(1, least)
    while math.gcd(step, row) > 1:
        step += 1
    return step


def range_of(histogram: Histogram, grid: Grid, method: Method) -> tuple[float, float]:
    """The range that a grid should cover, by one method; it holds 0, and is `(0, 0)` where nothing but 0 was counted.

    Args:
        histogram: The values that the activation had.
        grid: The codes that there are: the fewer, the more a method clips.
        method: `minmax`, the extremes; `average`, a moving average of the batches' extremes; `percentile`, what holds
            99.99% of the values; `entropy`, least relative entropy; `mse`, least squared error.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(torch.cat([torch.linspace(0, 1, 1000), torch.tensor([4.0])]))
        >>> range_of(histogram, Grid(4, signed=False, scheme="affine"), "minmax")
        (0.0, 4.0)
    """
    if not histogram.reach:
        return 0.0, 0.0
    low, high = _METHODS[method](histogram, grid)
    return min(low, 0.0), max(high, 0.0)


def _minmax(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    return histogram.low, histogram.high


def _average(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """The moving average of the batches' extremes (Jacob et al. 2018, section 3.1)."""
    assert histogram.average is not None
    return histogram.average


def _percentile(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """The range that holds 99.99% of the values, the same share left out at both ends."""
    centers, counts = histogram.values()
    share = counts.cumsum(0) / counts.sum()
    outside = (1 - _SHARE_INSIDE) / 2
    last = len(centers) - 1
    first = min(int(torch.searchsorted(share, outside)), last)
    end = min(int(torch.searchsorted(share, 1 - outside)), last)
    return float(centers[first]), float(centers[end])


def _mse(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """The range of least mean squared error: both ends shrunk together, as far as that helps, then each alone.

    64 shares of the range are tried, from 0.4 to 1, all at once: scales `[64, 1]` against the bins `[bins]` give codes
    `[64, bins]`, whose squared errors are summed with the counts of the bins. Where 0.4 is best, the search starts
    again from there, up to five times.
    """
    centers, counts = histogram.values()
    shrink = torch.linspace(_SMALLEST_SHRINK, 1.0, _SHRINK_STEPS, dtype=torch.float64)

    def best(lows: Tensor, highs: Tensor) -> tuple[float, float, int]:
        scale, zero = (t.double()[:, None] for t in grid.scales(lows, highs))
        codes = (torch.round(centers / scale) + zero).clamp(grid.low, grid.high)
        index = int((((codes - zero) * scale - centers).square() @ counts).argmin())
        return float(lows[index]), float(highs[index]), index

    first, last = histogram.low, histogram.high
    for _ in range(_SHRINKS):
        low, high, index = best(first * shrink, last * shrink)
        if index:
            break
        first, last = low, high  # few bits and far outliers: the smallest that was tried may not be small enough
    if grid.scheme == "affine" and histogram.low < 0 < histogram.high:
        low, high, _ = best(first * shrink, torch.full_like(shrink, high))
        low, high, _ = best(torch.full_like(shrink, low), last * shrink)
    return low, high


def _entropy(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """The range of least relative entropy KL(p, q) (Migacz 2017): p clipped to it, q what its codes can tell apart.

    `p` is the histogram with what lies outside the range added to its outermost bins inside; in `q` the counts of all
    bins that share a code are spread evenly over these. For bins `[6 2 1 3 | 4]` with a range that ends at the bar and
    two codes: `p = [6 2 1 7]`, `q = [4 4 2 2]` (both divided by their sums). Zeros are left out: every grid holds them
    exactly, and behind a ReLU they would outweigh all else.
    """
    centers, counts = histogram.values()
    varied = centers.abs() > 2 * histogram.reach / _BINS
    centers, counts = centers[varied], counts[varied]
    codes = min(2**grid.bits, _MOST_CODES)
    best, least = (histogram.low, histogram.high), float("inf")
    for shrink in torch.linspace(_SMALLEST_SHRINK, 1.0, _SHRINK_STEPS // 2).tolist():
        low, high = histogram.low * shrink, histogram.high * shrink
        clipped = centers.clamp(low, high)
        bins = ((clipped - low) / max(high - low, _TINY) * codes).long().clamp(0, codes - 1)
        inside = (centers >= low) & (centers <= high)
        if not bool(inside.any()):
            continue  # all values are far from zero
        # q is made of what lies inside alone, so that what is clipped costs.
        per_code = torch.zeros(codes, dtype=torch.float64).index_add_(0, bins[inside], counts[inside])
        bins_of = torch.zeros(codes, dtype=torch.float64).index_add_(0, bins[inside], torch.ones_like(counts[inside]))
        q = (per_code / bins_of.clamp_min(1))[bins] * inside
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
