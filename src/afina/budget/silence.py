"""Keeps what C libraries print away from the standard output, which may be the JSON that a user pipes on."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent_library() -> Iterator[None]:
    """For the length of a `with` block, nothing that is written below Python reaches the standard output.

    HiGHS (SciPy 1.17) prints a line of debugging in some integer programs, whatever its options say.
    """
    sys.stdout.flush()
    try:
        original = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        _flush()
        os.dup2(original, 1)
        os.close(original)
        os.close(sink)


def _flush() -> None:
    """Write out the buffers of the C library, while the standard output still leads to the null device."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library of that name
        ctypes.CDLL(None).fflush(None)
