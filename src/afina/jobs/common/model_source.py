"""What a user may name as a model: a string from the command line, a module or a network from Python."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.options.shared import InputSize, ModelOptions
from afina.models import Loaded, Preprocessing, check_model, load_model, parse_preprocessing
from afina.progress import Progress
from afina.tasks import named_task
from afina.types import InputSpec, TaskSpec

ModelSource = str | Path | nn.Module | Network


def name_of(model: ModelSource, full: bool = False) -> str:
    """A short name for folders and titles; with `full`, one that also tells two models of the same class apart."""
    if isinstance(model, (str, Path)):
        text = str(model)
        return (
            text if full else re.sub(r"\W+", "-", Path(text).name.replace(".py:", "-").removesuffix(".pt2")).strip("-")
        )
    module = model.module if isinstance(model, Network) else model
    short = type(model).__name__.lower()
    if not full:
        return short
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"{short}:{digest.hexdigest()[:16]}"


def parse_input_size(text: str | int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels, from `224`, `224x320` or a pair.

    Raises:
        InputError: it is no size, or not within 1 to 8192 pixels.

    Example:
        >>> parse_input_size("224x320"), parse_input_size(96)
        ((224, 320), (96, 96))
    """
    if isinstance(text, tuple):
        height, width = text
    else:
        match = re.fullmatch(r"\s*(\d+)\s*(?:[xX,]\s*(\d+)\s*)?", str(text))
        if not match:
            raise InputError(f"--input-size {text!r} is not a size.", fix="Write it as in --input-size 224 or 224x320.")
        height = int(match.group(1))
        width = int(match.group(2) or height)
    if not (0 < height <= 8192 and 0 < width <= 8192):
        raise InputError(f"--input-size {text!r} is out of range.", fix="Give 1 to 8192 pixels.")
    return height, width


def preprocessing_of(options: ModelOptions, *, known: bool = False) -> Preprocessing:
    """How images are made ready, as far as the options say. Raises `InputError`.

    Args:
        options: Mean, std, resize, interpolation and example.
        known: Whether images come as tensors that are ready for the network.
    """
    texts = {name: getattr(options, name) for name in ("mean", "std", "scale", "order", "resize", "interpolation")}
    return replace(parse_preprocessing(texts), known=known or isinstance(options.example, InputSpec))


def input_of(example: Any) -> InputSpec | None:
    """The input specification that an `example` stands for: itself, or one of a tensor's size; None for None.

    Raises:
        InputError: `example` is neither, or has not 1 or 3 channels.
    """
    if example is None or isinstance(example, InputSpec):
        return example
    shape = tuple(getattr(example, "shape", ()))
    if len(shape) not in (3, 4) or shape[-3] not in (1, 3):
        raise InputError(
            f"example= has shape {shape}.",
            fix="Give a tensor [N, C, H, W] or [C, H, W] with 1 or 3 channels, or an InputSpec.",
        )
    channels, height, width = shape[-3:]
    if channels == 1:
        return InputSpec(height, width, mean=(0.5,), std=(0.5,), order="L")
    return InputSpec(height, width)


def known_task_of(options: ModelOptions) -> TaskSpec | None:
    """The task that the user says the model is for, without labels; None where none is said. Raises `InputError`."""
    return None if options.task is None else named_task(options.task)


def check_source(model: ModelSource, weights: str | None = None, input_size: InputSize = None) -> None:
    """Raise `InputError` for a wrong model, weights or size before images are read, which may take minutes."""
    check_model(model, weights)
    if input_size is not None:
        parse_input_size(input_size)


def load_plain(model: ModelSource, options: ModelOptions, progress: Progress) -> Loaded:
    """The model for jobs without data: with its own head, and its own input size where no option names one."""
    loaded = load_model(
        model,
        weights=options.weights,
        task=None,
        input=input_of(options.example),
        input_size=parse_input_size(options.input_size) if options.input_size is not None else None,
        targets=None,
        progress=progress,
        trains=False,
        preprocessing=preprocessing_of(options),
        known_task=known_task_of(options),
        trust=options.trust,
    )
    for note in loaded.notes:
        progress.say(note)
    return loaded
