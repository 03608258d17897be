"""Local processes that work on one study at once, watched and replaced."""

import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from typing import Any

from afina.errors import InputError
from afina.jobs.machine import available_cores
from afina.progress import Progress
from afina.store.sending import packed

# What limits the threads of the libraries below torch; they read it when they are imported.
_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Exit code of a worker that ends the search: the study says why.
HOPELESS = 7
_MOST_DEATHS = 3
_LOOK = 0.2


def work_together(
    count: int, work: Callable[..., None], given: dict[str, Any], look: Callable[[], None], progress: Progress
) -> None:
    """Run `work(given, number)` in `count` processes until all have ended; each gets its share of the cores.

    A process that dies is replaced, three times in all. When this one is interrupted the others are stopped.

    Args:
        count: Processes.
        work: A function of a module; it ends its process with `HOPELESS` where the search must end.
        given: Its first argument, which must survive a pickle.
        look: Called all the time while they work.
        progress: Told of processes that died.

    Raises:
        InputError: `given` cannot be sent to another process, or processes die again and again.
    """
    fix = "Name it as path/file.py:function (a builder or an objective), or use one worker."
    sent = packed(given, "What is tuned", fix)
    context, deaths = multiprocessing.get_context("spawn"), 0
    with _limited(max(1, available_cores() // count)):
        running = [_start(context, work, sent, number) for number in range(count)]
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
                    running.append(_start(context, work, sent, count + deaths))
        finally:
            for process in running:
                process.terminate()
                process.join()
            look()


def _start(context: Any, work: Callable[..., None], sent: bytes, number: int) -> SpawnProcess:
    process: SpawnProcess = context.Process(target=_run, args=(work, sent, number), daemon=True)
    process.start()
    return process


def _run(work: Callable[..., None], sent: bytes, number: int) -> None:
    """One of the processes."""
    work(pickle.loads(sent), number)


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Processes that are started here have so many threads."""
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
