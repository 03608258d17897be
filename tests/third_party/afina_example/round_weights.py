"""A technique: weights rounded to multiples of a power of two, so that the file packs better."""

import time
from dataclasses import asdict, dataclass

import torch

from afina.errors import NothingToDo
from afina.graph.cost import cost_of
from afina.techniques import FLOAT_WEIGHTS, Technique, step_of_config
from afina.types import Record


@dataclass(frozen=True)
class RoundConfig:
    """`digits`: binary digits after the point that stay."""

    digits: int = 6


def apply(network, config, context):
    """Round all weights of layers."""
    start, result, touched = time.monotonic(), network.copy().eval(), []
    with torch.no_grad():
        for name, weight in result.module.named_parameters():
            if weight.ndim > 1:
                weight.copy_((weight * 2**config.digits).round() / 2**config.digits)
                touched.append(name)
    if not touched:
        raise NothingToDo("There are no weights to round.")
    costs = asdict(cost_of(network)), asdict(cost_of(result))
    step, seconds = step_of_config("round-weights", config), time.monotonic() - start
    return result, Record(step, tuple(touched), {}, *costs, seconds)


TECHNIQUE = Technique("round-weights", RoundConfig, apply, "Weights are rounded.", requires=(FLOAT_WEIGHTS,))
