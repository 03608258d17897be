"""What a network of some shape would weigh and take, before it is made for good: one of the same shape is exported.

Size and latency do not depend on weights, so that no image is needed: only a reduction that can keep the limits costs
more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afina.devices import measure_latency
from afina.errors import AfinaError
from afina.jobs.candidates.judging import file_size
from afina.jobs.candidates.pool import CandidatePool
from afina.jobs.candidates.reducers import Reducer
from afina.jobs.candidates.variants import ORIGINAL, Form
from afina.types import Candidate

# Ratios that are looked at: steps of one in so many.
STEPS = 64
# A probe is timed once: within this share of the limit it is worth a training.
_SLACK = 1.05


@dataclass(frozen=True)
class Probe:
    """The size (bytes) and latency (seconds, where it is limited) of a network without `ratio` of its cost."""

    ratio: float
    size: float
    latency: float | None = None


class Probes:
    """Probes of one network's reductions, kept in the run folder.

    Args:
        pool: The run, its limits, and the original's figures.
    """

    def __init__(self, pool: CandidatePool) -> None:
        self._pool, self._job, self._budget = pool, pool.job, pool.budget

    def share_of_limits(self, reducer: Reducer, ratio: float, form: Form) -> float:
        """The largest share of its limit that a file's size or latency would be, in `float` or `int8`."""
        probe = self._probe(reducer, ratio, form)
        return self._share(probe.size, (probe.latency or 0.0) / _SLACK)

    def share_of_limits_of(self, candidate: Candidate | None) -> float | None:
        """The largest share of its limit that a candidate has; None where there is no candidate."""
        if candidate is None:
            return None
        return self._share(candidate.measurements["size"].value, candidate.measurements["latency"].value)

    def _share(self, size: float, latency: float) -> float:
        limits = ((size, self._budget.size), (latency, self._budget.latency))
        return max((value / limit for value, limit in limits if limit is not None), default=0.0)

    def _probe(self, reducer: Reducer, ratio: float, form: Form) -> Probe:
        name = f"probe-{reducer.name}-{ratio:g}-{form}"

        def build() -> Probe:
            try:
                network = reducer.shape(ratio)
                network = self._pool.maker.roughly_int8(network) if form == "int8" else network
            except AfinaError as error:
                self._job.run.log(f"{name}: {error}")
                return Probe(ratio, math.inf)
            path = self._job.run.path(f"work/{name}/model{self._job.runtime.suffix}")
            self._job.runtime.export(network, path)
            latency = None if self._budget.latency is None else self._latency(path)
            probe = Probe(ratio, file_size(self._job, path).value, latency)
            time = "" if latency is None else f" and {latency * 1e3:.3f} ms"
            self._job.run.log(f"{name}: would take {probe.size:.0f} B{time}")
            return probe

        return self._job.stage(name, Probe, build)

    def _latency(self, path: Path) -> float:
        """Seconds of a file, timed beside the original and on its first scale."""
        original, shape = self._pool.original, self._pool.maker.original.input.shape
        files = {ORIGINAL: self._job.run.path(original.file or ""), "probe": path}
        times = measure_latency(files, shape, threads=self._job.threads, batch=self._job.batch)
        return times["probe"].value * original.measurements["latency"].value / times[ORIGINAL].value


def first_within(excess: Callable[[int], float], count: int, start: float | None = None) -> int | None:
    """The first of `count` steps at which `excess`, which falls from step to step, is at most 1; None where none is.

    Between a step that is too much and one that is not, the next to look at is on the line through both; every third
    time it is the middle, so that no shape of the curve takes long. With an excess of 2 before the first of 60 steps,
    each of which takes 0.25, the steps that are looked at are

        31 (excess 0), 15 (0), 7 (0), 3 (1.0), 2 (1.25): step 3 is the first within the limit

    Args:
        excess: The excess of a step, 0 or more.
        count: The number of steps.
        start: Excess before the first step, where it is known.

    Example:
        >>> first_within(lambda step: 2.0 - 0.25 * step, 10)
        4
    """
    low, high = -1, count
    above, below, beyond = start, 0.0, True
    tries = 0
    while high - low > 1:
        tries += 1
        guess = (low + high) // 2
        if above is not None and 1 < above < math.inf and tries % 3:
            # The whole way from the present step: to the last ratio that there is, or to the nearest that is within.
            width = STEPS - 1 - low if beyond else high - low
            guess = min(max(low + math.ceil(width * (above - 1) / (above - below)), low + 1), high - 1)
        value = excess(guess)
        if value <= 1:
            high, below, beyond = guess, value, False
        else:
            low, above = guess, value
    return None if high == count else high
