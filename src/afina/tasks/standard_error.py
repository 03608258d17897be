"""How exact a metric is, and how exact the difference of two files is, from the images that they were judged on.

The bootstrap (Efron 1979): draw as many images as there are, with replacement, and take the metric again, many times;
the standard deviation of these values is the standard error. For two files the same images are drawn for both, which
takes out what they have in common: where both miss the same 80 images of 1,000, the accuracy of each is uncertain by
0.9 points, and their difference by nothing.

A metric that is the mean of one number for each image needs no draws: its error is the standard deviation over images
divided by the root of their number. The error of a drop in a share of images is computed as if one more image had been
lost: files that answer alike on all of 100 images may differ on the next.
"""

import math

import numpy as np

from afina.tasks.base import Task

_DRAWS = 400
_SEED = 0


def value_with_error(task: Task, evidence: np.ndarray, *, agreement: bool = False) -> tuple[float, float | None]:
    """The metric (or the agreement) over all rows of evidence, and its standard error; None for fewer than two images.

    Example:
        >>> from afina.tasks import get_task
        >>> from afina.types import TaskSpec
        >>> task = get_task(TaskSpec("classification", ("cat", "dog")))
        >>> value_with_error(task, np.array([[1.0], [0.0], [1.0], [0.0]]))
        (0.5, 0.28867513459481287)
    """
    value_of = task.agreement_value if agreement else task.value
    value = value_of(evidence)
    if len(evidence) < 2:
        return value, None
    if (task.agreement if agreement else task.metric).mean_of_images:
        return value, _of_mean(evidence[:, 0])
    drawn = np.array([value_of(evidence[rows]) for rows in _draws(len(evidence))])
    return value, float(drawn.std(ddof=1))


def drop_with_error(
    task: Task, before: np.ndarray, after: np.ndarray, *, agreement: bool = False
) -> tuple[float, float | None]:
    """What is lost from one file to the other on the same images (in the direction that hurts), with its paired error.

    Args:
        task: Gives the metric.
        before: Evidence of the original, a row for each image.
        after: That of the other file, for the same images in the same order.
        agreement: Whether it is evidence of agreements.

    Example:
        >>> from afina.tasks import get_task
        >>> from afina.types import TaskSpec
        >>> task = get_task(TaskSpec("classification", ("cat", "dog")))
        >>> both_wrong_on_the_same = np.array([[1.0], [0.0], [1.0], [0.0]])
        >>> drop_with_error(task, both_wrong_on_the_same, both_wrong_on_the_same)
        (0.0, 0.2)
    """
    value_of, metric = (task.agreement_value, task.agreement) if agreement else (task.value, task.metric)
    drop = metric.lost(value_of(before), value_of(after))
    if len(before) < 2:
        return drop, None
    if metric.mean_of_images:
        lost = before[:, 0] - after[:, 0]
        return drop, _of_mean(np.append(lost, 1.0) if metric.is_share_of_images else lost)
    drawn = [metric.lost(value_of(before[rows]), value_of(after[rows])) for rows in _draws(len(before))]
    return drop, float(np.std(drawn, ddof=1))


def _of_mean(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(_SEED).integers(count, size=(_DRAWS, count))
