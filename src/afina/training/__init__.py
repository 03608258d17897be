"""Training and judging of networks.

`fit` trains a copy of a network by a `FitConfig` (optimizer, schedule, precision, moving average, distillation from a
teacher, resumable checkpoint) and gives the best one; `evaluate` measures quality, `predict` gives raw outputs;
`layer_dtypes` shows in what type each layer runs under a precision policy.
"""

from afina.training.config import FitConfig
from afina.training.evaluation import evaluate, predict
from afina.training.fit import fit
from afina.training.policy import LayerDtype, layer_dtypes

__all__ = ["FitConfig", "LayerDtype", "evaluate", "fit", "layer_dtypes", "predict"]
