"""Hyperparameter search: spaces, samplers and studies. Nothing here needs torch."""

from afina.search.grid import GridSampler
from afina.search.parameters import Categorical, Fixed, Float, Int
from afina.search.samplers import DEFAULT_SAMPLER, GRID_POINTS, SAMPLERS, check_sampler_name, make_sampler
from afina.search.spaces import Space, make_space, read_space, space_schema
from afina.search.stopping import DEFAULT_STOPPING, FOLD_BY_FOLD, STOPPING, check_stopping, make_stopping
from afina.search.storage import open_storage
from afina.search.studies import Objective, SearchError, StudyRun, open_study, run_study
from afina.search.summary import best_trial, broken, counts, front, importances, page, trials_csv
from afina.search.tensor_train import TensorTrainSampler

__all__ = [
    "DEFAULT_SAMPLER",
    "DEFAULT_STOPPING",
    "FOLD_BY_FOLD",
    "GRID_POINTS",
    "SAMPLERS",
    "STOPPING",
    "Categorical",
    "Fixed",
    "Float",
    "GridSampler",
    "Int",
    "Objective",
    "SearchError",
    "Space",
    "StudyRun",
    "TensorTrainSampler",
    "best_trial",
    "broken",
    "check_sampler_name",
    "check_stopping",
    "counts",
    "front",
    "importances",
    "make_sampler",
    "make_space",
    "make_stopping",
    "open_storage",
    "open_study",
    "page",
    "read_space",
    "run_study",
    "space_schema",
    "trials_csv",
]
