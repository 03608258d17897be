"""Hyperparameter search: spaces, samplers and studies. Nothing here needs torch."""

from afina.search.tensor_train import TensorTrainSampler

__all__ = ["TensorTrainSampler"]
