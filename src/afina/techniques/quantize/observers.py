"""Ranges of activations from a stream, in bounded memory: one histogram for each tensor, never the tensor itself."""

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

_BINS = 8192
_SHRINK_STEPS = 64
_SMALLEST_SHRINK = 0.4
_SMALLEST_SCALE = 1e-9


class HistogramObserver(ObserverBase):
    """Chooses the affine range that loses least: the minimum mean squared error over what was seen.

    Values are counted in a histogram over `[-reach, reach]`. When a value falls outside, the reach doubles and
    each pair of bins becomes one, so nothing already counted is approximated a second time. Memory: 64 KiB for
    each tensor, whatever the number of images.

    The range always holds zero, so that zero (padding, ReLU) is exact.

    Args:
        quant_min: Smallest code.
        quant_max: Largest code.
    """

    counts: Tensor

    def __init__(self, dtype: torch.dtype, quant_min: int, quant_max: int, **_: Any) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme = torch.per_tensor_affine
        self.reach = 0.0
        self.low, self.high = 0.0, 0.0
        self.register_buffer("counts", torch.zeros(_BINS, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().float()
        low, high = (float(v) for v in values.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise FloatingPointError("calibration met a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach_for(max(-low, high))
        if self.reach:
            self.counts += torch.histc(values, _BINS, -self.reach, self.reach).double()
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each of shape [1]."""
        if not self.reach:
            return torch.tensor([1.0]), torch.tensor([self.quant_min if self.quant_min == 0 else 0])
        shrink = torch.linspace(_SMALLEST_SHRINK, 1.0, _SHRINK_STEPS, dtype=torch.float64)
        low, high = self.low * shrink, self.high * shrink
        scale = ((high - low) / (self.quant_max - self.quant_min)).clamp_min(_SMALLEST_SCALE)
        zero = torch.round(self.quant_min - low / scale).clamp(self.quant_min, self.quant_max)
        used = self.counts.nonzero().squeeze(1)
        width = 2 * self.reach / _BINS
        centers = (used.double() + 0.5) * width - self.reach
        codes = torch.round(centers[None] / scale[:, None] + zero[:, None]).clamp(self.quant_min, self.quant_max)
        error = ((codes - zero[:, None]) * scale[:, None] - centers[None]).square() @ self.counts[used]
        best = int(error.argmin())
        return scale[best].float().reshape(1), zero[best].to(torch.int64).reshape(1)

    def _reach_for(self, largest: float) -> None:
        if not self.reach:
            self.reach = largest
        while self.reach and self.reach < largest:
            self.reach *= 2
            quarter = _BINS // 4
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[quarter : quarter + _BINS // 2] = merged

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"
