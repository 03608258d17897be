"""The row of quantization in the table of techniques."""

from afina.techniques.base import FLOAT_WEIGHTS, Technique
from afina.techniques.quantize.apply import apply
from afina.techniques.quantize.config import QuantizeConfig

TECHNIQUE = Technique(
    "quantize",
    QuantizeConfig,
    apply,
    "Weights and activations become integers, or weights 16-bit floats.",
    requires=(FLOAT_WEIGHTS,),
    removes=(FLOAT_WEIGHTS,),
)
