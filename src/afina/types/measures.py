"""Numbers that say where they come from, the metrics they are in, the limits on them, and how sure a drop is."""

from dataclasses import dataclass, field
from typing import Literal

How = Literal["measured", "computed", "estimated"]


@dataclass(frozen=True)
class MetricInfo:
    """A metric: its name, its direction, and how it is written.

    Attributes:
        name: Short, as records have it: `accuracy`, `mae`.
        higher_is_better: Whether more is better.
        share: Whether it lies in 0..1 (or below) and is written in percent; else it is in the unit of the targets.
        mean_of_images: Whether it is the mean of one number for each image, which makes its error exact.
        words: The name in words, as `mean absolute error`; empty where `name` reads well.
        of_original: Whether it compares with the original model instead of with labels.
    """

    name: str
    higher_is_better: bool
    share: bool = False
    mean_of_images: bool = False
    words: str = ""
    of_original: bool = False

    @property
    def is_share_of_images(self) -> bool:
        """Whether it is a share of the images, which moves in steps of one image."""
        return self.share and self.mean_of_images

    def lost(self, before: float, after: float) -> float:
        """Quality lost from `before` to `after`, in the metric's points; negative is a gain.

        Example:
            >>> MetricInfo("mae", higher_is_better=False).lost(before=1.5, after=2.0)
            0.5
        """
        return before - after if self.higher_is_better else after - before


@dataclass(frozen=True)
class LabelTable:
    """Quality label by label: one row for each class, say.

    Attributes:
        columns: What is measured; the first is what labels are compared by.
        rows: The figures of each label, one for each column; None where a figure has no meaning (no image has it).
    """

    columns: tuple[MetricInfo, ...]
    rows: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Measurement:
    """A number that says where it comes from.

    Attributes:
        value: The number itself, in `unit`.
        unit: `B`, `s`, `accuracy`, `mae`, `1` (a count).
        how: `measured` (by running it), `computed` (exact, from the graph or the file) or `estimated`.
        spread: One standard error, or half the interquartile range for times; None where it does not apply.
        n: How many images or runs it rests on.
        where: Conditions, in words: runtime, threads, batch.
        details: Further figures of the same evidence, by name: signal-to-noise and cosine of each output, F1, ...
        share: Whether it lies in 0..1 and is written in percent, as `MetricInfo.share` says.
        by_label: The same label by label, where the task can say.
    """

    value: float
    unit: str
    how: How
    spread: float | None = None
    n: int | None = None
    where: str = ""
    details: dict[str, float] = field(default_factory=dict)
    share: bool = False
    by_label: LabelTable | None = None


@dataclass(frozen=True)
class Budget:
    """Limits on the artifact; None means no limit.

    Attributes:
        size: Bytes of the file (or files) that is deployed.
        latency: Seconds for one batch on the target runtime.
        memory: Bytes of peak resident memory that loading and running the file adds to its process.
        max_drop: How much of the task's metric may be lost, in the metric's own points (0.01 = 1% of accuracy).
    """

    size: int | None = None
    latency: float | None = None
    memory: int | None = None
    max_drop: float | None = None


# Whether the limits are kept, with this confidence; `within the error` where the images are too few to be so sure.
CONFIDENCE = 0.95
Verdict = Literal["fits", "fits, within the error", "misses, within the error", "misses"]


@dataclass(frozen=True)
class JudgedDrop:
    """What is known of a drop between two files, from the images that both answered.

    Attributes:
        split: The split of these images: `test`, or `validation` where there is no other.
        images: Their number.
        value: The drop, in the metric's points; negative is a gain.
        error: Its paired standard error; None where it is not known.
        low: The drop is above this with 95% confidence.
        high: The drop is below this with 95% confidence.
        needed: Images that would settle whether the limit is kept, if the drop stays what it is; None where there is no
            limit, or no number of images would.
    """

    split: str
    images: int
    value: float
    error: float | None
    low: float
    high: float
    needed: int | None = None
