"""The order in which candidates are tried: the original, half precision, int8, fewer bits; then smaller networks.

Cheap ones come first, and the search ends when one keeps all limits. A smaller network is judged before it is
fine-tuned: where refitting its layers is enough, no training is paid for; and where it is not, the one that has lost
least is trained first.
"""

import math
from dataclasses import replace

from afina.jobs.candidates.proposals import Proposals
from afina.jobs.candidates.tried import THE_ORIGINAL, Tried
from afina.jobs.candidates.variants import Reduction, Variant
from afina.types import Budget, Candidate

INT8 = Variant("int8")


class Search:
    """Tries candidates in order of their cost to the user's time, until the budget is met.

    Args:
        tried: Judges them.
        thorough: Go on when a candidate already fits.
    """

    def __init__(self, tried: Tried, thorough: bool) -> None:
        self._tried, self._thorough, self._budget = tried, thorough, tried.budget

    def run(self) -> list[Candidate]:
        """All candidates, judged or rejected; the original is the first."""
        self._tried.add("untrained", self._untrained())
        if self._enough():
            return self._tried.candidates
        self._tried.add("planned", self._planned())
        if self._enough():
            return self._tried.candidates
        for reductions in Proposals(self._tried).rounds():
            if self._try_all(reductions):
                break
        return self._tried.candidates

    def _untrained(self) -> list[Variant]:
        """The variants that need neither a training nor a plan."""
        bf16 = [Variant("bf16")] if self._tried.job.runtime.computes_bf16() else []
        return [THE_ORIGINAL, Variant("half"), *bf16, INT8]

    def _planned(self) -> list[Variant]:
        """The variants with a precision for each layer, for limits that int8 everywhere does not keep."""
        int8 = self._tried.judged(INT8)
        over = self._tried.excess(int8) if int8 else {}
        variants = [Variant("few-bits")] if "size" in over else []
        if self._budget.latency is not None and (self._thorough or int8 is None or "latency" in over):
            variants.append(Variant("placed"))
        return variants

    def _try_all(self, reductions: list[Reduction]) -> bool:
        """Judge all reductions untrained, then train the most promising; gives whether that ends the search."""
        for reduction in reductions:
            self._tried.add(reduction.name, [Variant(form, reduction) for form in reduction.forms])
            if self._enough():
                return True
        losses = {reduction: self._tried.least_loss(reduction) for reduction in reductions}
        worth = [reduction for reduction in sorted(reductions, key=losses.__getitem__) if losses[reduction] < math.inf]
        for reduction in worth if self._thorough or limits_resources(self._budget) else worth[:1]:
            variants = [Variant(form, reduction, tuned=True) for form in reduction.forms]
            self._tried.add(variants[0].network_name, variants)
            if self._enough():
                return True
        return self._too_far(reductions)

    def _enough(self) -> bool:
        """Whether to stop: a candidate keeps all limits, and one of them is on size, latency or memory."""
        return not self._thorough and limits_resources(self._budget) and self._tried.fits()

    def _too_far(self, reductions: list[Reduction]) -> bool:
        """Whether a harsher ratio is pointless: this one keeps all limits but the drop."""
        if self._thorough or self._budget.max_drop is None:
            return False
        judged = [candidate for reduction in reductions for candidate in self._tried.judged_of(reduction)]
        return bool(judged) and all("max_drop" in self._tried.excess(candidate) for candidate in judged)


def limits_resources(budget: Budget) -> bool:
    """Whether size, latency or memory is limited."""
    return replace(budget, max_drop=None) != Budget()
