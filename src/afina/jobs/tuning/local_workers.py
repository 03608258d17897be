"""Local processes that work on one study at once, watched and replaced."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from afina.capacity import available_cores
from afina.errors import InputError
from afina.progress import Progress
from afina.store.sending import packed

# What limits the threads of the libraries below torch; they read it when they are imported.
_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Exit code of a worker that ends the search because trials fail one after another; the study has their errors.
HOPELESS = 7
# Exit code of a worker that was interrupted: 128 and the number of the signal, as in shells.
_INTERRUPTED = 130
_MOST_DEATHS = 3
_LOOK = 0.2


def work_together(
    count: int, work: Callable[..., None], options: Any, look: Callable[[], None], progress: Progress
) -> None:
    """Run `work(options, number)` in `count` processes until all have ended; each gets its share of the cores.

    A process that dies is replaced, three times in all. When this one is interrupted the others are stopped; when it
    is killed they end by themselves.

    Args:
        count: Processes.
        work: A function of a module; it ends its process with `HOPELESS` where the search must end.
        options: The first argument of `work`, which must survive a pickle.
        look: Called five times a second while they work.
        progress: Says which processes died.

    Raises:
        InputError: `options` cannot be sent to another process, or processes die again and again.
    """
    fix = "Name it as path/file.py:function (a builder or an objective), or use one worker."
    pickled = packed(options, "What is tuned", fix)
    context, deaths = multiprocessing.get_context("spawn"), 0
    with _limited(max(1, available_cores() // count)):
        running = [_start(context, work, pickled, number) for number in range(count)]
        try:
            while running:
                time.sleep(_LOOK)
                look()
                ended = [process for process in running if not process.is_alive()]
                running = [process for process in running if process.is_alive()]
                for process in ended:
                    if process.exitcode in (0, HOPELESS):
                        continue
                    deaths += 1
                    progress.say(f"A worker died (exit code {process.exitcode}); another takes its place.")
                    if deaths > _MOST_DEATHS:
                        raise InputError(
                            f"Workers died {deaths} times.",
                            why=f"The last exit code was {process.exitcode}; -9 is what a lack of memory gives.",
                            fix="Use fewer workers. What was finished is kept: the same command goes on.",
                        )
                    running.append(_start(context, work, pickled, count + deaths))
        finally:
            for process in running:
                process.terminate()
                process.join()
            look()


def _start(context: Any, work: Callable[..., None], pickled: bytes, number: int) -> SpawnProcess:
    process: SpawnProcess = context.Process(target=_run, args=(work, pickled, number), daemon=True)
    with _uninterrupted():
        process.start()
    return process


def _run(work: Callable[..., None], pickled: bytes, number: int) -> None:
    """The main function of one of the processes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work(pickle.loads(pickled), number)
    except KeyboardInterrupt:
        # The process that began the search says that it was stopped.
        sys.exit(_INTERRUPTED)


def _end_with_parent() -> None:
    """End this process at once, whatever it does, when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """In the `with` block Ctrl-C is held back, and for the processes that it starts until they can handle it."""
    # It lets signals through when it is started, so that it must run already.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Processes that are started in the `with` block use so many threads."""
    before = {name: os.environ.get(name) for name in _LIMITS}
    os.environ.update(dict.fromkeys(_LIMITS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
