"""Folders of images, one folder per class, with or without splits above them."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

import numpy as np

from afina.data.files import Files, FileSource, is_image
from afina.data.listing import Listing, Part, split_one
from afina.errors import InputError
from afina.tasks.forms import CLASSES

_VALIDATION_NAMES = ("val", "valid", "validation", "test")  # the first that is there is used
SPLIT_NAMES = ("train", *_VALIDATION_NAMES)
_SYNONYMS = {"training": "train", "testing": "test"}
_Path = tuple[str, ...]
_LAYOUT = "Lay it out as train/CLASS/IMAGE and val/CLASS/IMAGE, or as CLASS/IMAGE."


def split_word(word: str) -> str:
    """A word for a split as `SPLIT_NAMES` has it, where it is one: `Training` is `train`.

    Example:
        >>> split_word("Training"), split_word("Val"), split_word("cats")
        ('train', 'val', 'cats')
    """
    return _SYNONYMS.get(word.lower(), word.lower())


def roles(words: Collection[str]) -> dict[str, str]:
    """The word that holds each split, for the words in `SPLIT_NAMES` that are there.

    A test split beside a validation split judges; alone, it has to choose as well, and is the validation split. What
    stands alone without a training split is all the data there is.

    Example:
        >>> roles({"train", "val", "test"})
        {'train': 'train', 'validation': 'val', 'test': 'test'}
        >>> roles({"train", "test"}), roles({"val"})
        ({'train': 'train', 'validation': 'test'}, {'train': 'val'})
    """
    held_out = [word for word in _VALIDATION_NAMES if word in words]
    if "train" not in words:
        return {"train": held_out[0]} if held_out else {}
    splits = {"train": "train"}
    if held_out:
        splits["validation"] = held_out[0]
    if held_out[1:] and held_out[-1] == "test":
        splits["test"] = "test"
    return splits


def list_folder(files: Files, name: str, seed: int, *, unlabelled: bool = False) -> Listing:
    """The images of `train/<class>/*`, `val|valid|validation/<class>/*` and `test/<class>/*`, or of `<class>/*`.

    A folder that wraps all of it is looked through. With one split only, 20% of it becomes the validation split. Where
    `unlabelled` images will do, they may all lie in one folder.

    Raises:
        InputError: there are no images, no class folders, or one class only.
    """
    images = _images(files, name)
    if unlabelled and len({path[:-1] for path in images}) == 1:
        return _flat(files, tuple("/".join(path) for path in images), name, seed)
    splits = _splits(_unwrap(images, name), name)
    labels = tuple(sorted({label for entries in splits.values() for label, _ in entries}))
    if len(labels) < 2:
        raise InputError(
            f"{name} has one class only ({labels[0]}).",
            why="A classifier needs at least two classes to tell apart.",
            fix=f"Add a folder of images for each other class. {_LAYOUT}",
        )
    number = {label: i for i, label in enumerate(labels)}
    parts = {
        split: Part(tuple(key for _, key in entries), np.array([number[label] for label, _ in entries], dtype=np.int64))
        for split, entries in splits.items()
    }
    if "validation" not in parts:
        parts = split_one(parts["train"], labels, seed, name)
    fingerprint = fingerprint_of(files, (key for part in parts.values() for key in part.keys))
    task = CLASSES.spec(labels)
    return Listing(name, task, FileSource(files), parts, fingerprint, notes=_left_out(files, name))


def class_folders(files: Files, name: str) -> dict[str, list[tuple[str, str]]]:
    """For each split that is there, the class and the full name of each image of class folders.

    Raises:
        InputError: there are no images, or no class folders.
    """
    return _splits(_unwrap(_images(files, name), name), name)


def _images(files: Files, name: str) -> list[_Path]:
    images = [tuple(path.split("/")) for path in files.names if is_image(path)]
    if not images:
        others = len(files.names)
        raise InputError(f"{name} holds no images{f' (but {others} other files)' if others else ''}.", fix=_LAYOUT)
    return images


def _left_out(files: Files, name: str) -> tuple[str, ...]:
    """What a user may think is in the data and is not: files of other kinds, and classes without an image."""
    kinds = Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in files.names if not is_image(path))
    notes = []
    if kinds:
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        notes.append(f"{name}: {sum(kinds.values())} files that are no images are left out ({shown}).")
    if files.empty_folders:
        notes.append(f"{name}: without an image, and so no class: {', '.join(files.empty_folders[:5])}.")
    return tuple(notes)


def _flat(files: Files, keys: tuple[str, ...], name: str, seed: int) -> Listing:
    """Images without labels."""
    parts = split_one(Part(keys, np.zeros(len(keys), dtype=np.int64)), (), seed, name)
    fingerprint = fingerprint_of(files, keys)
    task = CLASSES.spec(())
    return Listing(name, task, FileSource(files), parts, fingerprint, labelled=False, notes=_left_out(files, name))


def fingerprint_of(files: Files, names: Iterable[str], table: bytes = b"") -> str:
    """SHA-256 over the sorted names with the signature of each file's content, and over the table if there is one.

    `file_signature` tells what changes a signature in a folder; in a zip it is the size and the stored checksum. The
    place of the folder is not part of it: a copy elsewhere has the same fingerprint.
    """
    digest = hashlib.sha256(table)
    for name in sorted(names):
        digest.update(f"{name}\0{files.signature(name)}\n".encode())
    return digest.hexdigest()


def _unwrap(images: list[_Path], name: str) -> list[tuple[_Path, str]]:
    """Path below the wrapping folders, and full name, of each image that is in some folder."""
    paths = [(path, "/".join(path)) for path in images if len(path) > 1]
    if not paths:
        raise InputError(f"{name} has images but no class folders.", fix=_LAYOUT)
    while True:
        tops = {path[0] for path, _ in paths}
        if len(tops) > 1 or split_word(next(iter(tops))) in SPLIT_NAMES or any(len(path) < 3 for path, _ in paths):
            return paths
        paths = [(path[1:], key) for path, key in paths]


def _splits(images: list[tuple[_Path, str]], name: str) -> dict[str, list[tuple[str, str]]]:
    """For each split that is there, the class and the full name of its images."""
    tops = {split_word(path[0]) for path, _ in images}
    named = {split_word(path[0]) for path, _ in images if len(path) > 2} & set(SPLIT_NAMES)
    if not named:
        if tops <= set(SPLIT_NAMES):
            raise InputError(f"{name}: no class folders inside {', '.join(sorted(tops))}.", fix=_LAYOUT)
        return {"train": [(path[0], key) for path, key in images]}
    if "train" not in named and len(named) > 1:
        raise InputError(f"{name} has {' and '.join(sorted(named))} but no train folder.", fix=_LAYOUT)
    return {
        split: [(path[1], key) for path, key in images if split_word(path[0]) == word and len(path) > 2]
        for split, word in roles(named).items()
    }
