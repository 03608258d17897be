"""Alarms: a network that is no better than guessing on the user's images, before any work rests on it."""

from afina.data import ImageData
from afina.graph.network import Network
from afina.progress import Progress
from afina.tasks import get_task
from afina.training import evaluate
from afina.types import InputSpec, Measurement
from afina.units import format_measurement, format_value

_IMAGES = 256  # are enough to tell a network that works from one that does not
_SURE = 1.96  # standard errors, for 95%


def alarm(network: Network, data: ImageData, progress: Progress) -> tuple[str, ...]:
    """A warning, which is also said, where a trained network is no better than guessing on the validation images.

    Images without labels, and tasks that do not know what chance is, give none.
    """
    if not data.labelled or get_task(network.task).chance(data.truth("validation", network.input, _IMAGES)) is None:
        return ()
    text = near_chance(evaluate(network, data, limit=_IMAGES), data, network.input, "The network")
    if text:
        progress.warn(text)
    return (text,) if text else ()


def near_chance(
    quality: Measurement, data: ImageData, input: InputSpec, subject: str, split: str = "validation"
) -> str:
    """What to say where a measured quality is not better than chance within 95%; empty where it is better.

    Args:
        quality: The task's metric on the first `n` images of the split, with its standard error.
        data: The images.
        input: What the network is given of each.
        subject: What was measured, as the beginning of a sentence.
        split: The split of the images.
    """
    task = get_task(data.task)
    chance = task.chance(data.truth(split, input, quality.n))
    if chance is None or -task.metric.lost(chance, quality.value) > _SURE * (quality.spread or 0.0):
        return ""
    guess = format_value(chance, quality.unit, share=quality.share)
    return (
        f"{subject} is no better than guessing: {quality.unit} {format_measurement(quality)} on {quality.n} {split} "
        f"images, where answers that do not look at them get {guess}. Check how pixels are scaled (--mean, --std), the "
        "order of channels (RGB or BGR), the order of the classes, and that these are the right weights."
    )
