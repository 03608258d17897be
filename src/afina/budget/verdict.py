"""The verdict: which candidate to deploy, and whether it keeps every limit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afina.budget.confidence import judged_drop, verdict_on
from afina.types import CONFIDENCE, Budget, Candidate, JudgedDrop, Measurement, MetricInfo, Verdict
from afina.units import format_value

# Which measurement each limit is about; the drop is derived from `quality`.
_TINY = 1e-12
_MEASUREMENT = {"size": "size", "latency": "latency", "memory": "peak_memory"}


@dataclass(frozen=True)
class Decision:
    """What to deploy.

    Attributes:
        verdict: Whether it keeps the limits.
        winner: The candidate to deploy; with `misses`, the nearest to the limits.
        drop: Quality that the winner loses against the original (negative: a gain).
        judged: How sure the drop is; None for the original.
        best_achievable: With `misses`, the name of the candidate that comes nearest to each limit.
        warnings: One sentence for each cost in which the winner is worse than the original, and for what is cheaper
            than the winner and may keep the limit too.
    """

    verdict: Verdict
    winner: Candidate
    drop: float
    judged: JudgedDrop | None
    best_achievable: dict[str, str]
    warnings: tuple[str, ...]


def decide(
    candidates: Sequence[Candidate], original: Candidate, budget: Budget, metric: MetricInfo, split: str = "validation"
) -> Decision:
    """Choose among the judged candidates (the original is one of them).

    Among those that keep every limit: with `max_drop` set, the user has said what quality is worth, and what is
    left to win is size and speed: the smallest product of size and latency, both relative to the original; of what is
    smaller or faster than the original, those whose drop keeps its limit with 95% confidence go first.
    Without it: the best quality, then the same product. Among those that do not, the one that exceeds least.

    Args:
        candidates: All that were tried.
        original: What drops are against.
        budget: The limits.
        metric: What quality is.
        split: The split that their quality is of.
    """
    judged = [c for c in candidates if c.status == "judged"]
    misses = {c.name: excess(c, original, budget, metric) for c in judged}
    fitting = [c for c in judged if not misses[c.name]]
    if fitting:
        winner = min(fitting, key=lambda c: _preference(c, original, budget, metric))
    else:
        winner = min(judged, key=lambda c: (sum(misses[c.name].values()), _cost(c, original)))
    drop = None if winner.name == original.name else winner.measurements.get("drop")
    verdict, certainty = judge(misses[winner.name], drop, budget, metric, split)
    best = {} if fitting else {limit: _nearest(limit, judged, original, metric) for limit in _limits(budget)}
    return Decision(
        verdict=verdict,
        winner=winner,
        drop=drop_of(winner, original, metric),
        judged=certainty,
        best_achievable=best,
        warnings=(*_warnings(winner, original), *_cheaper(winner, fitting, original, budget, metric)),
    )


def judge(
    misses: Mapping[str, float], drop: Measurement | None, budget: Budget, metric: MetricInfo, split: str
) -> tuple[Verdict, JudgedDrop | None]:
    """The verdict on a candidate, and how sure its drop is.

    Args:
        misses: The limits that it breaks, as `excess` gives them.
        drop: Its drop with the paired error; None for the original, or where it is not known.
        budget: The limits.
        metric: What is lost.
        split: The split that the drop is of.
    """
    plain: Verdict = "misses" if misses else "fits"
    if drop is None:
        return plain, None
    judged = judged_drop(drop, metric, budget.max_drop, split)
    if budget.max_drop is None or drop.spread is None or set(misses) - {"max_drop"}:
        return plain, judged
    return verdict_on(judged, budget.max_drop), judged


def excess(candidate: Candidate, original: Candidate, budget: Budget, metric: MetricInfo) -> dict[str, float]:
    """By how much `candidate` exceeds each limit that it does not keep; empty if it fits.

    Each is a share of its limit: 0.1 is a file 10% too large, or a drop of 1.1 points where 1 is allowed.
    """
    over: dict[str, float] = {}
    for limit, allowed in _limits(budget).items():
        if limit == "max_drop":
            beyond = drop_of(candidate, original, metric) - allowed
            # Quality is a mean of floats: a drop that equals the limit but for rounding keeps it.
            if beyond > 1e-9:
                over[limit] = beyond / max(allowed, _TINY)
        else:
            value = candidate.measurements[_MEASUREMENT[limit]].value
            if value > allowed:
                over[limit] = value / allowed - 1
    return over


def _limits(budget: Budget) -> dict[str, float]:
    limits = {
        "size": budget.size,
        "latency": budget.latency,
        "memory": budget.memory,
        "max_drop": budget.max_drop,
    }
    return {limit: float(value) for limit, value in limits.items() if value is not None}


def drop_of(candidate: Candidate, original: Candidate, metric: MetricInfo) -> float:
    """How much of the metric a judged candidate has lost against the original, in points; negative is a gain."""
    return metric.lost(original.measurements["quality"].value, candidate.measurements["quality"].value)


def _preference(
    candidate: Candidate, original: Candidate, budget: Budget, metric: MetricInfo
) -> tuple[int, float, float]:
    cost, drop = _cost(candidate, original), drop_of(candidate, original, metric)
    if budget.max_drop is None:
        return (0, drop, cost)
    if cost >= 1:
        return (2, cost, drop)
    return (0 if _is_sure(candidate, budget, metric) else 1, cost, drop)


def _is_sure(candidate: Candidate, budget: Budget, metric: MetricInfo) -> bool:
    """Whether a candidate that keeps all limits does so with 95% confidence, as far as its error is known."""
    return judge({}, candidate.measurements.get("drop"), budget, metric, "")[0] == "fits"


def _cheaper(
    winner: Candidate, fitting: Sequence[Candidate], original: Candidate, budget: Budget, metric: MetricInfo
) -> tuple[str, ...]:
    """A sentence on the cheapest candidate that was not taken since its drop is not sure."""
    unsure = [c for c in fitting if c.name != winner.name and not _is_sure(c, budget, metric)]
    cheapest = min(unsure, key=lambda c: _cost(c, original), default=None)
    if budget.max_drop is None or cheapest is None or _cost(cheapest, original) >= min(1.0, _cost(winner, original)):
        return ()
    drop = judged_drop(cheapest.measurements["drop"], metric, budget.max_drop)
    value, high = (format_value(number, metric.name, share=metric.share) for number in (drop.value, drop.high))
    enough = "" if drop.needed is None else f"; about {drop.needed:,} images would settle it"
    sure = f"with {CONFIDENCE:.0%} confidence"
    return (f"{cheapest.name} is cheaper and not taken: it loses {value}, and up to {high} {sure}{enough}.",)


def _cost(candidate: Candidate, original: Candidate) -> float:
    return math.prod(
        candidate.measurements[key].value / original.measurements[key].value
        for key in ("size", "latency")
        if key in candidate.measurements and key in original.measurements
    )


def _nearest(limit: str, judged: Sequence[Candidate], original: Candidate, metric: MetricInfo) -> str:
    if limit == "max_drop":
        return min(judged, key=lambda c: drop_of(c, original, metric)).name
    return min(judged, key=lambda c: c.measurements[_MEASUREMENT[limit]].value).name


def _warnings(winner: Candidate, original: Candidate) -> tuple[str, ...]:
    warnings = []
    for key, word in (("size", "larger"), ("latency", "slower")):
        after, before = winner.measurements[key], original.measurements[key]
        if winner.name != original.name and after.value > before.value + (after.spread or 0) + (before.spread or 0):
            warnings.append(f"{winner.name} is {word} than the original ({after.value / before.value:.2f} times).")
    return tuple(warnings)
