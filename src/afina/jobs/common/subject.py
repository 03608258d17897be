"""What the jobs of one technique share: model and data opened, fine-tuning, quality before and after."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from afina.data import ImageData, default_memory, open_data
from afina.graph.network import Network
from afina.jobs.common.chance import alarm
from afina.jobs.common.drops import drop_note
from afina.jobs.common.model_source import (
    ModelSource,
    check_source,
    input_of,
    known_task_of,
    load_plain,
    name_of,
    parse_input_size,
    preprocessing_of,
)
from afina.jobs.options.shared import DataOptions, InputSize, ModelOptions, Quantity
from afina.models import Loaded, load_model
from afina.progress import Progress
from afina.runtimes import measure_quality
from afina.store.files import check_target
from afina.tasks import OWN, get_task, named_task, task_class
from afina.tasks.checking import check_answers, is_foreign
from afina.techniques.context import Context
from afina.techniques.kept import KeptStatistics
from afina.training import predict
from afina.types import Record
from afina.units import format_details, format_value, parse_size

# Validation images that the errors of single layers are measured on.
_HELD_OUT = 64
_SHOWN = (
    ("macs", "MACs", "1"),
    ("parameters", "parameters", "1"),
    ("nonzero", "not zero", "1"),
    ("bytes", "bytes", "B"),
)
_MOST_SKIPPED = 8
_TRIED = 4  # images that a task of the user's own is tried on


@dataclass(frozen=True)
class Subject:
    """A model and its images, opened.

    Attributes:
        network: The model, captured.
        data: The images; None where there are none.
        images: The number of training images that statistics rest on.
        seed: Seed of every random choice.
        progress: What the user sees.
        teacher: The network that teaches the fine-tuning; None for the model itself.
        alarms: Warnings on the network, for the record.
    """

    network: Network
    data: ImageData | None
    images: int
    seed: int
    progress: Progress
    teacher: Network | None = None
    alarms: tuple[str, ...] = ()

    def context(self, network: Network) -> Context:
        """The context of a technique that works on `network`: images, seed, progress."""
        return context_of(self.data, network, self.images, self.seed, self.progress)

    @property
    def judged_images(self) -> int:
        """How many images judge the network before and after; 0 without data."""
        return 0 if self.data is None else self.data.count(self.data.judging)

    def judged(self, record: Record, network: Network) -> Record:
        """The record with `quality` before and after by the network itself, on the images that judge."""
        data = self.data
        if data is None:
            return record
        task, split = get_task(network.task), data.judging
        outputs = [predict(n, data, split) for n in (self.network, network)]
        reference = (
            None if data.labelled else outputs[0] if self.teacher is None else predict(self.teacher, data, split)
        )
        before, after = (
            measure_quality(each, data, task, network.input, reference=reference, split=split) for each in outputs
        )
        qualities = " to ".join(format_details(quality) for quality in (before, after))
        notes = [f"{before.unit} on {before.n} {split} images: {qualities}"]
        if data.labelled:
            notes.append(drop_note(outputs[0], outputs[1], data, task, network.input, split))
        return replace(
            record,
            before={**record.before, "quality": before.value},
            after={**record.after, "quality": after.value},
            notes=(*self.alarms, *record.notes, *notes),
        )


@dataclass(frozen=True)
class Saved:
    """A network that was written to a file, and what was done to it."""

    file: str
    record: Record


def target_file(out: Path | None, model: str, what: str) -> Path:
    """The file that a network is saved to: `out`, or `NAME-what.pt2` in the current folder.

    Raises:
        InputError: it does not end in .pt2, or cannot be written.
    """
    path = out if out is not None else Path(f"{name_of(model)}-{what}.pt2")
    check_target(path, "--out", ".pt2")
    return path


def describe(record: Record, path: Path) -> str:
    """What was done, as text: cost and quality before and after, what was left alone, where the network is."""
    lines = [f"{'':12} {'before':>10} {'after':>10}"]
    for key, name, unit in _SHOWN:
        if key in record.before and key in record.after:
            before, after = record.before[key], record.after[key]
            share = f"{after / before:8.1%}" if before else ""
            lines.append(f"{name:12} {format_value(before, unit):>10} {format_value(after, unit):>10} {share}")
    lines += record.notes
    lines += [f"left alone: {name}: {why}" for name, why in list(record.skipped.items())[:_MOST_SKIPPED]]
    more = len(record.skipped) - _MOST_SKIPPED
    lines += [f"left alone: {more} more (--json lists all)"] if more > 0 else []
    return "\n".join([*lines, f"The network is in {path}."])


def open_subject(
    options: DataOptions, model: ModelSource, data: Any, images: int, teacher: Network | None = None
) -> Subject:
    """Open the model, and the data where there is any; the model keeps its weights and its head.

    Args:
        options: Weights, input size, example, seed and progress.
        model: The model, as a user names it.
        data: The images, as a user names them; None for none.
        images: Training images that statistics rest on.
        teacher: The network that teaches the fine-tuning; the model itself where it is None.

    Raises:
        InputError: they cannot be used, or the model's outputs do not fit the data.
    """
    progress = options.progress or Progress()
    if data is None:
        return Subject(load_plain(model, options, progress).network, None, images, options.seed, progress, teacher)
    check_source(model, options.weights, options.input_size)
    opened = open_images(data, options, unlabelled=True)
    loaded = load_for(opened, model, options, progress, trains=False)
    for note in loaded.notes:
        progress.say(note)
    # The steps of a recipe have the original as their teacher, which was looked at before the first of them.
    alarms = alarm(loaded.network, opened, progress) if loaded.pretrained and teacher is None else ()
    return Subject(loaded.network, opened, images, options.seed, progress, teacher, alarms)


class OpenOptions(Protocol):
    """The options of a command that say how its images are opened.

    Attributes:
        task: Name of a task, or `path/file.py:MyTask`; None for what the data says.
        seed: Draws the validation split where there is none, and the order of the images.
        progress: What the user sees.
        cache_memory: As in `DataOptions`.
    """

    @property
    def task(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def progress(self) -> Progress | None: ...
    @property
    def cache_memory(self) -> Quantity: ...


def open_images(source: Any, options: OpenOptions, *, unlabelled: bool = False, shares: int = 1) -> ImageData:
    """The images, labelled for the task that is asked for; they are read once it is known what a network expects.

    Args:
        source: As in `optimize`.
        options: Of the command.
        unlabelled: Whether a folder of images without class folders will do.
        shares: Processes that share the memory which is taken by default.

    Raises:
        InputError: there is no such task, or the data cannot be used, or not for it.
    """
    task, given = options.task, options.cache_memory
    memory = default_memory() // shares if given is None else parse_size(given, "--cache-memory")
    spec = None if task is None else named_task(task)
    form = None if spec is None else task_class(spec).reads
    own = form == OWN
    images = open_data(
        source, seed=options.seed, task=None if own else form or None, unlabelled=unlabelled or form == "",
        memory=memory, progress=options.progress, read=False, own=spec if own else None,
    )  # fmt: skip
    if spec is None:
        return images
    return images if form == OWN else images.for_task(spec) if form else images.without_labels()


def load_for(
    data: ImageData,
    model: ModelSource,
    options: ModelOptions,
    progress: Progress,
    builder_arguments: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
    trains: bool = True,
) -> Loaded:
    """The model with the outputs that the data needs; for images without labels, with the outputs that it has.

    Args:
        data: The images, whose task decides the outputs.
        model: The model, as a user names it.
        options: Weights, input size, example and seed.
        progress: What the user sees.
        builder_arguments: Arguments of the function that builds the model; None for none.
        input_size: An input size that goes before the one in `options`.
        trains: Whether the network is trained for the data afterwards.
    """
    size = input_size or options.input_size
    loaded = load_model(
        model,
        weights=options.weights,
        task=data.task if data.labelled else None,
        input=input_of(options.example) or data.native,
        input_size=parse_input_size(size) if size is not None else None,
        targets=data.listed_targets("train") if data.labelled else None,
        progress=progress,
        seed=options.seed,
        options=builder_arguments,
        trains=trains,
        known_task=known_task_of(options),
        trust=options.trust,
        preprocessing=preprocessing_of(options, known=data.prepared),
    )
    data.read(loaded.network.input)
    _check_task(loaded.network, data)
    return loaded


def _check_task(network: Network, data: ImageData) -> None:
    """Raise `InputError` where a task of the user's own fails on a few of the images, or breaks its contract."""
    task = get_task(network.task)
    if not is_foreign(task):
        return
    images, batch = next(iter(data.batches("validation", network.input, batch_size=network.batch, limit=_TRIED)))
    with network.inference():
        outputs = network(images.to(network.device))
    truth = data.truth("validation", network.input, len(images)) if data.labelled else None
    task.check_outputs({name: tuple(value.shape) for name, value in outputs.items()})
    check_answers(task, outputs, batch if data.labelled else None, truth)


def context_of(data: ImageData | None, network: Network, images: int, seed: int, progress: Progress) -> Context:
    """What a technique may use: streams of training and of held-out images, the seed, the progress."""
    if data is None:
        return Context(seed=seed, progress=progress)
    count = min(images, data.count("train"))

    def calibration() -> Iterable[Tensor]:
        batches = data.batches(
            "train", network.input, batch_size=min(network.input.batch, count), shuffle=True, seed=seed, limit=count
        )
        return (batch for batch, _ in batches)

    def held_out() -> Iterable[Tensor]:
        batches = data.batches("validation", network.input, batch_size=network.batch, limit=_HELD_OUT)
        return (batch for batch, _ in batches)

    kept = None
    if data.identified:
        names = hashlib.sha256("\n".join(data.names("train")).encode()).hexdigest()
        kept = KeptStatistics.of(f"{data.fingerprint} {names} {network.input} {count} {seed}", progress)
    return Context(calibration=calibration, images=count, held_out=held_out, seed=seed, progress=progress, kept=kept)
