"""Cheaper forms of a training, on which trials without hope are known early; the others go on from their weights."""

from dataclasses import dataclass

from afina.errors import InputError, did_you_mean

EPOCHS = "epochs"


@dataclass(frozen=True)
class Rung:
    """One part of a training.

    Attributes:
        step: What it costs, in units of the cheapest one; trials are compared at the same step.
        images: Share of the training images.
        size: Share of the input's height and width.
    """

    step: int
    images: float = 1.0
    size: float = 1.0


# The parts of a training, the last one whole. Along epochs a trial is compared after each, so that there is one part.
RUNGS: dict[str, tuple[Rung, ...]] = {
    EPOCHS: (Rung(1),),
    "images": (Rung(1, images=1 / 9), Rung(3, images=1 / 3), Rung(9)),
    "input-size": (Rung(1, size=0.5), Rung(2, size=0.7), Rung(4)),
}
# How much more each rung costs than the one before, for successive halving.
FACTORS = {EPOCHS: 4, "images": 3, "input-size": 2}


def rungs_of(fidelity: str) -> tuple[Rung, ...]:
    """The parts of a training for a fidelity: what is cheaper in the first parts.

    Raises:
        InputError: there is no such fidelity.

    Example:
        >>> [round(rung.images, 2) for rung in rungs_of("images")]
        [0.11, 0.33, 1.0]
    """
    if fidelity not in RUNGS:
        raise InputError(f"There is no fidelity {fidelity!r}.", fix=did_you_mean(fidelity, RUNGS))
    return RUNGS[fidelity]
