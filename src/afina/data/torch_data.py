"""Data given from Python: a torch `Dataset` or `DataLoader`, or two or three of them: train, validation, test.

Of a loader, its dataset, the images that its sampler chooses (each once) and its workers are used; batches are Afina's
own.
"""

import hashlib
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler as PlainBatchSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, default_collate

from afina.data.decode import reason
from afina.data.listing import SPLITS, ImageSource, Listing, Part, split_one
from afina.errors import InputError
from afina.tasks.forms import CLASSES, FLAGS, FORMS, NUMBERS, Form
from afina.types import InputSpec, TaskSpec

_SAMPLE = 64  # images that the fingerprint looks into
_TWICE = 8  # images read twice, to see whether the dataset varies them
_CHUNK = 64  # images that a worker reads at once


class _Item(NamedTuple):
    image: Any  # a PIL image, or float32 [C, H, W]
    target: Any  # int, a tuple of numbers, or None


class _Guarded(Dataset[Any]):
    """A collection that gives an exception in the place of an item that cannot be read."""

    def __init__(self, collection: Sequence[Any]) -> None:
        self.collection = collection

    def __getitem__(self, number: int) -> Any:
        try:
            return self.collection[number]
        except Exception as error:  # whatever the user's dataset raises on a damaged file
            return ValueError(reason(error))


class _Items(ImageSource):
    """Items of one or two collections, under keys such as `train/17`."""

    parallel = False  # a user's dataset is not written for threads
    identified = False  # of a user's items a sample is in the fingerprint

    def __init__(self) -> None:
        self.collections: dict[str, Sequence[Any]] = {}
        self.loaders: dict[str, DataLoader[Any]] = {}  # those that have workers
        self.images_in_memory: dict[str, Any] = {}
        self.prepared = False

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which read the collections themselves: a loader may hold what cannot be sent."""
        return {**vars(self), "loaders": {}}

    def item(self, key: str) -> _Item:
        split, number = key.split("/")
        return _understood(self.collections[split][int(number)])

    def image(self, key: str) -> Any:
        return self.images_in_memory[key] if key in self.images_in_memory else self.item(key).image

    def batches(self, batches: Sequence[Sequence[str]], seed: int) -> Iterator[Sequence[Any]]:
        """The images of each batch of keys of one collection."""
        keys = [key for batch in batches for key in batch]
        if all(key in self.images_in_memory for key in keys):
            return ([self.images_in_memory[key] for key in batch] for batch in batches)
        split = keys[0].partition("/")[0]
        numbers = [[int(key.partition("/")[2]) for key in batch] for batch in batches]
        return ([_image_of(item) for item in items] for items in self.items(split, numbers, seed))

    def items(self, split: str, batches: Sequence[Sequence[int]], seed: int) -> Iterator[list[Any]]:
        """What the collection holds at these numbers, by the workers of the user's loader where it has some.

        An exception stands in the place of an item that cannot be read.
        """
        guarded, loader = _Guarded(self.collections[split]), self.loaders.get(split)
        if loader is None or multiprocessing.current_process().daemon:  # which may not have workers of its own
            return ([guarded[number] for number in batch] for batch in batches)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that these are many workers, which the user's own loader said already
            twin = DataLoader(
                guarded,
                batch_sampler=cast(Any, batches),
                collate_fn=list,
                num_workers=loader.num_workers,
                prefetch_factor=loader.prefetch_factor,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                timeout=loader.timeout,
                generator=torch.Generator().manual_seed(seed),
            )
        return iter(twin)


def is_torch_data(source: object) -> bool:
    """Whether `source` is a dataset, a loader, or two or three of them."""
    if isinstance(source, (tuple, list)):
        return 2 <= len(source) <= len(SPLITS) and all(is_torch_data(one) for one in source)
    return isinstance(source, (Dataset, DataLoader))


def list_torch(source: Any, seed: int, task: str | None, memory: int) -> Listing:
    """`(image, target)` items, or images alone.

    Images are float tensors `[C, H, W]` that are ready for the network, or PIL images and uint8 arrays (`[H, W,
    C]`, `[H, W]`; tensors `[C, H, W]`), which are preprocessed like files. Integer targets are class numbers,
    fractions are regression, and vectors of 0 and 1 say which labels an image has (vectors of floats that are all 0
    and 1 too: give the task regression where they are numbers). Ready tensors are kept within `memory` bytes,
    unless the dataset gives something else at a second look (its own augmentation): then it is read anew each time.

    Raises:
        InputError: items are of another kind, or differ in kind or size.
    """
    several = isinstance(source, (tuple, list))
    collections = dict(zip(SPLITS, source, strict=False)) if several else {"train": source}
    items = _Items()
    for split, one in collections.items():
        items.collections[split] = _collection(one, memory)
        if isinstance(one, DataLoader) and one.num_workers and not isinstance(items.collections[split], list):
            items.loaders[split] = one
    reader = _Reader(items, memory)
    parts = {split: reader.read(split, len(items.collections[split])) for split in collections}
    form, spec = _task(parts, task, _classes(collections["train"]), reader.labelled)
    finished = {
        split: Part(tuple(keys), form.from_numbers([0 if t is None else t for t in targets], spec.labels))
        for split, (keys, targets) in parts.items()
    }
    name = "dataset"
    if not several:
        labels = spec.labels if form.by_class else ()
        finished = split_one(finished["train"], labels, seed, name)
    return Listing(
        name,
        spec,
        items,
        finished,
        _fingerprint(items, finished),
        labelled=reader.labelled,
        native=_native(reader.shape, collections["train"]) if reader.shape else None,
        # Small grey images are mostly characters, which have a right and a wrong way round.
        flips=reader.shape is None or reader.shape[0] == 3,
        varies=reader.varies,
        unreadable=reader.unreadable,
    )


class _Reader:
    """Reads all items once: their targets, their shape, and as many of the ready tensors as memory allows."""

    def __init__(self, items: _Items, memory: int) -> None:
        self.items, self.bytes_left = items, memory
        self.labelled, self.varies = False, False
        self.shape: tuple[int, int, int] | None = None
        self.unreadable: dict[str, str] = {}
        self._kind: tuple[bool, bool] | None = None

    def read(self, split: str, count: int) -> tuple[list[str], list[Any]]:
        """Keys and targets of the readable items."""
        keys, targets = [], []
        self.varies = self.varies or self._differs(split, count)
        numbers = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        for i, raw in enumerate(chain.from_iterable(self.items.items(split, numbers, 0))):
            key = f"{split}/{i}"
            if isinstance(raw, Exception):
                self.unreadable[key] = str(raw)
                continue
            item = _understood(raw)
            self._check(key, item)
            keys.append(key)
            targets.append(item.target)
        return keys, targets

    def _differs(self, split: str, count: int) -> bool:
        for i in range(min(count, _TWICE)):
            try:
                first, second = (np.asarray(self.items.item(f"{split}/{i}").image) for _ in range(2))
            except InputError:
                raise
            except Exception:
                continue
            if first.shape != second.shape or not np.array_equal(first, second):
                return True
        return False

    def _check(self, key: str, item: _Item) -> None:
        ready = isinstance(item.image, np.ndarray)
        kind = (ready, item.target is not None)
        if self._kind is None:
            self._kind, self.labelled, self.items.prepared = kind, kind[1], ready
            self.shape = item.image.shape if ready else None
        if kind != self._kind or (ready and item.image.shape != self.shape):
            raise InputError(
                f"Item {key} of the dataset is unlike the ones before it.",
                why=f"It is {_describe(item.image)} {'with' if kind[1] else 'without'} a target.",
                fix="Give a dataset whose items are all of one kind, and its tensors all of one size.",
            )
        if ready and not self.varies and item.image.nbytes <= self.bytes_left:
            self.items.images_in_memory[key] = item.image
            self.bytes_left -= item.image.nbytes


def _collection(one: Any, memory: int) -> Sequence[Any]:
    """A collection that is indexed by number: a dataset, the part that a loader samples, or all items of a stream."""
    if isinstance(one, DataLoader):
        plain = one.collate_fn is default_collate and not isinstance(one.dataset, IterableDataset)
        return _sampled(one) if plain else _drained(_unbatched(one), memory)
    if isinstance(one, IterableDataset) or not hasattr(one, "__len__"):
        return _drained(iter(one), memory)
    return cast(Sequence[Any], one)


def _sampled(loader: DataLoader[Any]) -> Sequence[Any]:
    if isinstance(loader.sampler, RandomSampler) and type(loader.batch_sampler) is PlainBatchSampler:
        return cast(Sequence[Any], loader.dataset)
    with torch.random.fork_rng(devices=[]):  # a sampler may draw; the user's random state is not ours to advance
        if loader.batch_sampler is None or type(loader.batch_sampler) is PlainBatchSampler:
            chosen = {int(i) for i in cast(Iterable[int], loader.sampler)}
        else:
            chosen = {int(i) for batch in loader.batch_sampler for i in batch}
    return cast(Sequence[Any], Subset(loader.dataset, sorted(chosen)))


def _unbatched(loader: DataLoader[Any]) -> Iterator[Any]:
    for batch in loader:
        if loader.batch_size is None and loader.batch_sampler is None:
            yield batch
        elif isinstance(batch, (tuple, list)):
            yield from zip(*batch, strict=True)
        else:
            yield from batch


def _drained(stream: Iterator[Any], memory: int) -> list[Any]:
    items, used = [], 0
    for item in stream:
        items.append(item)
        used += np.asarray(_understood(item).image).nbytes
        if used > memory:
            raise InputError(
                f"The data stream is larger than {memory} bytes.",
                why="What cannot be indexed by number is kept in memory.",
                fix="Give a dataset with __len__ and __getitem__, or an image folder.",
            )
    return items


def _image_of(item: Any) -> Any:
    return item if isinstance(item, Exception) else _understood(item).image


def _understood(item: Any) -> _Item:
    """The image and the target in one item of a user's dataset."""
    image, target = item, None
    if isinstance(item, (tuple, list)) and item:
        image, target = item[0], item[1] if len(item) > 1 else None
    return _Item(_image(image), None if target is None else _target(target))


def _image(image: Any) -> Any:
    if isinstance(image, Image.Image):
        return image
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if isinstance(array, np.ndarray):
        if array.dtype == np.uint8 and array.ndim in (2, 3):
            # Tensors, and arrays that look like it, have their channels first.
            if array.ndim == 3 and array.shape[0] in (1, 3, 4) and (isinstance(image, Tensor) or array.shape[2] > 4):
                array = array.transpose(1, 2, 0)
            return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
        if array.dtype.kind == "f" and array.ndim == 3 and array.shape[0] in (1, 3):
            return array.astype(np.float32, copy=False)
    raise InputError(
        f"An item of the dataset holds {_describe(image)} where an image is expected.",
        fix="Give float tensors [C, H, W] with 1 or 3 channels, uint8 arrays, or PIL images; with a target: "
        "(image, target).",
    )


def _target(target: Any) -> int | tuple[int, ...] | tuple[float, ...]:
    value = target.detach().cpu().numpy() if isinstance(target, Tensor) else target
    if isinstance(value, (bool, int, float, np.generic, np.ndarray, list, tuple)):
        array = np.asarray(value)
        if array.dtype.kind in "biu" and array.size == 1:
            return int(array.reshape(()))
        if array.dtype.kind in "biu" and array.ndim == 1 and array.size and np.isin(array, (0, 1)).all():
            return tuple(int(v) for v in array)
        if array.dtype.kind in "f" and array.ndim <= 1 and array.size and np.isfinite(array).all():
            return tuple(float(v) for v in array.reshape(-1))
    raise InputError(
        f"A target of the dataset is {str(target)[:60]!r} ({_describe(target)}).",
        fix="Give class numbers (integers from 0), finite numbers to predict (floats), or a vector of 0 and 1 that "
        "says which labels the image has.",
    )


def _task(
    parts: dict[str, tuple[list[str], list[Any]]], task: str | None, classes: Sequence[str], labelled: bool
) -> tuple[Form, TaskSpec]:
    """The form of the targets, and the task with its labels: as asked for, or as the targets say."""
    targets = [target for _, split_targets in parts.values() for target in split_targets]
    asked = None if task is None else FORMS[task]
    if not labelled:
        form = asked or CLASSES
        return form, form.spec(tuple(classes))
    widths = {len(target) if isinstance(target, tuple) else 0 for target in targets}
    if len(widths) > 1:
        raise InputError("The dataset's targets are of different kinds.", fix="Give all of them as one kind.")
    width = next(iter(widths), 0)
    flags = width > 1 and all(number in (0, 1) for target in targets for number in target)
    form = asked or (FLAGS if flags else NUMBERS if width else CLASSES)
    if form is FLAGS:
        if not flags:
            raise InputError(f"{targets[0]} is no vector of 0 and 1.", fix="Give one number, 0 or 1, for each label.")
        return form, form.spec(tuple(classes) if len(classes) == width else _numbered(width))
    if form is NUMBERS:
        return form, form.spec(("target",) if width < 2 else tuple(f"target{i}" for i in range(width)))
    return form, form.spec(_class_names(targets, width, classes))


def _class_names(targets: list[Any], width: int, classes: Sequence[str]) -> tuple[str, ...]:
    if width or min(targets, default=0) < 0:
        raise InputError(
            f"{min(targets)} is not a class number.",
            fix=f"Give integers from 0 on, or ask for the task {NUMBERS.task}.",
        )
    most = max(targets, default=0)
    if classes and most >= len(classes):
        raise InputError(
            f"The dataset names {len(classes)} classes, and has a target {most}.",
            fix="Number classes from 0.",
        )
    return tuple(classes) or _numbered(most + 1)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _classes(one: Any) -> tuple[str, ...]:
    """`dataset.classes`, as torchvision's have it; also of the dataset inside a loader or a subset."""
    while one is not None:
        if isinstance(classes := getattr(one, "classes", None), (list, tuple)):
            return tuple(str(name) for name in classes)
        one = getattr(one, "dataset", None)
    return ()


def _native(shape: tuple[int, int, int], one: Any) -> InputSpec:
    channels, height, width = shape
    mean, std = _normalisation(one, channels) or ((0.0,) * channels, (1.0,) * channels)
    return InputSpec(height, width, mean, std, "RGB" if channels == 3 else "L")


def _normalisation(one: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of the `Normalize` among a dataset's transforms, which the artifact has to note."""
    while one is not None:
        transform = getattr(one, "transform", None)
        for step in getattr(transform, "transforms", [transform]):
            mean, std = getattr(step, "mean", None), getattr(step, "std", None)
            if mean is not None and std is not None:
                pair = tuple(tuple(float(v) for v in np.ravel(np.asarray(values))) for values in (mean, std))
                if all(len(values) == channels for values in pair):
                    return pair[0], pair[1]
        one = getattr(one, "dataset", None)
    return None


def _fingerprint(items: _Items, parts: dict[str, Part]) -> str:
    """Over the targets and a sample of the images in memory: a user's dataset has no names or sizes."""
    digest = hashlib.sha256()
    for split, part in parts.items():
        digest.update(f"{split}:{len(part.keys)}".encode() + part.targets.tobytes())
        for i in np.linspace(0, len(part.keys) - 1, min(_SAMPLE, len(part.keys))).astype(int):
            if part.keys[i] in items.images_in_memory:
                digest.update(items.images_in_memory[part.keys[i]].tobytes())
    return digest.hexdigest()


def _describe(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of {value.dtype} with shape {list(value.shape)}"
    return f"a {type(value).__name__}"
