"""`afina sensitivity`: what a network's outputs lose, axis by axis and layer by layer."""

from dataclasses import replace

from afina.errors import NothingToDo
from afina.jobs.common.subject import open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.sensitivity import SensitivityOptions
from afina.jobs.options.shared import names
from afina.techniques import prune, sparsify
from afina.types import Sensitivity


def _sensitivity(options: SensitivityOptions) -> tuple[Sensitivity, ...]:
    """Measure what the outputs of `model` lose when one part of it becomes smaller and all else stays.

    First each free axis without a share of its units (channels, heads, ...), with `fit` what reads it refitted; then
    each layer with a share of its weights zero. The loss is the mean squared change of the outputs, as a share of what
    they vary over the images: 0 is no change, 1 as bad as a constant answer.

    Raises:
        InputError: the model, the data or a level cannot be used.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> rows = afina.sensitivity(model, "digits", levels="25%,50%", images=128)
        >>> [(row.name, row.kind, row.size, row.gone) for row in rows]
        [('0', 'channels', 32, (8, 16)), ('0', 'weights', 288, (72, 144)), ('3', 'weights', 11520, (2880, 5760))]
        >>> rows[0].measured[0] < rows[0].measured[1]
        True
    """
    config = prune.PruneConfig(criterion=options.criterion, axes=names(options.axis))
    subject = open_subject(options, options.model, options.data, options.images)
    context = subject.context(subject.network)
    rows: list[Sensitivity] = []
    sparse = sparsify.SparsifyConfig(criterion="magnitude" if options.criterion == "magnitude" else "fit")
    if sparse.criterion == "fit":
        # One pass over the images for the layers that read axes and for those that lose weights, most of them the same.
        readers, _ = sparsify.readers_of(subject.network, sparse)
        context = replace(context, known=context.moments(subject.network, readers))
    try:
        study = prune.Study(subject.network, config, context)
        rows += prune.sensitivities(study, options.shares).values()
    except NothingToDo as nothing:
        subject.progress.say(f"No axis can lose units. {nothing.why}")
    rows += sparsify.layer_sensitivities(subject.network, sparse, context, options.shares).values()
    return tuple(rows)


sensitivity = command(SensitivityOptions, _sensitivity)
