"""Reductions that are worth a try: what makes the network smaller, how far, and in which precisions.

Networks become smaller by pruning and by factorization, alone or with fewer bits. With a limit on size or time, the
gentlest reduction that can keep it is proposed; without one, a few plain ratios.
"""

import math
from collections.abc import Iterator
from functools import cached_property

from afina.errors import AfinaError
from afina.jobs.candidates.pool import THE_ORIGINAL, CandidatePool
from afina.jobs.candidates.probing import STEPS, Probes, first_within
from afina.jobs.candidates.reducers import Factorizer, Pruner, Reducer
from afina.jobs.candidates.variants import Form, Reduction, Variant

# Training images that the statistics of reducers rest on.
IMAGES = 512
# Ratios that are looked at when a limit on resources says how far to go; without one, a few plain ones are tried.
_RATIOS = tuple(step / STEPS for step in range(1, 61))
_PLAIN_RATIOS = (0.25, 0.5, 0.75)


class Proposals:
    """Finds the reductions that can keep a budget's limits on resources.

    Args:
        pool: The run, its limits, and what came of the variants before.
    """

    def __init__(self, pool: CandidatePool) -> None:
        self._pool, self._job, self._budget = pool, pool.job, pool.budget
        self._probes = Probes(pool)

    def rounds(self) -> Iterator[list[Reduction]]:
        """Reductions to try together: with limits on size or time, those that can keep them; else harsher each time."""
        if self._budget.size is None and self._budget.latency is None:
            for ratio in _PLAIN_RATIOS:
                fitting = [reducer for reducer in self._reducers if ratio <= self._most(reducer)]
                yield [Reduction(reducer, ratio, ("float", "int8")) for reducer in fitting]
            return
        reductions: list[Reduction] = []
        for reducer in self._reducers:
            gentlest = self._gentlest(reducer)
            if gentlest is not None:
                reductions += [*self._in_fewer_bits(reducer, gentlest), Reduction(reducer, gentlest, ("float", "int8"))]
        yield reductions

    def _in_fewer_bits(self, reducer: Reducer, ratio: float) -> list[Reduction]:
        """The reduction that goes half of the way, with fewer bits for the rest; none where no size is limited.

        Shares of what is left multiply: for a ratio of 0.75 a quarter is left, a half by each of the two.
        """
        half = math.floor((1 - math.sqrt(1 - ratio)) * STEPS) / STEPS
        return [Reduction(reducer, half, ("few-bits",))] if self._budget.size is not None and half > 0 else []

    def _gentlest(self, reducer: Reducer) -> float | None:
        """The smallest ratio that can keep the limits on resources; None where none can."""
        most = self._most(reducer)
        ratios = [ratio for ratio in _RATIOS if ratio <= most]
        # Where int8 keeps the limits on resources, it has lost too much quality: a float file is looked for.
        of_int8 = self._probes.share_of_limits_of(self._pool.judged(Variant("int8")))
        form: Form = "int8" if of_int8 is None or of_int8 > 1 else "float"
        start = self._probes.share_of_limits_of(self._pool.judged(THE_ORIGINAL)) if form == "float" else of_int8
        with self._job.progress.work(f"Sizing networks to {reducer.name}", len(ratios).bit_length()) as bar:

            def excess(index: int) -> float:
                value = self._probes.share_of_limits(reducer, ratios[index], form)
                bar.advance(note=f"ratio {ratios[index]:g}")
                return value

            index = first_within(excess, len(ratios), start)
        if index is not None:
            return ratios[index]
        # What prunes goes as far as it can, so that the answer is the nearest to the limits that there is.
        return ratios[-1] if ratios and reducer.name == Pruner.name else None

    def _most(self, reducer: Reducer) -> float:
        """The largest ratio that the reducer can remove; 0 where it cannot change the network."""

        def build() -> float:
            try:
                return reducer.most()
            except AfinaError:
                return 0.0

        return self._job.stage(f"most-{reducer.name}", float, build)

    @cached_property
    def _reducers(self) -> tuple[Reducer, ...]:
        """The reducers in the order in which they are tried: factorization first where size alone is limited.

        They remove parameters where the size is limited, else MACs.
        """
        timed, maker = self._budget.latency is not None, self._pool.maker
        costs = "macs" if self._budget.size is None else "parameters"
        context = self._job.context(maker.original, IMAGES)
        pruner = Pruner(maker.original, costs, context, timed)
        factorizer = Factorizer(maker.original, costs, context, timed, maker.exporter)
        return (pruner, factorizer) if timed or self._budget.size is None else (factorizer, pruner)
