"""`afina sparsify`: zeros in the weights of a network, free or in an N:M pattern."""

import math
from dataclasses import replace

import numpy as np

from afina.budget import Option, choose
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.finetuning import finetuned
from afina.jobs.common.subject import open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.sparsify import SparsifyOptions
from afina.techniques.context import Context
from afina.techniques.sparsify import SparsifyConfig, apply, layer_sensitivities
from afina.techniques.sparsify.technique import readers_of
from afina.types import Record, Sensitivity

# Where the damage of each layer is measured, and the shares that it may be given.
_MEASURED = (0.5, 0.75, 0.9)
_MISS = 0.02  # of the weights may be left too many
_SHARES = tuple(step / 50 for step in range(50))


def _sparsify(options: SparsifyOptions) -> tuple[Network, Record]:
    """Make weights of `model` zero, with the least change of its outputs; gives an ordinary network and the record.

    Shapes stay as they are: a file becomes smaller and faster only where the format or the runtime knows about zeros.

    Raises:
        InputError: neither or both of sparsity and pattern, one that no layer takes, or a sparsity that is missed.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> network, record = afina.sparsify(model, "digits", sparsity="80%", images=128)
        >>> record.after["nonzero"] <= 0.21 * record.before["nonzero"]
        True
    """
    config = sparsify_config(options)
    subject = open_subject(options, options.model, options.data, options.images, options.teacher)
    context = subject.context(subject.network)
    if not config.pattern and context.calibration is not None:
        config = replace(config, layers=_shared_out(subject.network, config, context))
    network, record = apply(subject.network, config, context)
    _check_reached(record, subject.network, config)
    if options.finetune:
        network = finetuned(network, subject, options, options.finetune, keep_zeros=True)
    return network, subject.judged(record, network)


sparsify = command(SparsifyOptions, _sparsify)


def sparsify_config(options: SparsifyOptions) -> SparsifyConfig:
    """The configuration of the technique. Raises `InputError` where an option is out of range."""
    return SparsifyConfig(sparsity=options.share, pattern=options.pattern or "", criterion=options.criterion)


def _check_reached(record: Record, network: Network, config: SparsifyConfig) -> None:
    """Raise `InputError` where clearly fewer of the weights are zero than were asked for."""
    readers = readers_of(network, config)[0].values()
    total = sum(math.prod(reader.shape) for reader in readers)
    whole_weights = sum(reader.groups for reader in readers) / total  # each group of a layer loses whole ones
    share = 1 - record.after["nonzero"] / total
    if not config.pattern and share < config.sparsity - _MISS - whole_weights:
        raise InputError(
            f"The sparsity of {config.sparsity:.1%} is missed: {share:.1%} of the weights became zero.",
            why="Small layers cannot give such a share of their weights.",
            fix="Give a smaller sparsity.",
        )


def _shared_out(network: Network, config: SparsifyConfig, context: Context) -> dict[str, float]:
    """The share of zeros of each layer, so that all layers together have the sparsity of `config`."""
    sensitivities = layer_sensitivities(network, config, context, _MEASURED)
    options_by_layer = {name: _options(sensitivity) for name, sensitivity in sensitivities.items()}
    total = sum(sensitivity.size for sensitivity in sensitivities.values())
    index_by_layer = choose(options_by_layer, (1 - config.sparsity) * total)
    return {name: _SHARES[index] for name, index in index_by_layer.items()}


def _options(sensitivity: Sensitivity) -> list[Option]:
    """The damage at each share of zeros, from that at the three shares where it was measured.

    The logarithm of the damage lies on lines between the measured points; below 50% on that to a thousandth of the
    damage at 5%, above 90% on the last line:

        measured at 50%, 75%, 90%       0.001, 0.01, 0.1
        then at 5%, 62.5%, 98%          0.000001, 0.0032, 0.34
    """
    measured_logs = np.log(np.maximum(sensitivity.measured, 1e-9))
    # The damage of a few zeros grows with about the third power of their share: a tenth of them does a thousandth.
    shares = np.array([0.05, *_MEASURED, 0.98])
    first = measured_logs[0] - 3.0 * np.log(_MEASURED[0] / shares[0])
    slope = (measured_logs[-1] - measured_logs[-2]) / (_MEASURED[-1] - _MEASURED[-2])
    last = measured_logs[-1] + max(slope, 0.0) * (shares[-1] - _MEASURED[-1])
    losses = np.exp(np.interp(_SHARES, shares, [first, *measured_logs, last]))
    losses[0] = 0.0
    return [Option(float(loss), sensitivity.size * (1 - share)) for loss, share in zip(losses, _SHARES, strict=True)]
