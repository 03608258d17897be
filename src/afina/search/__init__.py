"""Hyperparameter search: spaces, samplers and studies. Nothing here needs torch."""

from afina.search.samplers import DEFAULT_SAMPLER, SAMPLERS, GridSampler, make_sampler
from afina.search.spaces import Categorical, Fixed, Float, Int, Space, make_space, read_space, space_schema
from afina.search.storage import open_storage
from afina.search.studies import Objective, Progress, SearchError, open_study, run_study
from afina.search.tensor_train import TensorTrainSampler

__all__ = [
    "DEFAULT_SAMPLER",
    "SAMPLERS",
    "Categorical",
    "Fixed",
    "Float",
    "GridSampler",
    "Int",
    "Objective",
    "Progress",
    "SearchError",
    "Space",
    "TensorTrainSampler",
    "make_sampler",
    "make_space",
    "open_storage",
    "open_study",
    "read_space",
    "run_study",
    "space_schema",
]
