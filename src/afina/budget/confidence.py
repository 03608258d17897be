"""How sure it is that a drop keeps its limit: bounds with `CONFIDENCE`, and how many images would settle it.

On 1,000 images a file loses 12 answers of the original and gains 5: a drop of 0.7 points. Were it judged on 1,000 other
images, 0.7 would not come again: the paired error says by how much it moves, here 0.42 points. So the drop is below

    0.7 + 0.1 + 1.65 * 0.42 = 1.49 points with 95% confidence

and a limit of 1 point is kept, within the error: that it is kept cannot be told from so few images. The 0.1 in the
middle is one image: a share of images moves in steps of one, and few images on which nothing changed are no proof that
nothing ever does (of 100 images, a file that really loses one answer in 100 shows no loss on every third hundred).

Simulated with 50 to 5,000 images and changes of 0.4% to 10% of the answers, a file at its limit is called sure to keep
it in 0% to 6% of the draws; without the step, and the one more lost image in the error (`tasks.standard_error`), in up
to 81%.
"""

import math

from scipy.special import stdtrit

from afina.errors import InputError
from afina.types import CONFIDENCE, Budget, JudgedDrop, Measurement, MetricInfo, Verdict

# Of two files that differ by a limit, about three times the limit of the answers differ, as int8 files do.
_CHANGED = 3.0
_TOO_MANY = 10**8  # images that nobody has


def judged_drop(drop: Measurement, metric: MetricInfo, limit: float | None, split: str = "validation") -> JudgedDrop:
    """The drop with what can be said of it with 95% confidence.

    Args:
        drop: The drop, its paired error as the spread, and the number of images.
        metric: What it is a drop of.
        limit: The drop that is allowed, in the metric's points; None for no limit.
        split: The split that it was judged on.

    Example:
        >>> drop = Measurement(0.007, "accuracy", "measured", spread=0.0042, n=1000, share=True)
        >>> accuracy = MetricInfo("accuracy", True, share=True, mean_of_images=True)
        >>> judged = judged_drop(drop, accuracy, limit=0.01)
        >>> round(judged.low, 4), round(judged.high, 4), judged.needed
        (-0.0009, 0.0149, 5951)
    """
    count, error = drop.n or 0, drop.spread
    if error is None or count < 2:
        return JudgedDrop(split, count, drop.value, None, -math.inf, math.inf, None)
    step = 1 / count if metric.is_share_of_images else 0.0
    margin = step + float(stdtrit(count - 1, CONFIDENCE)) * error
    needed = (
        None if limit is None else _needed(abs(drop.value - limit), error * math.sqrt(count), metric.is_share_of_images)
    )
    return JudgedDrop(split, count, drop.value, error, drop.value - margin, drop.value + margin, needed)


def verdict_on(judged: JudgedDrop, limit: float) -> Verdict:
    """The verdict on a limit of the drop.

    Example:
        >>> verdict_on(JudgedDrop("test", 1000, 0.007, 0.0042, -0.0009, 0.0149, 5965), limit=0.01)
        'fits, within the error'
    """
    # Quality is a mean of floats: a drop that equals the limit but for rounding keeps it.
    if judged.value <= limit + 1e-9:
        return "fits" if judged.high <= limit + 1e-9 else "fits, within the error"
    return "misses" if judged.low > limit else "misses, within the error"


def enough_to_judge(max_drop: float | None, metric: MetricInfo) -> int:
    """Images on which a file that loses half of what is allowed is sure to keep the limit.

    For a metric that counts images: if three times the limit of the answers change, the error of `n` images is
    `sqrt(3 d / n)`, and `1.65 sqrt(3 d / n) = d / 2` at `n = 32 / d`. For a metric that is not a share 1,000,
    since its error depends on the data.

    Example:
        >>> accuracy = MetricInfo("accuracy", True, share=True, mean_of_images=True)
        >>> enough_to_judge(0.01, accuracy), enough_to_judge(0.005, accuracy)
        (3247, 6494)
    """
    if max_drop is None or max_drop <= 0 or not metric.share:
        return 1000
    return math.ceil(_CHANGED * (2 * float(stdtrit(math.inf, CONFIDENCE))) ** 2 / max_drop)


def check_images(count: int, budget: Budget, metric: MetricInfo) -> None:
    """Raise `InputError` where one image weighs more than the drop that is allowed: nothing could be said of it.

    Example:
        >>> accuracy = MetricInfo("accuracy", True, share=True, mean_of_images=True)
        >>> check_images(50, Budget(max_drop=0.01), accuracy)
        Traceback (most recent call last):
        ...
        afina.errors.InputError: 50 images cannot tell a drop of 1%.
        One image is 2%: a drop is none at all or more than the limit.
        Give at least 265 images to judge by, or allow a larger drop.
    """
    limit = budget.max_drop
    if limit is None or not metric.is_share_of_images or limit <= 0 or count * limit >= 1:
        return
    # With so many, a file that answers as the original on every image is sure to keep the limit.
    enough = math.ceil((1 + float(stdtrit(math.inf, CONFIDENCE))) / limit)
    raise InputError(
        f"{count} images cannot tell a drop of {limit:.3g} of {metric.name}."
        if not metric.share
        else f"{count} images cannot tell a drop of {limit * 100:g}%.",
        why=f"One image is {100 / count:.2g}%: a drop is none at all or more than the limit.",
        fix=f"Give at least {enough} images to judge by, or allow a larger drop.",
    )


def _needed(gap: float, spread: float, counts: bool) -> int | None:
    """Images at which `step + t * error` is the gap to the limit, for the spread of single images; None for too many.

    With `x = 1 / sqrt(n)`: `x^2 + t * spread * x = gap` where a step counts, else `t * spread * x = gap`.
    """
    if gap <= 0:
        return None
    slope = float(stdtrit(math.inf, CONFIDENCE)) * spread
    if not slope and not counts:
        return 2
    x = (math.sqrt(slope**2 + 4 * gap) - slope) / 2 if counts else gap / slope
    needed = math.ceil(1 / x**2) if x > 0 else _TOO_MANY
    return needed if needed < _TOO_MANY else None
