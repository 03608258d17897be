"""Reading many images: into one array that is kept, or batch by batch, ahead of their use.

Work is done by threads and not by processes: Pillow and torch compute outside Python's lock, nothing is copied between
processes or waits for shared memory, and it works the same in notebooks, containers and on every system. A user's
dataset is not written for threads: it is read by the workers of its loader, else in the main thread.
"""

import functools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from afina.capacity import available_cores
from afina.data.decode import decode, reason, verify
from afina.data.listing import ImageSource
from afina.errors import InputError
from afina.progress import Progress
from afina.types import InputSpec

T = TypeVar("T")

_CHUNK = 64
_AHEAD = 4  # batches that are worked on ahead of the one in use
_MOST_THREADS = 16


def decode_all(
    source: ImageSource, keys: Sequence[str], input: InputSpec, progress: Progress, *, keep: bool
) -> tuple[np.ndarray | None, dict[str, str]]:
    """Read every image once.

    Returns:
        Pixels of the readable ones, uint8 `[N, C, H, W]`, and why each other one is not; without `keep` images are only
        checked, and there are no pixels.
    """
    pixels = np.empty((len(keys), *input.shape), dtype=np.uint8) if keep else None
    unreadable: dict[str, str] = {}

    def work(start: int, images: Sequence[Any]) -> int:
        for i, image in enumerate(images, start):
            try:
                image = image() if callable(image) else image
                if isinstance(image, Exception):
                    raise image
                if pixels is None:
                    verify(image)
                else:
                    pixels[i] = decode(image, input)
            except Exception as error:  # Pillow's readers raise almost anything on damaged files
                unreadable[keys[i]] = reason(error)
        return len(images)

    starts = range(0, len(keys), _CHUNK)
    chunks = _images(source, [keys[start : start + _CHUNK] for start in starts], seed=0)
    tasks = (functools.partial(work, start, images) for start, images in zip(starts, chunks, strict=True))
    with progress.work("Reading images", len(keys)) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on odd but readable files
        for done in ahead(tasks, available_cores() + _AHEAD):
            bar.advance(done)
    unreadable = {key: unreadable[key] for key in keys if key in unreadable}
    if pixels is not None and unreadable:
        pixels = pixels[[key not in unreadable for key in keys]]
    return pixels, unreadable


def stream(
    source: ImageSource, batches: Sequence[Sequence[str]], input: InputSpec, seed: int
) -> Iterator[Callable[[], np.ndarray]]:
    """For each batch of keys a function that gives its images, `[n, C, H, W]`, which are being decoded by then.

    Args:
        source: Where the images are.
        batches: Their keys.
        input: What the network expects.
        seed: Of the workers of a user's loader.

    Raises:
        InputError: (the functions) an image cannot be read any more.
    """
    for keys, images in zip(batches, _images(source, batches, seed), strict=True):
        loads = [functools.partial(_load, key, image, input) for key, image in zip(keys, images, strict=True)]
        # A batch waits for its images in the pool; they are before it in the queue, so that this comes to an end.
        waiting = [_pool(os.getpid()).submit(load) for load in loads] if source.parallel else None
        yield functools.partial(_stacked, loads if waiting is None else [future.result for future in waiting])


def ahead(tasks: Iterable[Callable[[], T]], count: int = _AHEAD) -> Iterator[T]:
    """The results of tasks in their order, while the next `count` are worked on by other threads.

    Tasks are taken from the iterable in the thread that uses the results, one after another.

    Example:
        >>> list(ahead(functools.partial(pow, 2, n) for n in range(4)))
        [1, 2, 4, 8]
    """
    pool, waiting = _pool(os.getpid()), deque[Future[T]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process, a copy of which has none of them."""
    threads = min(available_cores(), _MOST_THREADS)
    return ThreadPoolExecutor(threads, thread_name_prefix="afina-images", initializer=_one_core_each)


def _one_core_each() -> None:
    """Keep torch from starting further threads in each of the pool's."""
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # sets the number for this thread, once
    threadpool_limits(1, user_api="openmp")


def _images(source: ImageSource, batches: Sequence[Sequence[str]], seed: int) -> Iterator[Sequence[Any]]:
    """For each batch its images, or functions that read one; an exception in the place of one that cannot be read."""
    if not source.parallel:
        yield from source.batches(batches, seed)
        return
    for keys in batches:
        yield [functools.partial(source.image, key) for key in keys]


def _load(key: str, image: Any, input: InputSpec) -> np.ndarray:
    """One image as uint8 `[C, H, W]`; of a prepared source as float32."""
    try:
        image = image() if callable(image) else image
        if isinstance(image, Exception):
            raise image
        return decode(image, input) if isinstance(image, Image.Image) else image
    except Exception as error:
        raise InputError(
            f"{key} can no longer be read.",
            why=reason(error),
            fix="Leave the data in place while Afina works.",
        ) from error


def _stacked(images: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    return np.stack([image() for image in images])
