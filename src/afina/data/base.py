"""`ImageData`: the images of a job, in its splits, as batches that a network takes."""

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afina.capacity import available_memory
from afina.data.augment import AUGMENTATIONS, Augmentation
from afina.data.batches import Batches
from afina.data.decode import upright_size
from afina.data.listing import Listing, Part, in_fixed_order
from afina.data.loading import decode_all
from afina.data.own import Fitter
from afina.data.strong import NOT_STRONG, Strong
from afina.errors import InputError, did_you_mean
from afina.progress import Progress
from afina.types import InputSpec, TaskSpec

_MEMORY_SHARE = 4  # one part in so many of the free memory is for decoded images
_MOST_UNREADABLE = 0.01
_SAMPLE = 256
_LARGEST_NATIVE, _USUAL = 512, 224
_CROP_FROM = 96  # pixels: below, an image is too small to cut parts out of it


def default_memory() -> int:
    """Bytes of decoded images that are kept where nothing is said: a quarter of what is free."""
    return available_memory() // _MEMORY_SHARE


class ImageData:
    """Images and targets in the splits `train`, `validation` and, where there is one, `test`.

    The network is trained on the first. What is chosen (epochs, trials, plans, candidates) is chosen on the second. The
    third judges: no choice is made on it.

    All images are decoded once, which finds the unreadable ones and fills a cache of pixels (uint8, for `input`, or
    `native` where it is not given): when it is made, or with `read=False` by the method `read`, at the latest where it
    matters which images there are. Where the pixels would take more than `memory` bytes, images are checked only, and
    decoded for each batch. Each split has one fixed order, shuffled once by `seed`, that `names`, `targets` and
    unshuffled `batches` share: the first few images are a fair sample.

    Attributes:
        name: The name that the user gave.
        task: Task and labels; no labels (and the number of outputs open) where the images have none.
        labelled: Whether the targets mean anything.
        native: The input specification (size and channels) that the data suggests.
        fingerprint: Changes when the files do.

    Raises:
        InputError: more than 1% of the images are unreadable, or a split has too few images or classes.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        seed: int = 0,
        input: InputSpec | None = None,
        augment: str | None = None,
        memory: int | None = None,
        progress: Progress | None = None,
        read: bool = True,
    ) -> None:
        if augment is not None and augment not in AUGMENTATIONS:
            raise InputError(f"There is no augmentation {augment!r}.", fix=did_you_mean(augment, AUGMENTATIONS))
        _check_readable(listing, listing.unreadable)
        listing.check()
        self.name, self.task, self.labelled = listing.name, listing.task, listing.labelled
        self.fingerprint = listing.fingerprint
        self._augment, self._progress = augment, progress or Progress()
        self._memory = default_memory() if memory is None else memory
        self._caches: dict[tuple[str, InputSpec], Tensor] = {}
        # The data whose images are divided anew, and for each new split the one it comes from and which images of it.
        self._divided: tuple[ImageData, dict[str, tuple[str, np.ndarray]]] | None = None
        self._fitter = Fitter(listing.task, listing.source)
        self.native = listing.native or _native(listing)
        parts = {split: in_fixed_order(part, seed) for split, part in listing.parts.items()}
        self._listing = replace(listing, parts=parts)
        self._is_read = self.prepared
        if read:
            self.read(input or self.native)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: with the pixels that are kept, without whoever watches the progress here."""
        return {**vars(self), "_progress": Progress()}

    def __repr__(self) -> str:
        counts = ", ".join(f"{split}={self.count(split)}" for split in self._listing.parts)
        return f"ImageData({self.name}, {self.task.name}, {counts}, native={self.native.shape})"

    def read(self, input: InputSpec) -> None:
        """Read all images once, for a network with this input, unless they were; the unreadable ones are left out.

        Raises:
            InputError: more than 1% of the images are unreadable, or a split has too few without them.
        """
        if not self._is_read:
            self._listing = self._readable(self._listing, input)
            self._is_read = True

    @property
    def unreadable(self) -> dict[str, str]:
        """Images left out, with the reason."""
        self.read(self.native)
        return self._listing.unreadable

    @property
    def prepared(self) -> bool:
        """Whether images come as tensors that are ready for the network."""
        return self._listing.source.prepared

    @property
    def identified(self) -> bool:
        """Whether the fingerprint changes when any of the images does."""
        return self._listing.source.identified

    @property
    def judging(self) -> str:
        """The split that judges: `test` where there is one, else `validation`."""
        return "test" if "test" in self._listing.parts else "validation"

    def for_task(self, task: TaskSpec) -> "ImageData":
        """The same images, targets and labels, for another task that reads targets of this form."""
        twin = copy.copy(self)
        twin.task = replace(task, labels=self.task.labels)
        twin._listing = replace(self._listing, task=twin.task)
        return twin

    def without_labels(self) -> "ImageData":
        """The same images, whose targets mean nothing."""
        twin = copy.copy(self)
        twin.labelled = False
        return twin

    def with_share(self, share: float) -> "ImageData":
        """The same with that share of the training images, the first in their fixed order; judged by the same ones."""
        twin, part = copy.copy(self), self._part("train")
        first_images = part.take(np.arange(max(1, round(share * len(part.keys)))))
        twin._listing = replace(self._listing, parts={**self._listing.parts, "train": first_images})
        twin.fingerprint = f"{self.fingerprint}, {len(first_images.keys)} of the images"
        return twin

    def fold(self, number: int, of: int) -> "ImageData":
        """The training images alone, for cross-validation: part `number` of `of` judges, the others train.

        Each part has its share of every class, and is always the same.

        Raises:
            InputError: a class has a single image, or a part would have too few.
        """
        part = self._part("train")
        classes = part.targets.dtype.kind == "i" and self.labelled
        order = np.argsort(part.targets, kind="stable") if classes else np.arange(len(part.keys))
        judges = np.isin(np.arange(len(part.keys)), order[number::of])
        masks = {"train": ~judges, "validation": judges}
        twin = copy.copy(self)
        twin._listing = replace(self._listing, parts={split: part.take(mask) for split, mask in masks.items()})
        try:
            twin._listing.check()
        except InputError as error:
            raise InputError(
                f"The training images cannot be divided into {of} folds.",
                why=error.what,
                fix="Use fewer folds, or more images.",
            ) from error
        twin._divided = self, {split: ("train", np.flatnonzero(mask)) for split, mask in masks.items()}
        twin.fingerprint = f"{self.fingerprint}, fold {number} of {of}"
        return twin

    def with_test_split(self) -> "ImageData":
        """The same with every second validation image set aside to judge, of each class alike; always the same ones.

        Data that has a test split is given as it is.

        Raises:
            InputError: a class has a single validation image.
        """
        if self.judging == "test":
            return self
        part = self._part("validation")
        classes = part.targets.dtype.kind == "i" and self.labelled
        order = np.argsort(part.targets, kind="stable") if classes else np.arange(len(part.keys))
        judges = np.isin(np.arange(len(part.keys)), order[::2])
        masks = {"validation": ~judges, "test": judges}
        twin = copy.copy(self)
        divided = {split: part.take(mask) for split, mask in masks.items()}
        twin._listing = replace(self._listing, parts={**self._listing.parts, **divided})
        twin._listing.check()
        twin._divided = self, {split: ("validation", np.flatnonzero(mask)) for split, mask in masks.items()}
        twin.fingerprint = f"{self.fingerprint}, half of the validation images judge"
        return twin

    def count(self, split: str) -> int:
        """Readable images of a split."""
        return len(self._part(split).keys)

    def names(self, split: str) -> tuple[str, ...]:
        """File names (or numbers) of the images, in the order of `targets`."""
        return self._part(split).keys

    def targets(self, split: str) -> Any:
        """Class numbers int64 `[N]`, or float32 `[N, outputs]`; zeros where the images have no labels.

        Of a task that reads its own, a list of what it read.
        """
        return _as_tensors(self._part(split).targets)

    def listed_targets(self, split: str) -> Any:
        """As `targets`, of all images that are listed, whether they can be read or not."""
        return _as_tensors(self._listing.parts[split].targets)

    def truth(self, split: str, input: InputSpec, limit: int | None = None) -> Any:
        """Targets as `Task.evidence` takes them, of all images of a split or the first `limit`.

        An array, or a list of targets that are fitted to what a network with this input sees of each image.
        """
        part = self._part(split)
        if part.targets.dtype != object:
            return part.targets[:limit]
        pairs = zip(part.keys[:limit], part.targets[:limit], strict=True)
        return [self._fitter.fit(key, target, input) for key, target in pairs]

    def batches(
        self,
        split: str,
        input: InputSpec,
        *,
        batch_size: int,
        augment: float = 0.0,
        strong: Strong = NOT_STRONG,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Preprocessed images with their targets, as `Batches`.

        Args:
            split: `train`, `validation` or, where there is one, `test`.
            input: What the network expects.
            batch_size: Images in a batch; the last one may be smaller.
            augment: Vary the images at random: 1 as much as is usual for them, 2 twice as much, 0 not at all.
            strong: How they are varied beside that. With mixtures, targets come as `Mixed`.
            shuffle: Whether the order is drawn by `seed` instead of being the fixed one. A single image that would be
                left for the last batch joins the one before, since batch norm cannot train on it alone.
            seed: The same seed gives the same batches.
            limit: The most images to give, the first ones of the order; None for all.
            share: `(i, n)`: of each batch, part `i` of `n`, for devices that work on it together. A batch that has
                not two images for each goes to all of them.

        Raises:
            InputError: there is no such split, a size is less than 1, or tensors that were given ready for a
                network are of another size than `input`, or their colours were to be changed.
        """
        for name, value in (("batch_size", batch_size), ("limit", 1 if limit is None else limit)):
            if value < 1:
                raise InputError(f"{name} is {value}.", fix="Give 1 or more.")
        if self._listing.source.prepared and input.shape != self.native.shape:
            raise InputError(
                f"The data's tensors are {_shape(self.native)}, and the network expects {_shape(input)}.",
                why="Tensors are taken as they are: they are not resized.",
                fix="Give a network of that size, or a dataset of images that are not preprocessed yet.",
            )
        self._check_strong(strong)
        self.read(input)
        part = self._part(split)
        order = np.random.default_rng(seed).permutation(len(part.keys)) if shuffle else np.arange(len(part.keys))
        kind = replace(self._augmentation(input), strength=float(augment)) if augment else None
        if strong:
            kind = replace(kind or Augmentation(), strong=strong)
        pixels, rows = self._pixels(split, input)
        return Batches(
            self._listing, part, input, pixels, rows, order[:limit], batch_size, kind, seed, share, self._fitter,
            join=shuffle,
        )  # fmt: skip

    def _check_strong(self, strong: Strong) -> None:
        if strong.randaugment and self.prepared:
            raise InputError(
                "randaugment cannot change tensors that are ready for the network.",
                why="It works on colours from 0 to 255.",
                fix="Leave it out, or give a dataset of images that are not preprocessed yet.",
            )
        if strong and self._has_objects:
            raise InputError(
                f"randaugment, erasing, mixup and cutmix are not for the targets of {self.task.name}.",
                why="They would not follow the image.",
                fix="Leave them out.",
            )

    @property
    def _has_objects(self) -> bool:
        """Whether targets are objects, of a task's own form."""
        return self._listing.parts["train"].targets.dtype == object

    def _part(self, split: str) -> Part:
        self.read(self.native)
        if split not in self._listing.parts:
            raise InputError(f"There is no split {split!r}.", fix=did_you_mean(split, self._listing.parts))
        return self._listing.parts[split]

    def _augmentation(self, input: InputSpec) -> Augmentation:
        if self._augment is not None:
            return AUGMENTATIONS[self._augment]
        if self._listing.varies or (self._has_objects and not self._fitter.task.targets_follow):
            return Augmentation()
        # A part of the image may hold fewer of what a regression counts or measures: no crops there.
        crop = min(input.height, input.width) >= _CROP_FROM and self._part("train").targets.dtype.kind in "iO"
        return Augmentation(shift=not crop, crop=crop, flip=self._listing.flips)

    def _readable(self, listing: Listing, input: InputSpec) -> Listing:
        """The one pass over all images, that leaves out those that cannot be read."""
        keep = listing.total * math.prod(input.shape) <= self._memory
        unreadable: dict[str, str] = {}
        for split, part in listing.parts.items():
            pixels, bad = decode_all(listing.source, part.keys, input, self._progress, keep=keep)
            unreadable |= bad
            if pixels is not None:
                self._caches[split, _pixels_of(input)] = torch.from_numpy(pixels)
        _check_readable(listing, {**listing.unreadable, **unreadable})
        listing = listing.without(unreadable)
        listing.check()
        return listing

    def _pixels(self, split: str, input: InputSpec) -> tuple[Tensor | None, np.ndarray | None]:
        """Pixels for `input`, where memory allows to keep them, and which of them are this split's; None for all."""
        if self._divided is None:
            return self._cache(split, input), None
        whole, divided = self._divided
        if split not in divided:
            return whole._pixels(split, input)
        source, rows = divided[split]
        pixels, places = whole._pixels(source, input)
        return pixels, rows if places is None else places[rows]

    def _cache(self, split: str, input: InputSpec) -> Tensor | None:
        """All images of a split for `input`, uint8 `[N, C, H, W]`; None where memory does not allow it."""
        key = split, _pixels_of(input)
        if key in self._caches or self._listing.source.prepared:
            return self._caches.get(key)
        if self._listing.total * math.prod(input.shape) > self._memory:
            return None
        # Caches of other sizes go first: together they must stay within the bound.
        self._caches = {k: v for k, v in self._caches.items() if k[1] == key[1]}
        part = self._listing.parts[split]
        pixels, bad = decode_all(self._listing.source, part.keys, input, self._progress, keep=True)
        if bad or pixels is None:
            raise InputError(f"{next(iter(bad))} can no longer be read.", fix="Leave the data in place.")
        return self._caches.setdefault(key, torch.from_numpy(pixels))


def _as_tensors(targets: np.ndarray) -> Any:
    return list(targets) if targets.dtype == object else torch.from_numpy(targets)


def _check_readable(listing: Listing, unreadable: dict[str, str]) -> None:
    total = listing.total + len(listing.unreadable)
    if len(unreadable) <= _MOST_UNREADABLE * total:
        return
    first = "; ".join(f"{name}: {why}" for name, why in list(unreadable.items())[:3])
    raise InputError(
        f"{len(unreadable)} of the {total} images of {listing.name} cannot be read.",
        why=f"That is more than {_MOST_UNREADABLE:.0%}. {first}{'; ...' if len(unreadable) > 3 else ''}",
        fix="Repair or remove them, then run again.",
    )


def _native(listing: Listing) -> InputSpec:
    """The size of the images where a sample of them agrees on one that is not large; else 224 x 224."""
    keys = [key for part in listing.parts.values() for key in part.keys]
    sizes: Counter[tuple[int, int]] = Counter()
    for i in np.linspace(0, len(keys) - 1, min(_SAMPLE, len(keys))).astype(int):
        try:
            image = listing.source.image(keys[i])
            if isinstance(image, Image.Image):
                sizes[upright_size(image)] += 1
        except Exception:  # found and reported by the pass over all images
            continue
    if len(sizes) == 1 and max(width_height := next(iter(sizes))) <= _LARGEST_NATIVE:
        return InputSpec(height=width_height[1], width=width_height[0])
    return InputSpec(_USUAL, _USUAL)


def _pixels_of(input: InputSpec) -> InputSpec:
    """The part of `input` that decoded pixels depend on."""
    return replace(input, mean=(), std=())


def _shape(input: InputSpec) -> str:
    return f"{input.channels} x {input.height} x {input.width} (channels, height, width)"
