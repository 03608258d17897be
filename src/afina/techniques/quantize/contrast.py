"""Calibration images of too little contrast, and what is added to them.

Ranges of activations come from the calibration images, and whatever lies outside is cut off. Twelve pictures of a grey
wall give ranges that cut off nearly all of a photograph. How much contrast a network expects stands in its
normalization: the mean and the standard deviation were taken of the images that it was trained on, so that these have a
spread of about 1 once they are normalized.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from afina.techniques.context import Context
from afina.techniques.quantize.config import QuantizeConfig
from afina.types import InputSpec

# Images of less than this share of the contrast that a network expects are stretched to that. Those of a set are rarely
# under half of it (fog, X-rays), and a range that is twice too wide costs one bit.
_LITTLE = 0.4
# Standard deviation of the pixels of photographs, in 0..1, for networks that do not normalize by one.
_PHOTOGRAPHS, _NORMALIZED = 0.25, 0.5
_MARGIN = 1.3  # half of a set's images have more contrast than its average
_BEYOND = 0.02  # by how much rounding may leave 0..1


def with_contrast(context: Context, input: InputSpec, config: QuantizeConfig) -> tuple[Context, tuple[str, ...]]:
    """The context with every second image stretched to the contrast that the network expects, and a note on that.

    Half of those keep their brightness, half are moved to the mean of what the network expects.
    Images that have enough, or that come ready in a scale of their own, are left as they are; so is a single image,
    and all of them where no activation becomes an integer.

    Args:
        context: Calibration images.
        input: How the network's images are normalized.
        config: Says whether ranges are taken.

    Example:
        >>> grey = 0.1 * torch.randn(8, 1, 4, 4).clamp(-3, 3)
        >>> spec = InputSpec(4, 4, (0.5,), (0.3,), "L")
        >>> stretched, notes = with_contrast(Context(lambda: grey.split(4)), spec, QuantizeConfig())
        >>> [bool(batch.std() > 0.5) for batch in stretched.stream()], len(notes)
        ([True, True], 1)
    """
    if context.calibration is None or config.activation_types == {"none"}:
        return context, ()
    images = context.first(macs=1e9)
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (input.mean, input.std))
    pixels = images * std + mean
    centre = images.mean((0, 2, 3), keepdim=True)
    spread = float((images - centre).square().mean().sqrt())
    is_normalized = max(input.std) <= _NORMALIZED
    expected = 1.0 if is_normalized else _PHOTOGRAPHS / max(input.std)
    middle = torch.zeros_like(centre) if is_normalized else centre  # of what the network expects
    is_ready = float(pixels.min()) < -_BEYOND or float(pixels.max()) > 1 + _BEYOND
    if len(images) < 2 or is_ready or not 0 < spread < _LITTLE * expected:
        return context, ()
    factor, plain = _MARGIN * expected / spread, context.calibration

    def stretched() -> Iterable[Tensor]:
        seen = 0
        for batch in plain():
            turn = (torch.arange(seen, seen + len(batch)) % 4).view(-1, 1, 1, 1)
            seen += len(batch)
            wide = (batch - centre) * factor
            yield torch.where(turn == 1, wide + centre, torch.where(turn == 3, wide + middle, batch))

    return replace(context, calibration=stretched), (
        f"Warning: the calibration images have {spread / expected:.0%} of the contrast that the network's "
        f"normalization expects. Every second one was stretched {factor:.1f} times, so that ordinary images are not "
        "cut off in integers: add images of all kinds that will come, or give the mean and deviation of yours.",
    )
