"""Quantization of a captured network to 16 bits and down to 2: grids, calibration, rounding (on PT2E's graphs)."""

import logging

# At import, torchao registers an enum in a way that torch calls deprecated: no user can act on that warning.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from afina.techniques.quantize.apply import apply, draft  # noqa: E402
from afina.techniques.quantize.config import FLOAT, Precision, QuantizeConfig  # noqa: E402
from afina.techniques.quantize.grids import Granularity, Grid, dequantize, fake_quantize, quantize  # noqa: E402
from afina.techniques.quantize.prepared import Source  # noqa: E402

__all__ = [
    "FLOAT",
    "Granularity",
    "Grid",
    "Precision",
    "QuantizeConfig",
    "Source",
    "apply",
    "dequantize",
    "draft",
    "fake_quantize",
    "quantize",
]
