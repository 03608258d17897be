"""`afina sparsify`: zeros in the weights of a network, free or in an N:M pattern."""

from typing import Any

import numpy as np

from afina.budget import Option, choose
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.model_source import ModelSource
from afina.jobs.common.subject import check_training, open_subject, tuned
from afina.progress import Progress
from afina.techniques.context import Context
from afina.techniques.sparsify import SparsifyConfig, apply, layer_sensitivities
from afina.training.config import Optimizer
from afina.types import Record, Sensitivity
from afina.units import parse_share

# Where the damage of each layer is measured, and the shares that it may be given.
_MEASURED = (0.5, 0.75, 0.9)
_SHARES = tuple(step / 50 for step in range(50))


def sparsify(
    model: ModelSource,
    data: Any = None,
    *,
    sparsity: str | float | None = None,
    pattern: str | None = None,
    criterion: str = "fit",
    finetune: int = 0,
    images: int = 1024,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    teacher: Network | None = None,
    example: Any = None,
    progress: Progress | None = None,
) -> tuple[Network, Record]:
    """Make weights of `model` zero, with the least change of its outputs; gives an ordinary network and the record.

    Shapes stay as they are: a file becomes smaller and faster only where the format or the runtime knows about zeros.

    Args:
        model: As in `optimize`.
        data: As in `optimize`; None goes by magnitude, the same share everywhere.
        sparsity: Share of all weights of convolutions and linear layers that become zero, as in `80%` or 0.8; shared
            out by what each layer's zeros do to the outputs.
        pattern: `N:M` instead, as in `2:4`: of every M weights along the inputs, at most N stay.
        criterion: `fit` or `magnitude`.
        finetune: Epochs of fine-tuning, taught by the model as it was; zeros stay zero.
        images: Training images that the statistics rest on.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the input, where the model's own is wrong.
        learning_rate: Of fine-tuning.
        optimizer: Of fine-tuning: `sgd` or `adamw`.
        seed: Seed of every random choice.
        teacher: Who teaches the fine-tuning; the model as it was by default.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: neither or both of sparsity and pattern, or one that no layer takes.
    """
    if (sparsity is None) == (pattern is None):
        raise InputError("Give either a sparsity or a pattern.", fix="Write --sparsity 80%, or --pattern 2:4.")
    check_training(finetune, learning_rate, optimizer, data)
    share = 0.5 if sparsity is None else parse_share(sparsity, "--sparsity")
    config = SparsifyConfig(sparsity=share, pattern=pattern or "", criterion=criterion)
    subject = open_subject(model, data, weights, input_size, example, images, seed, progress, teacher)
    context = subject.context(subject.network)
    if not config.pattern and context.calibration is not None:
        config = SparsifyConfig(share, criterion=criterion, layers=_shared_out(subject.network, config, context))
    network, record = apply(subject.network, config, context)
    if finetune:
        network = tuned(network, subject, finetune, learning_rate, optimizer, keep_zeros=True)
    return network, subject.judged(record, network)


def _shared_out(network: Network, config: SparsifyConfig, context: Context) -> dict[str, float]:
    """Share of zeros of each layer, so that all together have the sparsity asked for."""
    found = layer_sensitivities(network, config, context, _MEASURED)
    options = {name: _options(sensitivity) for name, sensitivity in found.items()}
    total = sum(sensitivity.size for sensitivity in found.values())
    taken = choose(options, (1 - config.sparsity) * total)
    return {name: _SHARES[index] for name, index in taken.items()}


def _options(sensitivity: Sensitivity) -> list[Option]:
    """What each share of zeros damages: a power of the share between those that were measured."""
    known = np.log(np.maximum(sensitivity.measured, 1e-9))
    # The damage of a few zeros grows with the square of their share or faster.
    shares = np.array([0.05, *_MEASURED, 0.98])
    first = known[0] - 3.0 * np.log(_MEASURED[0] / shares[0])
    slope = (known[-1] - known[-2]) / (_MEASURED[-1] - _MEASURED[-2])
    last = known[-1] + max(slope, 0.0) * (shares[-1] - _MEASURED[-1])
    losses = np.exp(np.interp(_SHARES, shares, [first, *known, last]))
    losses[0] = 0.0
    return [Option(float(loss), sensitivity.size * (1 - share)) for loss, share in zip(losses, _SHARES, strict=True)]
