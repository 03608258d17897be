"""The limits of a run and what was reached: the comparison, the limits and the verdict in one sentence.

Derived from a `Result` once, and shown by the page, the card and the terminal alike, so that they cannot
disagree.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from afina.reporting.words import difference, listing, metric_words, signed_difference, times
from afina.types import CONFIDENCE, Candidate, Measurement, Result
from afina.units import format_measurement, format_value

# A drop of exactly the limit is allowed, and 0.98 - 0.97 is a little more than 0.01 in binary.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Measure:
    """A measurement by its key in `Candidate.measurements`, with the words for less and for more of it."""

    key: str
    label: str
    less: str = ""
    more: str = ""


MEASURES = (
    Measure("quality", "Quality"),
    Measure("size", "Size", "smaller", "larger"),
    Measure("latency", "Latency", "faster", "slower"),
    Measure("peak_memory", "Peak memory", "less", "more"),
    Measure("parameters", "Parameters", "fewer", "more"),
    Measure("macs", "MACs", "fewer", "more"),
)


@dataclass(frozen=True)
class Limit:
    """One limit of the budget, and how the winner stands to it.

    Attributes:
        name: The field of `Budget`.
        measure: The key of the measurement that it limits.
        label: The label in reports.
        allowed: The limit, formatted.
        reached: The winner's value, formatted; `not measured` where it is missing.
        met: Whether it is met; None where it was not measured.
        share: The winner's value as a share of the limit (negative: a gain); None where that means nothing.
        sure: Whether that is so with 95% confidence.
    """

    name: str
    measure: str
    label: str
    allowed: str
    reached: str
    met: bool | None
    share: float | None
    sure: bool = True

    @property
    def state(self) -> str:
        """`met`, `missed`, `not measured`; `within the error` where the images are too few to be sure."""
        words = {True: "met", False: "missed", None: "not measured"}[self.met]
        return words if self.sure else f"{words}, within the error"


@dataclass(frozen=True)
class Row:
    """One line of the comparison of the original with the winner."""

    measure: Measure
    label: str
    original: Measurement | None
    winner: Measurement | None
    change: str
    better: bool | None
    limit: Limit | None


def comparison(result: Result) -> tuple[Row, ...]:
    """The original beside the winner, measurement by measurement; those that neither has are left out."""
    original, winner = result.candidate(result.original), result.candidate(result.winner)
    by_measure = {limit.measure: limit for limit in limits(result)}
    rows = []
    for measure in MEASURES:
        tested = measure.key == "quality" and "test_quality" in winner.measurements
        key = "test_quality" if tested else measure.key
        before, after = original.measurements.get(key), winner.measurements.get(key)
        limit = by_measure.get(measure.key)
        if before or after or limit:
            change, better = _change(result, measure, before, after)
            label = quality_label(result) if measure.key == "quality" else measure.label
            label += " (test)" if tested else ""
            rows.append(Row(measure, label, before, after, change, better, limit))
    return tuple(rows)


def limits(result: Result) -> tuple[Limit, ...]:
    """The limits that were set, in the order size, latency, memory, drop, and where the winner stands."""
    budget, winner = result.budget, result.candidate(result.winner)
    maxima = (
        ("size", "size", "Size", budget.size),
        ("latency", "latency", "Latency", budget.latency),
        ("memory", "peak_memory", "Peak memory", budget.memory),
    )
    rows = [_limit(winner, name, key, label, most) for name, key, label, most in maxima if most is not None]
    if budget.max_drop is not None:
        rows.append(_drop_limit(result, winner, budget.max_drop))
    return tuple(rows)


def exceeded(result: Result, candidate: Candidate) -> frozenset[str]:
    """The keys of the measurements in which a candidate exceeds the budget."""
    budget = result.budget
    most = {"size": budget.size, "latency": budget.latency, "peak_memory": budget.memory}
    over = {
        key
        for key, limit in most.items()
        if limit is not None and key in candidate.measurements and candidate.measurements[key].value > limit
    }
    drop = reported_drop(result, candidate)
    if budget.max_drop is not None and drop is not None and drop > budget.max_drop + _ROUNDING:
        over.add("quality")
    return frozenset(over)


def reported_drop(result: Result, candidate: Candidate) -> float | None:
    """What a candidate loses of the original's quality on the validation images; None where one has no quality."""
    before = result.candidate(result.original).measurements.get("quality")
    after = candidate.measurements.get("quality")
    if before is None or after is None:
        return None
    return result.metric.lost(before.value, after.value)


def judged_quality(candidate: Candidate) -> Measurement | None:
    """The quality on the images that judge: those of the test split, where there is one."""
    return candidate.measurements.get("test_quality") or candidate.measurements.get("quality")


def quality_bound(result: Result) -> float | None:
    """The worst quality that the budget allows; None where it does not say."""
    before = result.candidate(result.original).measurements.get("quality")
    if before is None or result.budget.max_drop is None:
        return None
    return before.value + (-1 if result.metric.higher_is_better else 1) * result.budget.max_drop


def best_achievable(result: Result) -> tuple[tuple[str, str, str], ...]:
    """With `misses`: for each limit that was set, its label, the best value reached, and by which candidate."""
    names = {candidate.name for candidate in result.candidates}
    rows = []
    for limit in limits(result):
        name = result.best_achievable.get(limit.name, "")
        if name in names:
            rows.append((limit.label, _reached(result, result.candidate(name), limit), name))
        elif name:
            rows.append((limit.label, name, ""))
    return tuple(rows)


def headline(result: Result) -> str:
    """The verdict in one or two sentences: the limits, and what was reached."""
    winner, all_limits = result.winner, limits(result)
    got, doubt = _got(result), "" if result.is_sure else f" {certainty(result)}"
    if not all_limits:
        return f"No limit was set. {winner} {got}."
    request = f"You asked for at most {listing(_limit_words(result, all_limits))}"
    if result.fits:
        if result.winner == result.original:
            return f"{request}; the original already fits: it {got}."
        return f"{request}; {winner} {got}.{doubt}"
    over = [limit.label.lower() for limit in all_limits if limit.met is False]
    unknown = [limit.label.lower() for limit in all_limits if limit.met is None]
    reasons = [f"over in {listing(over)}"] if over else []
    reasons += [f"without a figure for {listing(unknown)}"] if unknown else []
    blame = f"; it is {listing(reasons)}" if reasons else ""
    return f"{request}; no candidate fits. The nearest, {winner}, {got}{blame}.{doubt}"


def certainty(result: Result) -> str:
    """How sure the winner's drop is, in a sentence or two; empty where there is no error to tell it by."""
    judged = result.judged
    if judged is None or judged.error is None:
        return ""
    drop = "drop" if judged.value >= 0 else "gain"
    value, error = (difference(number, result.metric.share) for number in (judged.value, judged.error))
    text = f"On {judged.images:,} {judged.split} images the {drop} is {value}, ± {error}: "
    text += f"with {CONFIDENCE:.0%} confidence it is {_at_most(judged.high, result.metric.share)}."
    if result.is_sure:
        return text
    if judged.needed is None:
        return f"{text} It is so near to the limit that more images would hardly settle it."
    return f"{text} About {judged.needed:,} images like these would settle whether it keeps the limit."


def title(result: Result) -> str:
    """`resnet20 on cifar10`: the last part of each name, without the path to it."""
    return f"{_short(result.model)} on {_short(result.data)}"


def quality_label(result: Result) -> str:
    """The metric's name with a capital."""
    words = metric_words(result.metric)
    return words[:1].upper() + words[1:]


def pareto(points: Iterable[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The points (cost, quality) that no other point beats in both, by rising cost.

    Example:
        >>> pareto([(3.0, 0.9), (1.0, 0.7), (2.0, 0.6)], higher_is_better=True)
        [(1.0, 0.7), (3.0, 0.9)]
    """
    front: list[tuple[float, float]] = []
    sign = 1 if higher_is_better else -1
    best = -math.inf
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if sign * quality > best:
            best = sign * quality
            front.append((cost, quality))
    return front


def _change(
    result: Result, measure: Measure, before: Measurement | None, after: Measurement | None
) -> tuple[str, bool | None]:
    """The change in words, and whether it is for the better."""
    if before is None or after is None:
        return "", None
    if measure.key == "quality":
        gain = after.value - before.value
        text = signed_difference(gain, after.share)
        return text, None if text == "same" else (gain > 0) == result.metric.higher_is_better
    if before.value <= 0 or after.value <= 0:
        return "", None
    ratio = before.value / after.value
    if 0.995 < ratio < 1.005:
        return "same", None
    return (f"{times(ratio)} {measure.less}", True) if ratio > 1 else (f"{times(1 / ratio)} {measure.more}", False)


def _limit(winner: Candidate, name: str, key: str, label: str, most: float) -> Limit:
    reached = winner.measurements.get(key)
    unit = "s" if name == "latency" else "B"
    if reached is None:
        return Limit(name, key, label, format_value(most, unit), "not measured", None, None)
    text = format_measurement(reached)
    return Limit(name, key, label, format_value(most, unit), text, reached.value <= most, reached.value / most)


def _drop_limit(result: Result, winner: Candidate, most: float) -> Limit:
    allowed = difference(most, result.metric.share)
    if "quality" not in winner.measurements:
        return Limit("max_drop", "quality", "Drop", allowed, "not measured", None, None)
    reached, used = _drop_words(result.drop, result.metric.share), result.drop / most if most > 0 else None
    met, judged = result.drop <= most + _ROUNDING, result.judged
    sure = judged is None or judged.error is None or (judged.high <= most + _ROUNDING if met else judged.low > most)
    return Limit("max_drop", "quality", "Drop", allowed, reached, met, used, sure)


def _at_most(high: float, share: bool) -> str:
    return (
        f"a drop of at most {difference(high, share)}" if high > 0 else f"a gain of at least {difference(high, share)}"
    )


def _drop_words(drop: float, share: bool) -> str:
    if signed_difference(drop, share) == "same":
        return "none"
    return difference(drop, share) if drop > 0 else f"a gain of {difference(drop, share)}"


def _reached(result: Result, candidate: Candidate, limit: Limit) -> str:
    if limit.name == "max_drop":
        drop = reported_drop(result, candidate)
        return "not measured" if drop is None else _drop_words(drop, result.metric.share)
    measurement = candidate.measurements.get(limit.measure)
    return format_measurement(measurement) if measurement else "not measured"


def _limit_words(result: Result, all_limits: Iterable[Limit]) -> list[str]:
    words = {"size": "{}", "latency": "{}", "memory": "{} of memory", "max_drop": "a drop of {}"}
    return [words[limit.name].format(limit.allowed) for limit in all_limits]


def _got(result: Result) -> str:
    """What the winner needs and what it loses: `needs 117 KB (9.4× smaller) and 0.41 ms, and loses 0.28 points`."""
    parts = []
    for row in comparison(result):
        if row.measure.key in ("size", "latency") or (row.limit and row.measure.key == "peak_memory"):
            if row.winner is None:
                continue
            text = format_measurement(row.winner)
            text += " of memory" if row.measure.key == "peak_memory" else ""
            parts.append(f"{text} ({row.change})" if row.change not in ("", "same") else text)
    needs = f"needs {listing(parts)}" if parts else ""
    quality = judged_quality(result.candidate(result.winner))
    if quality is None or result.winner == result.original:
        return needs or "was not measured"
    loses = _drop_words(result.drop, quality.share)
    metric = metric_words(result.metric)
    if loses == "none":
        effect = f"keeps the {metric} of the original"
    elif quality.share:
        effect = f"{'loses' if result.drop > 0 else 'gains'} {difference(result.drop, quality.share)} of {metric}"
    else:
        effect = f"is {'worse' if result.drop > 0 else 'better'} by {difference(result.drop, quality.share)} ({metric})"
    return f"{needs}, and {effect}" if needs else effect


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1] or name
