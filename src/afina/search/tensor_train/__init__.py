"""A sampler for Optuna: a Gaussian process with tensor-train structure."""

from afina.search.tensor_train.sampler import TensorTrainSampler

__all__ = ["TensorTrainSampler"]
