"""The order in which candidates are tried: the original, half precision, int8, fewer bits; then smaller networks.

Cheap ones come first, and the search ends when one keeps all limits. A smaller network is judged before it is
fine-tuned: where refitting its layers is enough, no training is paid for; and where it is not, the one that has lost
least is trained first.
"""

import math
from dataclasses import replace

from afina.jobs.candidates.pool import THE_ORIGINAL, CandidatePool
from afina.jobs.candidates.proposals import Proposals
from afina.jobs.candidates.variants import Reduction, Variant
from afina.types import Budget, Candidate

INT8 = Variant("int8")


class Search:
    """Tries candidates in order of their cost to the user's time, until the budget is met.

    Args:
        pool: Judges them.
        thorough: Go on when a candidate already fits.
    """

    def __init__(self, pool: CandidatePool, thorough: bool) -> None:
        self._pool, self._thorough, self._budget = pool, thorough, pool.budget

    def run(self) -> list[Candidate]:
        """All candidates, judged or rejected; the original is the first.

        The order matters: what is planned for the limits, and how far reductions go, start from the judged int8.
        """
        self._pool.add("untrained", self._untrained())
        if self._enough():
            return self._pool.candidates
        self._pool.add("planned", self._planned())
        if self._enough():
            return self._pool.candidates
        for reductions in Proposals(self._pool).rounds():
            if self._try_all(reductions):
                break
        return self._pool.candidates

    def _untrained(self) -> list[Variant]:
        """The variants that need neither a training nor a plan."""
        bf16 = [Variant("bf16")] if self._pool.job.runtime.computes_bf16() else []
        return [THE_ORIGINAL, Variant("half"), *bf16, INT8]

    def _planned(self) -> list[Variant]:
        """The variants with a precision for each layer, for limits that int8 everywhere does not keep."""
        int8 = self._pool.judged(INT8)
        over = self._pool.excess(int8) if int8 else {}
        variants = [Variant("few-bits")] if "size" in over else []
        if self._budget.latency is not None and (self._thorough or int8 is None or "latency" in over):
            variants.append(Variant("placed"))
        return variants

    def _try_all(self, reductions: list[Reduction]) -> bool:
        """Judge all reductions untrained, then train the most promising; gives whether that ends the search."""
        for reduction in reductions:
            self._pool.add(reduction.name, [Variant(form, reduction) for form in reduction.forms])
            if self._enough():
                return True
        losses = {reduction: self._pool.least_loss(reduction) for reduction in reductions}
        promising = [
            reduction for reduction in sorted(reductions, key=losses.__getitem__) if losses[reduction] < math.inf
        ]
        for reduction in promising if self._thorough or limits_resources(self._budget) else promising[:1]:
            variants = [Variant(form, reduction, tuned=True) for form in reduction.forms]
            self._pool.add(variants[0].network_name, variants)
            if self._enough():
                return True
        return self._too_far(reductions)

    def _enough(self) -> bool:
        """Whether to stop: a candidate keeps all limits, and one of them is on size, latency or memory."""
        return not self._thorough and limits_resources(self._budget) and self._pool.fits()

    def _too_far(self, reductions: list[Reduction]) -> bool:
        """Whether a harsher ratio is pointless: this one keeps all limits but the drop."""
        if self._thorough or self._budget.max_drop is None:
            return False
        judged = [candidate for reduction in reductions for candidate in self._pool.judged_of(reduction)]
        return bool(judged) and all("max_drop" in self._pool.excess(candidate) for candidate in judged)


def limits_resources(budget: Budget) -> bool:
    """Whether size, latency or memory is limited."""
    return replace(budget, max_drop=None) != Budget()
