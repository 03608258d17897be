"""`afina sparsify`: zeros in the weights of a network, free or in an N:M pattern."""

from dataclasses import replace

import numpy as np

from afina.budget import Option, choose
from afina.graph.network import Network
from afina.jobs.common.finetuning import finetuned
from afina.jobs.common.subject import open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.sparsify import SparsifyOptions
from afina.techniques.context import Context
from afina.techniques.sparsify import SparsifyConfig, apply, layer_sensitivities
from afina.types import Record, Sensitivity

# Where the damage of each layer is measured, and the shares that it may be given.
_MEASURED = (0.5, 0.75, 0.9)
_SHARES = tuple(step / 50 for step in range(50))


def _sparsify(asked: SparsifyOptions) -> tuple[Network, Record]:
    """Make weights of `model` zero, with the least change of its outputs; gives an ordinary network and the record.

    Shapes stay as they are: a file becomes smaller and faster only where the format or the runtime knows about zeros.

    Raises:
        InputError: neither or both of sparsity and pattern, or one that no layer takes.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> network, record = afina.sparsify(model, "digits", sparsity="80%", images=128)
        >>> record.after["nonzero"] <= 0.21 * record.before["nonzero"]
        True
    """
    config = sparsify_config(asked)
    subject = open_subject(asked, asked.model, asked.data, asked.images, asked.teacher)
    context = subject.context(subject.network)
    if not config.pattern and context.calibration is not None:
        config = replace(config, layers=_shared_out(subject.network, config, context))
    network, record = apply(subject.network, config, context)
    if asked.finetune:
        network = finetuned(network, subject, asked, asked.finetune, keep_zeros=True)
    return network, subject.judged(record, network)


sparsify = command(SparsifyOptions, _sparsify)


def sparsify_config(asked: SparsifyOptions) -> SparsifyConfig:
    """The configuration of the technique. Raises `InputError` where an option is out of range."""
    return SparsifyConfig(sparsity=asked.share, pattern=asked.pattern or "", criterion=asked.criterion)


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
