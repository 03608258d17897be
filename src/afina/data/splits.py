"""Which split an image is in, where folders say it and classes do not."""

from collections.abc import Iterable

import numpy as np

from afina.data.folders import SPLIT_NAMES, roles, split_word
from afina.data.listing import Part, split_one
from afina.errors import InputError


def folder_split(key: str) -> str:
    """The word for a split among an image's folders, as `split_word` has it; empty where there is none.

    Example:
        >>> folder_split("photos/Training/a.jpg"), folder_split("photos/a.jpg")
        ('train', '')
    """
    words = (split_word(part) for part in key.split("/")[:-1])
    return next((word for word in words if word in SPLIT_NAMES), "")


def split_by_folders(keys: Iterable[str], targets: np.ndarray, seed: int, name: str) -> dict[str, Part]:
    """The images in the splits that their folders name; where they name one or none, 20% validate, drawn by `seed`.

    Raises:
        InputError: there are several splits and none is for training.
    """
    keys = tuple(keys)
    words = np.array([folder_split(key) for key in keys])
    whole, held = Part(keys, targets), roles(set(words))
    if "validation" in held:
        return {split: whole.take(words == word) for split, word in held.items()}
    if len(set(words)) > 1 and "train" not in words:
        shown = ", ".join(sorted(word or "no split" for word in set(words)))
        raise InputError(f"{name} has images for {shown}, but no train folder.", fix="Call one of the folders train.")
    return split_one(whole.take(words == "train") if "train" in words else whole, (), seed, name)
