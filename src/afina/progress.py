"""What a job tells its user while it works: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO


class Bar(Protocol):
    """One piece of long work."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar by `steps`; `note` is shown beside it."""


class Progress:
    """Says nothing: the base class, and the choice for `--quiet` and for use as a library."""

    def say(self, text: str) -> None:
        """Show one line to the user."""

    def warn(self, text: str) -> None:
        """Show something that the user must not miss."""
        self.say(f"WARNING: {text}")

    @contextlib.contextmanager
    def work(self, label: str, total: int) -> Iterator[Bar]:
        """Long work of `total` steps; gives the bar to advance."""
        yield _NoBar()


class PlainProgress(Progress):
    """Plain lines, at most one in `every` seconds for each piece of work: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream, self._every = stream or sys.stderr, every

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def work(self, label: str, total: int) -> Iterator[Bar]:
        yield _PlainBar(self, label, total, self._every)


class RichProgress(Progress):
    """Bars with the time left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"WARNING: {text}", markup=False, style="bold red")

    @contextlib.contextmanager
    def work(self, label: str, total: int) -> Iterator[Bar]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, TextColumn("{task.fields[note]}"), console=self._console, transient=True) as bars:
            task = bars.add_task(label, total=total, note="")

            class _RichBar:
                def advance(self, steps: int = 1, note: str = "") -> None:
                    if note:
                        bars.update(task, note=note)
                    bars.advance(task, steps)

            yield _RichBar()


class _NoBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _PlainBar:
    def __init__(self, progress: Progress, label: str, total: int, every: float) -> None:
        self._progress, self._label, self._total, self._every = progress, label, total, every
        self._done, self._start = 0, time.monotonic()
        self._last = self._start

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last >= self._every and self._done < self._total:
            left = (now - self._start) / self._done * (self._total - self._done)
            self._progress.say(
                f"{self._label}: {self._done}/{self._total} {note} ({left:.0f} s left)".replace("  ", " ")
            )
            self._last = now
