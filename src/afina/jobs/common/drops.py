"""What a network or a file has lost on the images that judge, and how sure that is, in words."""

from collections.abc import Mapping

import numpy as np

from afina.budget import judged_drop, verdict_on
from afina.data import ImageData
from afina.runtimes import measure_drop
from afina.tasks import Task
from afina.types import CONFIDENCE, InputSpec, JudgedDrop, MetricInfo
from afina.units import format_value

Outputs = Mapping[str, np.ndarray]


def drop_note(
    before: Outputs,
    after: Outputs,
    data: ImageData,
    task: Task,
    input: InputSpec,
    split: str,
    max_drop: float | None = None,
) -> str:
    """A sentence on the drop between two networks or files, which answered the same images of a split.

    Args:
        before: Outputs `[N, ...]` of the original, by name.
        after: Those of the other one.
        data: The images.
        task: What the outputs mean.
        input: What they were given of each image.
        split: The split of the images.
        max_drop: The drop that is allowed; None for no limit.
    """
    metric = task.metric if data.labelled else task.agreement
    drop = measure_drop(before, after, data, task, input, split=split)
    return sentence(judged_drop(drop, metric, max_drop, split), metric, max_drop)


def sentence(judged: JudgedDrop, metric: MetricInfo, max_drop: float | None) -> str:
    """The drop, its error and its bound as a sentence; with a limit, whether it is kept.

    Example:
        >>> accuracy = MetricInfo("accuracy", True, share=True, mean_of_images=True)
        >>> sentence(JudgedDrop("test", 1000, 0.007, 0.0042, -0.001, 0.0149, 5965), accuracy, None)
        'It loses 0.70% +- 0.42% on these images, with 95% confidence at most 1.49%.'
        >>> sentence(JudgedDrop("test", 1000, 0.007, 0.0042, -0.001, 0.0149, 5965), accuracy, 0.01)[-73:]
        'at most 1.00% fits, within the error: about 5,965 images would settle it.'
    """

    def points(number: float) -> str:
        return format_value(abs(number), metric.name, share=metric.share)

    verb = "loses" if judged.value >= 0 else "gains"
    if judged.error is None:
        return f"It {verb} {points(judged.value)} on these images."
    bound = "at most" if judged.high >= 0 else "a gain of at least"
    text = (
        f"It {verb} {points(judged.value)} +- {points(judged.error)} on these images, with {CONFIDENCE:.0%} confidence "
    )
    text += f"{bound} {points(judged.high)}."
    if max_drop is None:
        return text
    verdict = verdict_on(judged, max_drop)
    enough = f": about {judged.needed:,} images would settle it" if judged.needed and verdict.endswith("error") else ""
    return f"{text} A drop of at most {points(max_drop)} {verdict}{enough}."
