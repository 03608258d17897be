"""Training and judging of networks.

`fit` trains a copy of a network by a `FitConfig` (optimizer, schedule, precision, moving average, distillation from a
teacher, resumable checkpoint) and gives the best one; `evaluate` measures quality, `predict` gives raw outputs.
"""

from afina.training.config import FitConfig
from afina.training.fit import fit
from afina.training.judge import evaluate, measurement, predict

__all__ = ["FitConfig", "evaluate", "fit", "measurement", "predict"]
