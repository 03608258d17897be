"""Decoding many images: into one array that is kept, or batch by batch, on a few threads.

Threads and not worker processes: Pillow decodes and resizes outside Python's lock, nothing is copied between
processes or waits for shared memory, and it works the same in notebooks, containers and on every system.
"""

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from afina.data.decode import decode, reason
from afina.data.listing import ImageSource
from afina.errors import InputError
from afina.progress import Progress
from afina.types import InputSpec

_CHUNK = 64
_AHEAD = 2  # batches that are decoded ahead of the one in use


def load(source: ImageSource, key: str, input: InputSpec) -> np.ndarray:
    """One image as uint8 `[C, H, W]`; of a prepared source as float32."""
    image = source.image(key)
    return decode(image, input) if isinstance(image, Image.Image) else image


def decode_all(
    source: ImageSource, keys: Sequence[str], input: InputSpec, progress: Progress, *, keep: bool
) -> tuple[np.ndarray | None, dict[str, str]]:
    """Decode every image once.

    Returns:
        Pixels of the readable ones, uint8 `[N, C, H, W]` (None without `keep`), and why each other one is not.
    """
    pixels = np.empty((len(keys), *input.shape), dtype=np.uint8) if keep else None
    unreadable: dict[str, str] = {}

    def work(start: int) -> int:
        chunk = keys[start : start + _CHUNK]
        for i, key in enumerate(chunk, start):
            try:
                image = load(source, key, input)
            except Exception as error:  # Pillow's readers raise almost anything on damaged files
                unreadable[key] = reason(error)
                continue
            if pixels is not None:
                pixels[i] = image
        return len(chunk)

    with progress.work("Reading images", len(keys)) as bar, _pool(source) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on odd but readable files
        for done in pool.map(work, range(0, len(keys), _CHUNK)) if pool else map(work, range(0, len(keys), _CHUNK)):
            bar.advance(done)
    unreadable = {key: unreadable[key] for key in keys if key in unreadable}
    if pixels is not None and unreadable:
        pixels = pixels[[key not in unreadable for key in keys]]
    return pixels, unreadable


def stream(source: ImageSource, batches: Iterable[Sequence[str]], input: InputSpec) -> Iterator[np.ndarray]:
    """Images of each batch of keys, `[n, C, H, W]`, decoded a little ahead of their use.

    Raises:
        InputError: an image cannot be read any more.
    """
    with _pool(source) as pool:
        if pool is None:
            for keys in batches:
                yield np.stack([_load_again(source, key, input) for key in keys])
            return
        waiting: deque[list[Future[np.ndarray]]] = deque()
        try:
            for keys in batches:
                waiting.append([pool.submit(_load_again, source, key, input) for key in keys])
                if len(waiting) > _AHEAD:
                    yield np.stack([image.result() for image in waiting.popleft()])
            while waiting:
                yield np.stack([image.result() for image in waiting.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _load_again(source: ImageSource, key: str, input: InputSpec) -> np.ndarray:
    try:
        return load(source, key, input)
    except Exception as error:
        raise InputError(
            f"{key} can no longer be read.",
            why=reason(error),
            fix="Leave the data in place while Afina works.",
        ) from error


@contextlib.contextmanager
def _pool(source: ImageSource) -> Iterator[ThreadPoolExecutor | None]:
    if not source.parallel:
        yield None
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="afina-decode") as pool:
        yield pool
