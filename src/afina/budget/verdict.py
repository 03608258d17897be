"""The verdict: which candidate to deploy, and whether it keeps every limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from afina.types import Budget, Candidate, MetricInfo

# Which measurement each limit is about; the drop is derived from `quality`.
_TINY = 1e-12
_MEASUREMENT = {"size": "size", "latency": "latency", "memory": "peak_memory"}


@dataclass(frozen=True)
class Decision:
    """What to deploy.

    Attributes:
        verdict: `fits` or `misses`.
        winner: The candidate to deploy; with `misses`, the nearest to the limits.
        drop: Quality that the winner loses against the original (negative: a gain).
        best_achievable: With `misses`, the name of the candidate that comes nearest to each limit.
        warnings: One sentence for each cost in which the winner is worse than the original.
    """

    verdict: Literal["fits", "misses"]
    winner: Candidate
    drop: float
    best_achievable: dict[str, str]
    warnings: tuple[str, ...]


def decide(candidates: Sequence[Candidate], original: Candidate, budget: Budget, metric: MetricInfo) -> Decision:
    """Choose among the judged candidates (the original is one of them).

    Among those that keep every limit: with `max_drop` set, the user has said what quality is worth, and what is
    left to win is size and speed: the smallest product of size and latency, both relative to the original.
    Without it: the best quality, then the same product. Among those that do not, the one that exceeds least.
    """
    judged = [c for c in candidates if c.status == "judged"]
    misses = {c.name: excess(c, original, budget, metric) for c in judged}
    fitting = [c for c in judged if not misses[c.name]]
    if fitting:
        winner = min(fitting, key=lambda c: _preference(c, original, budget, metric))
        best: dict[str, str] = {}
    else:
        winner = min(judged, key=lambda c: (sum(misses[c.name].values()), _cost(c, original)))
        best = {limit: _nearest(limit, judged, original, metric) for limit in _limits(budget)}
    return Decision(
        verdict="fits" if fitting else "misses",
        winner=winner,
        drop=drop_of(winner, original, metric),
        best_achievable=best,
        warnings=_warnings(winner, original),
    )


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


def _preference(candidate: Candidate, original: Candidate, budget: Budget, metric: MetricInfo) -> tuple[float, float]:
    cost, drop = _cost(candidate, original), drop_of(candidate, original, metric)
    return (cost, drop) if budget.max_drop is not None else (drop, cost)


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
