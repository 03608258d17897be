"""`afina sensitivity`: what a network's outputs lose, axis by axis and layer by layer."""

from collections.abc import Sequence
from typing import Any

from afina.errors import InputError, NothingToDo
from afina.jobs.common.model_source import ModelSource
from afina.jobs.common.subject import open_subject
from afina.jobs.prune import axes_asked
from afina.progress import Progress
from afina.techniques import prune, sparsify
from afina.types import Sensitivity
from afina.units import parse_share


def sensitivity(
    model: ModelSource,
    data: Any,
    *,
    criterion: str = "fit",
    axis: str | tuple[str, ...] | list[str] | None = None,
    levels: Sequence[str | float] = prune.LEVELS,
    images: int = 512,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    seed: int = 0,
    example: Any = None,
    progress: Progress | None = None,
) -> tuple[Sensitivity, ...]:
    """Measure what the outputs of `model` lose when one part of it becomes smaller and all else stays.

    First each free axis without a share of its units (channels, heads, ...), with `fit` what reads it refitted; then
    each layer with a share of its weights zero. The loss is the mean squared change of the outputs, as a share of what
    they vary over the images: 0 is no change, 1 as bad as a constant answer.

    Args:
        model: As in `optimize`.
        data: As in `optimize`; labels are not used.
        criterion: Which units go: `fit`, `magnitude`, `taylor`, `batchnorm` or `random`. Weights go by `fit`, or by
            `magnitude` where that is asked for.
        axis: Kinds or names of axes; all by default.
        levels: Shares that go, between 0 and 1 (`25%` or 0.25).
        images: Training images that the statistics rest on.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the input, where the model's own is wrong.
        seed: Seed of every random choice.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Raises:
        InputError: the model, the data or a level cannot be used.
    """
    shares = tuple(sorted({parse_share(level, "--levels") for level in levels}))
    if data is None or not shares:
        raise InputError("Sensitivities are measured on images, at one level at least.", fix="Give --data.")
    config = prune.PruneConfig(criterion=criterion, axes=axes_asked(axis))
    subject = open_subject(model, data, weights, input_size, example, images, seed, progress)
    context = subject.context(subject.network)
    rows: list[Sensitivity] = []
    try:
        study = prune.Study(subject.network, config, context)
        rows += prune.sensitivities(study, shares).values()
    except NothingToDo as nothing:
        subject.progress.say(f"No axis can lose units. {nothing.why}")
    sparse = sparsify.SparsifyConfig(criterion="magnitude" if criterion == "magnitude" else "fit")
    rows += sparsify.layer_sensitivities(subject.network, sparse, context, shares).values()
    return tuple(rows)
