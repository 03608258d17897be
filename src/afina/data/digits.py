"""The data of `afina demo`: real scanned digits that ship with scikit-learn."""

import hashlib

import numpy as np
from PIL import Image

from afina.data.listing import ImageSource, Listing, Part, split_one
from afina.tasks.forms import CLASSES
from afina.types import InputSpec

_SPLIT_SEED = 0  # one split for everyone: results on digits compare whatever the seed


class _Arrays(ImageSource):
    parallel, prepared, identified = True, False, True

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def image(self, key: str) -> Image.Image:
        return Image.fromarray(self._pixels[int(key)])


def list_digits() -> Listing:
    """1,797 grey digits of 8 x 8 pixels in 17 shades (Alpaydin and Kaynak 1998), split 80/20 for good."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = tuple(str(i) for i in range(10))
    whole = Part(tuple(str(i) for i in range(len(pixels))), digits.target.astype(np.int64))
    parts = split_one(whole, labels, _SPLIT_SEED, "digits")
    train = pixels[[int(key) for key in parts["train"].keys]] / 255
    native = InputSpec(8, 8, (round(float(train.mean()), 4),), (round(float(train.std()), 4),), "L")
    fingerprint = hashlib.sha256(pixels.tobytes() + whole.targets.tobytes()).hexdigest()
    task = CLASSES.spec(labels)
    return Listing("digits", task, _Arrays(pixels), parts, fingerprint, native=native, flips=False)
