"""Hyperparameter search: spaces, samplers and studies. Nothing here needs torch."""

from afina.search.spaces import Categorical, Fixed, Float, Int, Space, make_space, read_space, space_schema
from afina.search.tensor_train import TensorTrainSampler

__all__ = [
    "Categorical",
    "Fixed",
    "Float",
    "Int",
    "Space",
    "TensorTrainSampler",
    "make_space",
    "read_space",
    "space_schema",
]
