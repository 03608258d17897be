"""Optimizers and learning-rate schedules: torch's own, set up as `FitConfig` says."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from afina.errors import InputError
from afina.training.config import FitConfig

# `OneCycleLR` divides by the length of its rise, `pct_start * total_steps - 1`.
_SHORTEST_RISE = 2
_FIRST_SHARE = 0.01


def make_optimizer(parameters: Iterable[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters, with weight decay on weights only.

    Vectors (the scales and shifts of norms, and biases) are not decayed: pulling them to zero changes what a
    layer computes without making it simpler.

    Raises:
        InputError: no parameter can be trained.
    """
    config = config.resolved()
    assert config.learning_rate is not None
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise InputError(
            "The network has no parameter to train.",
            why="All of its weights are frozen (requires_grad is False), or it has none.",
            fix="Set requires_grad_(True) on the weights to train.",
        )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


def make_schedule(optimizer: torch.optim.Optimizer, config: FitConfig, steps: int) -> LRScheduler:
    """The schedule over `steps` steps (not epochs); it may be advanced `steps - 1` times.

    The momentum is left as it is: only the learning rate has a cycle.

    Args:
        optimizer: The optimizer whose learning rate is set.
        config: Schedule, highest learning rate and warm-up.
        steps: Steps of the whole training.
    """
    config = config.resolved()
    assert config.learning_rate is not None
    assert config.warmup is not None
    if config.schedule == "cosine":
        return LambdaLR(optimizer, _Cosine(steps, config.warmup))
    rise = max(config.warmup, _SHORTEST_RISE / steps) if steps > _SHORTEST_RISE else 0.0
    return OneCycleLR(optimizer, config.learning_rate, steps, pct_start=float(rise), cycle_momentum=False)


class _Cosine:
    """Share of the highest learning rate at a step: a linear rise, then half a cosine down to nearly zero.

    The cosine is that of Loshchilov & Hutter 2017, equation 5, without restarts. `LambdaLR.state_dict` stores the
    `__dict__` of a callable object, which is two plain numbers here.

    Example:
        >>> rate = _Cosine(steps=6, warmup=0.5)
        >>> [round(rate(step), 3) for step in range(6)]
        [0.01, 0.34, 0.67, 1.0, 0.75, 0.25]
    """

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps, self.rise = steps, round(steps * warmup)

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return _FIRST_SHARE + (1 - _FIRST_SHARE) * step / self.rise
        done = (step - self.rise) / max(1, self.steps - self.rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
