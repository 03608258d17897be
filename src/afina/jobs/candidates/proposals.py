"""Ways to a smaller network that are worth a try: what makes it smaller, how far, and in which precisions.

Networks become smaller by pruning and by factorization, alone or with fewer bits. Before any is made for good, one of
the same shape is exported and timed, since size and latency do not depend on its weights: only ratios that can keep the
limits on size and latency cost more.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from afina.devices import measure_latency
from afina.errors import AfinaError
from afina.graph.network import Network
from afina.jobs.candidates.judging import ORIGINAL, file_size
from afina.jobs.candidates.reducers import Factorizer, Pruner, Reducer
from afina.jobs.candidates.stages import Job
from afina.jobs.common.exporter import Exporter
from afina.types import Budget, Candidate

FLOAT, INT8, FEW_BITS = "float", "int8", "few-bits"
# Training images that the statistics of reducers rest on.
IMAGES = 512
# Ratios that are looked at when a limit on resources says how far to go; without one, a few plain ones are tried.
_STEPS = 64
_RATIOS = tuple(step / _STEPS for step in range(1, 61))
_PLAIN_RATIOS = (0.25, 0.5, 0.75)
# A probe is a file of the same shape, timed once: within this share of the limit it is worth a training.
_PROBE_SLACK = 1.05


@dataclass(frozen=True)
class Way:
    """One way to a smaller network.

    Attributes:
        reducer: What makes it smaller.
        ratio: How much goes.
        precisions: Of its files.
    """

    reducer: Reducer
    ratio: float
    precisions: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.reducer.name}-{self.ratio:.2f}"


@dataclass(frozen=True)
class Probe:
    """What a network without `ratio` of the cost would weigh (bytes) and take (seconds, where that is limited)."""

    ratio: float
    size: float
    latency: float | None = None


class Ways:
    """Finds the ways that can keep a budget's limits on resources.

    Args:
        job: The run.
        original: The network that is to become smaller.
        budget: Limits.
        known: A candidate by its name, where it was judged.
        int8: A network of the same form in int8, made without care.
    """

    def __init__(
        self,
        job: Job,
        original: Network,
        budget: Budget,
        known: Callable[[str], Candidate | None],
        int8: Callable[[Network], Network],
    ) -> None:
        self._job, self._original, self._budget, self._known, self._int8 = job, original, budget, known, int8

    def rounds(self) -> Iterator[list[Way]]:
        """Ways to try together: with limits on size or time, those that can keep them; else the harshest."""
        if self._budget.size is None and self._budget.latency is None:
            for ratio in _PLAIN_RATIOS:
                yield [Way(reducer, ratio, (FLOAT, INT8)) for reducer in self._reducers if ratio <= self._most(reducer)]
            return
        found: list[Way] = []
        for reducer in self._reducers:
            gentlest = self._gentlest(reducer)
            if gentlest is not None:
                found += [*self._in_fewer_bits(reducer, gentlest), Way(reducer, gentlest, (FLOAT, INT8))]
        yield found

    def _in_fewer_bits(self, reducer: Reducer, ratio: float) -> list[Way]:
        """Half of the way by the reducer, half of it by bits, where the size is limited."""
        half = math.floor((1 - math.sqrt(1 - ratio)) * _STEPS) / _STEPS
        return [Way(reducer, half, (FEW_BITS,))] if self._budget.size is not None and half > 0 else []

    def _gentlest(self, reducer: Reducer) -> float | None:
        """The smallest ratio that can keep the limits on resources; None where none can."""
        most = self._most(reducer)
        ratios = [ratio for ratio in _RATIOS if ratio <= most]
        # Where int8 keeps the limits and something else is wrong with it, what is left is to look for a float file.
        start = self._excess_of(INT8)
        form = INT8 if start is None or start > 1 else FLOAT
        start = self._excess_of(ORIGINAL) if form == FLOAT else start
        with self._job.progress.work(f"Sizing networks to {reducer.name}", len(ratios).bit_length()) as bar:

            def excess(index: int) -> float:
                probe = self._probe(reducer, ratios[index], form)
                bar.advance(note=f"ratio {ratios[index]:g}")
                return self._excess(probe.size, (probe.latency or 0.0) / _PROBE_SLACK)

            found = first_within(excess, len(ratios), start)
        # What prunes goes as far as it can, so that the answer is the nearest to the limits that there is.
        return ratios[found] if found is not None else ratios[-1] if ratios and reducer.name == Pruner.name else None

    def _most(self, reducer: Reducer) -> float:
        """The largest ratio that can go; 0 where the network has nothing for it."""

        def build() -> float:
            try:
                return reducer.most()
            except AfinaError:
                return 0.0

        return self._job.stage(f"most-{reducer.name}", float, build)

    def _excess_of(self, name: str) -> float | None:
        """The largest share of its limit that a candidate has; None where it was not judged."""
        known = self._known(name)
        if known is None:
            return None
        return self._excess(known.measurements["size"].value, known.measurements["latency"].value)

    def _probe(self, reducer: Reducer, ratio: float, form: str) -> Probe:
        """Export a network of the shape that `ratio` gives, and time it where time is limited."""
        name = f"probe-{reducer.name}-{ratio:g}-{form}"

        def build() -> Probe:
            try:
                network = reducer.shape(ratio)
                network = self._int8(network) if form == INT8 else network
            except AfinaError as error:
                self._job.run.log(f"{name}: {error}")
                return Probe(ratio, math.inf)
            path = self._job.run.path(f"work/{name}/model{self._job.runtime.suffix}")
            self._job.runtime.export(network, path)
            latency = None if self._budget.latency is None else self._latency(path)
            probe = Probe(ratio, file_size(self._job, path).value, latency)
            told = "" if latency is None else f" and {latency * 1e3:.3f} ms"
            self._job.run.log(f"{name}: would take {probe.size:.0f} B{told}")
            return probe

        return self._job.stage(name, Probe, build)

    def _latency(self, path: Path) -> float:
        """Of a file, timed beside the original and on its first scale."""
        first = self._known(ORIGINAL)
        assert first is not None
        files = {ORIGINAL: self._job.run.path(first.file or ""), "probe": path}
        times = measure_latency(files, self._original.input.shape, threads=self._job.threads, batch=self._job.batch)
        return times["probe"].value * first.measurements["latency"].value / times[ORIGINAL].value

    def _excess(self, size: float, latency: float) -> float:
        """The largest share of its limit that a file's size or latency is."""
        limits = ((size, self._budget.size), (latency, self._budget.latency))
        return max((value / limit for value, limit in limits if limit is not None), default=0.0)

    @cached_property
    def _reducers(self) -> tuple[Reducer, ...]:
        """Parameters go where the size is limited, MACs where it is not; where time counts, chains are the last."""
        timed = self._budget.latency is not None
        costs = "macs" if self._budget.size is None else "parameters"
        context = self._job.context(self._original, IMAGES)
        pruner = Pruner(self._original, costs, context, timed)
        exporter = Exporter(self._job.runtime, self._job.threads, self._job.batch)
        factorizer = Factorizer(self._original, costs, context, timed, exporter)
        return (pruner, factorizer) if timed or self._budget.size is None else (factorizer, pruner)


def limited(budget: Budget) -> bool:
    """Whether size, latency or memory is limited."""
    return replace(budget, max_drop=None) != Budget()


def first_within(excess: Callable[[int], float], count: int, start: float | None = None) -> int | None:
    """The first of `count` steps at which `excess`, which falls from step to step, is at most 1; None where none is.

    Between a step that is too much and one that is not, the next to look at is on the line through both; every third
    time it is the middle, so that no shape of the curve takes long.

    Args:
        excess: Of a step, 0 or more.
        count: How many steps there are.
        start: Excess before the first step, where it is known.
    """
    low, high = -1, count
    above, below, beyond = start, 0.0, True
    looked = 0
    while high - low > 1:
        looked += 1
        guess = (low + high) // 2
        if above is not None and 1 < above < math.inf and looked % 3:
            width = _STEPS - 1 - low if beyond else high - low
            guess = min(max(low + math.ceil(width * (above - 1) / (above - below)), low + 1), high - 1)
        value = excess(guess)
        if value <= 1:
            high, below, beyond = guess, value, False
        else:
            low, above = guess, value
    return None if high == count else high
