"""Sources of images: folders, zips, tables, torch datasets and digits, all as one `ImageData`.

Each kind of source is brought to a `Listing` (images, targets, a way to read one); `ImageData` does the rest.
`decode` is the one definition of preprocessing, `augment` of random variation.
"""

from afina.data.augment import AUGMENTATIONS, Augmentation
from afina.data.base import ImageData, default_memory
from afina.data.batches import Batches
from afina.data.decode import decode, preprocess
from afina.data.sources import open_data
from afina.data.strong import Mixed, Strong

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Batches",
    "ImageData",
    "Mixed",
    "Strong",
    "decode",
    "default_memory",
    "open_data",
    "preprocess",
]
