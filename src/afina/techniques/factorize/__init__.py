"""Decomposition: convolutions and linear layers written as chains of smaller ones.

`forms` says which chains there are, `fitting` finds the nearest one in the metric of what a layer reads, `options` and
`study` say what each would cost and do to the outputs, `apply` does it.
"""

from afina.techniques.factorize.config import METHODS, Chosen, FactorizeConfig
from afina.techniques.factorize.options import Chain, Layer, frontier
from afina.techniques.factorize.study import MEASURED, chains_with_losses, layers_of
from afina.techniques.factorize.technique import TECHNIQUE, apply, shaped

__all__ = [
    "MEASURED",
    "METHODS",
    "TECHNIQUE",
    "Chain",
    "Chosen",
    "FactorizeConfig",
    "Layer",
    "apply",
    "chains_with_losses",
    "frontier",
    "layers_of",
    "shaped",
]
