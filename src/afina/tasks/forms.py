"""The forms of targets that every kind of data can give: a class for each image, numbers, or flags.

A table gives them as text, a torch dataset as numbers; a form makes labels and one array of either:

    form               text                 numbers            array
    classification     cat; dog             0; 1               int64 [N]
    regression         12.5; 3              12.5; [1.0, 2.0]   float32 [N, outputs]
    multilabel         cat|dog; (none)      [1, 1]; [0, 0]     float32 [N, labels] of 0 and 1
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from afina.errors import InputError
from afina.types import TaskSpec

# What stands between the labels of an image where Afina writes them, and what users write there.
BETWEEN_LABELS = "|"
_MARKS = (BETWEEN_LABELS, ";", ",")


class Written(NamedTuple):
    """A target as text; `place` is the file and line, for messages."""

    place: str
    text: str


class Form(ABC):
    """How targets of one form are read.

    Attributes:
        task: The task that data of this form is for by default; it is also the form's name.
        by_class: Whether images have one class each, by which splits are drawn.
    """

    task: ClassVar[str]
    by_class: ClassVar[bool] = False

    def spec(self, labels: tuple[str, ...]) -> TaskSpec:
        """The default task, with these labels."""
        return TaskSpec(self.task, labels)

    @abstractmethod
    def labels(self, targets: Sequence[Written]) -> tuple[str, ...]:
        """The labels of targets as text. Raises `InputError` where one cannot be read."""

    @abstractmethod
    def from_text(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Targets as text, as one array."""

    @abstractmethod
    def from_numbers(self, targets: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
        """Targets as numbers or tuples of numbers, as one array."""


class Classes(Form):
    """One class for each image."""

    task = "classification"
    by_class = True

    def labels(self, targets: Sequence[Written]) -> tuple[str, ...]:
        """The names, sorted."""
        empty = next((target for target in targets if not target.text), None)
        if empty:
            raise InputError(f"{empty.place}: the target is empty.", fix="Write the class, or delete the line.")
        return tuple(sorted({target.text for target in targets}))

    def from_text(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Class numbers, int64 `[N]`."""
        number = {label: i for i, label in enumerate(labels)}
        return np.array([number[text] for text in texts], dtype=np.int64)

    def from_numbers(self, targets: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
        """Class numbers, int64 `[N]`."""
        return np.array(targets, dtype=np.int64)


class Numbers(Form):
    """One or more numbers for each image."""

    task = "regression"

    def labels(self, targets: Sequence[Written]) -> tuple[str, ...]:
        """One name, for the column of numbers."""
        for target in targets:
            number = as_number(target.text)
            if number is None or not math.isfinite(number):
                raise InputError(
                    f"{target.place}: the target {target.text!r} is not a {'finite ' * (number is not None)}number.",
                    why="Other targets are numbers, or numbers were asked for.",
                    fix=f"Correct the line or delete it; or give --task {Classes.task}, if targets are names.",
                )
        return ("target",)

    def from_text(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Float32 `[N, 1]`."""
        return np.array([float(text) for text in texts], dtype=np.float32).reshape(-1, 1)

    def from_numbers(self, targets: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
        """Float32 `[N, outputs]`."""
        return np.array(targets, dtype=np.float32).reshape(len(targets), max(len(labels), 1))


class Flags(Form):
    """Any of several labels for each image."""

    task = "multilabel"

    def labels(self, targets: Sequence[Written]) -> tuple[str, ...]:
        """All labels that some image has, sorted."""
        return tuple(sorted({label for target in targets for label in _split(target.text)}))

    def from_text(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Float32 `[N, labels]`, 1 where an image has the label."""
        number = {label: i for i, label in enumerate(labels)}
        flags = np.zeros((len(texts), len(labels)), dtype=np.float32)
        for row, text in zip(flags, texts, strict=True):
            row[[number[label] for label in _split(text)]] = 1
        return flags

    def from_numbers(self, targets: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
        """Float32 `[N, labels]`."""
        return np.array(targets, dtype=np.float32).reshape(len(targets), len(labels))


CLASSES, NUMBERS, FLAGS = Classes(), Numbers(), Flags()
FORMS: dict[str, Form] = {form.task: form for form in (CLASSES, NUMBERS, FLAGS)}


def with_bars(texts: Sequence[str]) -> list[str]:
    """Labels of images as users write them, with `|` between those of each image.

    Lines are labels each; between labels of a line is the first of `|`, `;`, `,` that any of the texts holds, else
    white space. So `big dog` is one label where other images have commas.

    Example:
        >>> with_bars(["cat, big dog", "big dog", ""])
        ['cat|big dog', 'big dog', '']
        >>> with_bars(["cat dog", "dog"]), with_bars(["cat\\nbig dog"])
        (['cat|dog', 'dog'], ['cat|big dog'])
    """
    mark = next((mark for mark in _MARKS if any(mark in text for text in texts)), None)
    lines = any("\n" in text.strip() for text in texts)
    separator = re.escape(mark) if mark else "(?!)" if lines else r"\s"
    return [
        BETWEEN_LABELS.join(part.strip() for part in re.split(rf"{separator}|\n", text) if part.strip())
        for text in texts
    ]


def _split(text: str) -> list[str]:
    return [label.strip() for label in text.split(BETWEEN_LABELS) if label.strip()]


def as_number(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None
