"""`Listing`: the common form of all kinds of data, keys of images with their targets, and a way to read one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from afina.errors import InputError
from afina.types import InputSpec, TaskSpec

# What each is for: to train, to choose (epochs, trials, plans, candidates), to judge; not all data has the last one.
SPLITS = ("train", "validation", "test")
_LEAST = 2  # images in a split
_VALIDATION_PART = 0.2


class ImageSource(Protocol):
    """Reads images.

    Attributes:
        parallel: Whether `image` may be called from several threads at once; if not, `batches` is.
        prepared: Whether images come as arrays that are ready for the network.
        identified: Whether the fingerprint of a listing changes when any of these images does.
    """

    parallel: bool
    prepared: bool
    identified: bool

    def image(self, key: str) -> Image.Image | np.ndarray:
        """An image to be preprocessed; or, where `prepared`, float32 `[C, H, W]`.

        Raises anything where the image cannot be read.
        """

    def batches(self, batches: Sequence[Sequence[str]], seed: int) -> Iterator[Sequence[Any]]:
        """The images of each batch of keys; an exception in the place of one that cannot be read.

        Called where `parallel` is not.
        """
        return ([self.image(key) for key in keys] for keys in batches)


@dataclass(frozen=True)
class Part:
    """One split: keys of its images, and their targets.

    Targets are int64 `[N]`, float32 `[N, outputs]`, or objects `[N]` of any kind, such as the boxes in each image.
    """

    keys: tuple[str, ...]
    targets: np.ndarray

    def take(self, which: np.ndarray) -> "Part":
        """The images at these places, or where this mask is true."""
        places = np.flatnonzero(which) if which.dtype == bool else which
        return Part(tuple(self.keys[i] for i in places), self.targets[places])


@dataclass(frozen=True)
class Listing:
    """The data before any image is decoded.

    Attributes:
        name: The name that the user gave.
        native: The input specification that the data itself suggests; None to derive one from the images.
        flips: Whether a mirrored image is as good as the original.
        varies: Whether the source varies its images itself, so that they are not augmented.
        unreadable: Images that could not even be found, with the reason.
        notes: Notes for the user on what is left out, one sentence each.
    """

    name: str
    task: TaskSpec
    source: ImageSource
    parts: dict[str, Part]
    fingerprint: str
    labelled: bool = True
    native: InputSpec | None = None
    flips: bool = True
    varies: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Images in all splits."""
        return sum(len(part.keys) for part in self.parts.values())

    def without(self, unreadable: dict[str, str]) -> "Listing":
        """The same with those images left out of the splits and added to `unreadable`."""
        parts = {
            name: part.take(np.array([key not in unreadable for key in part.keys], dtype=bool))
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts, unreadable={**self.unreadable, **unreadable})

    def check(self) -> None:
        """Raises `InputError` where the splits cannot be trained on and judged by."""
        for name, part in self.parts.items():
            if len(part.keys) < _LEAST:
                raise InputError(
                    f"{self.name}: the {name} split has {len(part.keys)} of the {_LEAST} or more images it needs.",
                    fix="Add images. Of data that has no splits, Afina takes 20% for validation.",
                )
        if self.parts["train"].targets.dtype.kind == "i" and self.labelled:
            self._check_classes()

    def _check_classes(self) -> None:
        classes = {split: set(np.unique(part.targets).tolist()) for split, part in self.parts.items()}
        everywhere, seen = set[int]().union(*classes.values()), classes["train"]
        if len(everywhere) < 2:
            raise InputError(
                f"{self.name} has one class only ({', '.join(self._labels(everywhere))}).",
                why="A classifier needs at least two classes to tell apart.",
                fix="Give data with two or more classes.",
            )
        for split, judged in classes.items():
            if judged - seen:
                names = ", ".join(self._labels(judged - seen))
                raise InputError(
                    f"{self.name}: only in the {split} split, not in train: {names}.",
                    why="The network could never learn such a class.",
                    fix=f"Add training images of it, or take it out of the {split} split.",
                )
        missing = seen - classes.get("test", seen)
        if missing:
            raise InputError(
                f"{self.name}: the test split has no image of: {', '.join(self._labels(missing))}.",
                why="What is judged on it would say nothing of that class.",
                fix="Add test images of it, or take the test split away: then the validation images judge.",
            )

    def _labels(self, classes: set[int]) -> list[str]:
        return [self.task.labels[i] for i in sorted(classes)][:5]


def in_fixed_order(part: Part, seed: int) -> Part:
    """The same images in an order drawn once by `seed`, so that the first few are a fair sample of all."""
    return part.take(np.random.default_rng(seed).permutation(len(part.keys)))


def split_one(part: Part, labels: Sequence[str], seed: int, name: str) -> dict[str, Part]:
    """80% train and 20% validation, drawn by `seed`; by class (stratified) where `labels` names classes.

    Raises:
        InputError: a class has too few images to be in both splits.
    """
    targets = part.targets if labels else np.zeros(len(part.keys), dtype=np.int64)
    random, chosen = np.random.default_rng(seed), np.zeros(len(part.keys), dtype=bool)
    for value in np.unique(targets):
        places = np.flatnonzero(targets == value)
        if labels and len(places) < 2:
            raise InputError(
                f"{name}: class {labels[int(value)]!r} has one image, which is not enough to split.",
                why="There is no validation split, so each class is divided: 80% train, 20% validation.",
                fix="Add images of that class, or leave the class out.",
            )
        chosen[random.permutation(places)[: max(1, round(len(places) * _VALIDATION_PART))]] = True
    return {"train": part.take(~chosen), "validation": part.take(chosen)}
