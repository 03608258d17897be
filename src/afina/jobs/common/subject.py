"""What the jobs of one technique share: model and data opened, fine-tuning, quality before and after."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.data import ImageData, open_data
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.model_source import ModelSource, check_source, input_of, load_plain, name_of, parse_input_size
from afina.models import Loaded, load_model
from afina.progress import Progress
from afina.store.files import check_target
from afina.techniques.context import Context
from afina.training import FitConfig, evaluate, fit, predict
from afina.training.config import Optimizer
from afina.types import Record
from afina.units import format_value

# Validation images that the errors of single layers are told on.
_HELD_OUT = 64
_SHOWN = (
    ("macs", "MACs", "1"),
    ("parameters", "parameters", "1"),
    ("nonzero", "not zero", "1"),
    ("bytes", "bytes", "B"),
)
_MOST_SKIPPED = 8
# Highest learning rates of fine-tuning, by optimizer.
RATES: dict[Optimizer, float] = {"sgd": 0.05, "adamw": 5e-4}


@dataclass(frozen=True)
class Subject:
    """A model and its images, opened.

    Attributes:
        network: The model, captured.
        data: Its images; None where none were given.
        images: How many training images statistics rest on.
        seed: Seed of every random choice.
        progress: What the user sees.
        teacher: Who teaches the fine-tuning; the model itself where it is None.
    """

    network: Network
    data: ImageData | None
    images: int
    seed: int
    progress: Progress
    teacher: Network | None = None

    def context(self, network: Network) -> Context:
        """What a technique may use on `network`."""
        return context_of(self.data, network, self.images, self.seed, self.progress)

    def judged(self, record: Record, network: Network) -> Record:
        """The record with `quality` before and after, on the validation images, by the network itself."""
        if self.data is None:
            return record
        reference = None if self.data.labelled else predict(self.teacher or self.network, self.data)
        before, after = (evaluate(n, self.data, reference=reference) for n in (self.network, network))
        told = " to ".join(format_value(quality.value, quality.unit) for quality in (before, after))
        return replace(
            record,
            before={**record.before, "quality": before.value},
            after={**record.after, "quality": after.value},
            notes=(*record.notes, f"{before.unit} on {before.n} validation images: {told}"),
        )


class OptionsChecked(Exception):
    """A job has checked all its options, and would open what `UNOPENED` stands for."""


# In place of a model: the job checks its options and goes no further.
UNOPENED: Any = object()


@dataclass(frozen=True)
class Saved:
    """A network that was written to a file, and what was done to it."""

    file: str
    record: Record


def target_file(out: Path | None, model: str, what: str) -> Path:
    """Where the network goes: `out`, or `NAME-what.pt2` in the current folder.

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
    model: ModelSource,
    data: Any,
    weights: str | None,
    input_size: str | tuple[int, int] | None,
    example: Any,
    images: int,
    seed: int,
    progress: Progress | None,
    teacher: Network | None = None,
) -> Subject:
    """Open the model, and the data where there is any; the model keeps its weights and its head.

    Raises:
        InputError: they cannot be used, or the model's outputs do not fit the data.
        OptionsChecked: there is no model but `UNOPENED`.
    """
    progress = progress or Progress()
    if images < 1:
        raise InputError(f"--images is {images}.", fix="Give 1 or more.")
    if model is UNOPENED:
        raise OptionsChecked
    if data is None:
        return Subject(
            load_plain(model, weights, input_size, example, progress).network, None, images, seed, progress, teacher
        )
    check_source(model, weights, input_size)
    opened = open_data(data, seed=seed, unlabelled=True, progress=progress)
    loaded = load_for(opened, model, weights, input_size, example, seed, progress)
    for note in loaded.notes:
        progress.say(note)
    return Subject(loaded.network, opened, images, seed, progress, teacher)


def load_for(
    data: ImageData,
    model: ModelSource,
    weights: str | None,
    input_size: str | tuple[int, int] | None,
    example: Any,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any] | None = None,
) -> Loaded:
    """The model with the outputs that the data needs; images without labels say nothing of them: it keeps its own."""
    return load_model(
        model,
        weights=weights,
        task=data.task if data.labelled else None,
        input=input_of(example) or data.native,
        input_size=parse_input_size(input_size) if input_size is not None else None,
        targets=data.targets("train") if data.labelled else None,
        progress=progress,
        seed=seed,
        options=options,
    )


def context_of(data: ImageData | None, network: Network, images: int, seed: int, progress: Progress) -> Context:
    """What a technique may use: a stream of training images, the seed, the progress."""
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

    return Context(calibration=calibration, images=count, held_out=held_out, seed=seed, progress=progress)


def check_training(
    epochs: int, learning_rate: float | None, optimizer: Optimizer | None, data: Any, option: str = "--finetune"
) -> None:
    """Raise `InputError` for a training that would fail once the work before it is done, or options without one."""
    if epochs < 0:
        raise InputError(f"{option} is {epochs}.", fix="Give a number of epochs, 0 for no training.")
    if epochs and data is None:
        raise InputError("Training needs images.", fix=f"Give --data, or leave {option} out.")
    FitConfig(epochs=epochs or 1, learning_rate=learning_rate, optimizer=optimizer or "sgd")
    if not epochs and (learning_rate is not None or optimizer is not None):
        given = "--optimizer" if learning_rate is None else "--learning-rate"
        raise InputError(
            f"{given} is of a training, and there is none.", fix=f"Give {option} EPOCHS too, or leave {given} out."
        )


def tuned(
    network: Network,
    subject: Subject,
    epochs: int,
    learning_rate: float | None,
    optimizer: Optimizer | None,
    keep_zeros: bool = False,
) -> Network:
    """The network after fine-tuning, taught by the subject's teacher."""
    assert subject.data is not None
    chosen = optimizer or suited_optimizer(network)
    config = FitConfig(
        epochs=epochs,
        optimizer=chosen,
        learning_rate=learning_rate or RATES[chosen],
        batch_size=suited_batch(subject.data),
        seed=subject.seed,
        keep_zeros=keep_zeros,
    )
    subject.progress.say(f"Fine-tuning for {epochs} epochs, taught by the original.")
    return fit(network, subject.data, config, teacher=subject.teacher or subject.network, progress=subject.progress)[0]


def suited_optimizer(network: Network) -> Optimizer:
    """SGD suits networks with batch norm; those without it (transformers, plain VGG) need adaptive steps."""
    normed = any(node.target is torch.ops.aten.batch_norm.default for node in network.graph.nodes)
    return "sgd" if normed else "adamw"


def suited_batch(data: ImageData) -> int:
    """Batch size of training: enough steps in an epoch also where there are few images."""
    return max(8, min(128, data.count("train") // 16))
