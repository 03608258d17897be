"""What C libraries print on their own account is kept from the standard output, which may be somebody's JSON."""

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
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _flush() -> None:
    """Have C's own buffers written while they still go nowhere."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library of that name
        ctypes.CDLL(None).fflush(None)
