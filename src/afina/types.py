"""The plain data that every layer shares: no torch, nothing that computes.

Everything here is a frozen dataclass of plain values, so that it can be written as JSON and read back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

How = Literal["measured", "computed", "estimated"]
Resize = Literal["cover", "stretch", "crop", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


# Images and pixels of a batch in inference.
_FEWEST_AT_ONCE, _MOST_AT_ONCE, _PIXELS_AT_ONCE = 2, 64, 4 * 224 * 224


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of an image: the whole preprocessing, in numbers.

    An image is decoded, converted to `order`, resized to `height` x `width` pixels, scaled to 0..1, and then
    `(pixel - mean) / std` for each channel.

    Ways of resizing to 224 x 224, of an image of 640 x 480 (width x height):

    - `cover`: the largest centred part of the network's aspect ratio, 480 x 480, is resized. An image whose aspect
      ratio is within 10% of the network's is resized whole. This is for networks that state nothing.
    - `stretch`: the whole image is resized, whatever its aspect ratio.
    - `crop`: the shorter side is resized to 224 (298 x 224), and the centred 224 x 224 are cut out.
    - `letterbox`: the longer side is resized to 224 (224 x 168), and the rest is filled.

    Attributes:
        height: Pixels.
        width: Pixels.
        mean: One number per channel, of pixels in 0..1.
        std: One number per channel, of pixels in 0..1.
        order: `RGB`, `BGR` or `L` (grey); its length is the number of channels.
        resize: One of the ways above.
        crop_share: Of all ways but `cover`: the network's size as a share of the size that the image is resized to.
            With 0.875, it is resized as for 256 x 256, and the centred 224 x 224 cut out. Above 1, it is filled around.
        interpolation: Pillow's name of the filter.
        antialias: Whether the filter grows with the factor by which an image shrinks, as Pillow's does and OpenCV's
            does not; without, only `nearest`, `bilinear` and `bicubic`.
        fill: What is outside the image: one number of 0..255 for each channel, in their order; empty for black.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Resize = "cover"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    fill: tuple[int, ...] = ()

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The specification that `asdict` made `plain` of, also by way of JSON; what is not in it has its default.

        Raises:
            TypeError: it has other keys, or lacks the size.

        Example:
            >>> InputSpec.from_plain({"height": 8, "width": 8, "mean": [0.5], "std": [0.2], "order": "L"})
            ... # doctest: +ELLIPSIS
            InputSpec(height=8, width=8, mean=(0.5,), std=(0.2,), order='L', resize='cover', ...)
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**values)

    @property
    def channels(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return (self.channels, self.height, self.width)

    @property
    def batch(self) -> int:
        """Images that a processor is given at once in inference: as many as suit its caches.

        At 224 pixels, 4 instead of 64 make a MobileNetV2 2.7 times faster in torch, and a ResNet-50 1.8 times.
        """
        return min(max(_PIXELS_AT_ONCE // (self.height * self.width), _FEWEST_AT_ONCE), _MOST_AT_ONCE)

    @property
    def few(self) -> int:
        """Images at once where the outputs of all layers are kept: a quarter of a batch."""
        return max(1, self.batch // 4)


@dataclass(frozen=True)
class TaskSpec:
    """What a network is for.

    Attributes:
        name: A name in the table of tasks, as `classification`; or that of a class in the user's `file`.
        labels: The classes in the order of the outputs; for regression, the name of each output.
        file: The user's Python file that defines the task; empty for a task of the table.
    """

    name: str
    labels: tuple[str, ...]
    file: str = ""

    @property
    def outputs(self) -> int:
        """Width of the network's last layer."""
        return len(self.labels)


def plain_task(task: TaskSpec) -> dict[str, Any]:
    """A task as files have it: those of a task of the table read as they did before there were any others.

    Example:
        >>> plain_task(TaskSpec("classification", ("cat", "dog")))
        {'name': 'classification', 'labels': ('cat', 'dog')}
    """
    return {"name": task.name, "labels": task.labels, **({"file": task.file} if task.file else {})}


# Of a network whose outputs no task is known for: it is judged by how far they are from the original's.
UNKNOWN_TASK = TaskSpec("outputs", ())


@dataclass(frozen=True)
class OutputGuide:
    """What a network's outputs mean, for reports and for whoever has only the file; the task says it.

    Attributes:
        label_word: What the labels are called, in the plural: `classes`.
        use: What the network is for, which continues "intended for": `classification of images into 10 classes`.
        meaning: What the outputs hold, as a sentence.
        shapes: The shape of each output for one image, by name.
        code: Lines of Python, with `np` (numpy) and `json` imported, that print the prediction for one image. They read
            `outputs`, the arrays `[1, ...]` by name, and `labels`. Empty where there is nothing to decode.
    """

    label_word: str = "outputs"
    use: str = ""
    meaning: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    code: str = ""


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


@dataclass(frozen=True)
class Step:
    """One technique and its configuration, as plain data."""

    technique: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network, as the report and `afina profile` show it.

    Attributes:
        name: Name as in the user's model.
        kind: `conv2d`, `linear`, ...
        macs: Multiply-accumulates for one image.
        parameters: Numbers held by the layer.
        bytes: What those numbers take at the layer's precision.
        output: Shape of the output for one image.
        kept: Output channels kept, of how many; None where it was not pruned.
        precision: `fp32`, `fp16`, `int8`.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    bytes: int
    output: tuple[int, ...]
    kept: tuple[int, int] | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Record:
    """What a technique did to a network.

    Attributes:
        step: The technique and its configuration, enough to replay it.
        touched: Layers that were changed, by name.
        skipped: Layers left alone, with the reason for each.
        before: Cost before: `parameters`, `macs`, `bytes`.
        after: Cost after, same keys.
        seconds: Wall time that it took.
        notes: Anything else worth knowing, one sentence each.
        layers: What is known of single layers, by name; which keys depends on the technique.
    """

    step: Step
    touched: tuple[str, ...]
    skipped: dict[str, str]
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    notes: tuple[str, ...] = ()
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """What a network loses when a part of it becomes smaller.

    Attributes:
        name: The name of the axis, or of the layer.
        kind: Kind of the axis (`channels`, `heads`, ...), or `weights` for a layer that loses single weights.
        size: Number of its units (or weights).
        layers: The layers that produce an axis.
        readers: The layers that read it.
        gone: Numbers of units (or weights) gone at which it was measured.
        measured: The mean squared change of the network's outputs at each of them, as a share of the outputs' variance.
        losses: For an axis, the same for every number of units gone, from 0 to all but one: through what was measured,
            with the shape of the errors of its layers between; empty for a layer.
    """

    name: str
    kind: str
    size: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    gone: tuple[int, ...]
    measured: tuple[float, ...]
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve. `quality` is the task's metric on the validation data.

    Where losses are scaled (`16-mixed`): steps that overflowed and were `skipped`, how often the scale was `grown`, and
    the `loss_scale` at the end.
    """

    epoch: int
    loss: float
    quality: float
    learning_rate: float
    seconds: float
    skipped: int = 0
    grown: int = 0
    loss_scale: float | None = None


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


@dataclass(frozen=True)
class Candidate:
    """One network that was tried, exported and judged.

    Attributes:
        name: Short and unique in the run: `original`, `int8`, `prune-0.50-int8`.
        recipe: The steps that led to it, in order, with options as `afina run` takes them.
        status: `judged`, or `rejected` with a `reason`.
        reason: Why it was rejected; empty where it was not.
        file: The exported file, relative to the run folder; None where there is none.
        measurements: `quality`, `size`, `latency`, `peak_memory`, `parameters`, `macs`; `drop`, what it loses against
            the original with the paired error; `test_quality` of the original and the winner, where a test split
            judges.
        parity: Largest relative difference between the file's outputs and the network's; None if not compared.
        layers: The per-layer table.
        curve: Training curve of the candidate, where it was trained.
        records: What each technique did.
    """

    name: str
    recipe: tuple[Step, ...]
    status: Literal["judged", "rejected"]
    reason: str = ""
    file: str | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    parity: float | None = None
    layers: tuple[LayerRow, ...] = ()
    curve: tuple[Epoch, ...] = ()
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Result:
    """`result.json`: the outcome of `afina optimize`.

    Attributes:
        schema: Version of this structure.
        verdict: `fits`, `misses`, or either `within the error`, where the images are too few to be sure.
        metric: The metric that `quality` and `drop` are in.
        budget: The limits that were asked for.
        drop: Quality of the original less quality of the winner, in the direction that hurts; negative is a gain.
        original: Name of the original among the candidates.
        winner: Name of the best candidate; with `misses`, of the nearest.
        best_achievable: With `misses`, the best value reached for each limit that was set, by candidate name.
        machine: What it was measured on: processor, threads, system, versions.
        runtime: The target runtime.
        model: What was optimized, as the user named it.
        data: What it was optimized on, as the user named it.
        task: Task and labels.
        input: Preprocessing.
        notes: What the user should know (a new head, weights that could not be downloaded, ...).
        candidates: All of them, rejected ones too.
        artifact: The winner's file, relative to the run folder.
        out: The run folder, as the user named it.
        usage: Lines of Python, as the runtime gives them, that load the artifact into `model` and turn a preprocessed
            image `x` into `outputs` by name; empty where the runtime does not say, and in results of 0.1.0.
        judged: How sure the drop is; None where the winner is the original, and in older results.
        guide: What the outputs mean.
    """

    verdict: Verdict
    metric: MetricInfo
    budget: Budget
    drop: float
    original: str
    winner: str
    machine: dict[str, Any]
    runtime: str
    model: str
    data: str
    task: TaskSpec
    input: InputSpec
    candidates: tuple[Candidate, ...]
    best_achievable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    artifact: str = ""
    out: str = ""
    usage: str = ""
    judged: JudgedDrop | None = None
    guide: OutputGuide = OutputGuide()
    schema: str = "afina/result/1"

    @property
    def fits(self) -> bool:
        """Whether the winner keeps every limit, surely or within the error."""
        return self.verdict.startswith("fits")

    @property
    def is_sure(self) -> bool:
        """Whether the verdict holds with `CONFIDENCE`: more images would hardly change it."""
        return not self.verdict.endswith("within the error")

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(c for c in self.candidates if c.name == name)
