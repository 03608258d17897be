"""The candidates of a run so far: variants judged as files, timed beside the original, with what they lost."""

import math
from collections.abc import Sequence
from dataclasses import replace

from afina.budget import decide, drop_of, excess
from afina.errors import AfinaError
from afina.jobs.candidates.judging import ORIGINAL_OUTPUTS, add_latency, judge, rejected
from afina.jobs.candidates.making import Maker
from afina.jobs.candidates.variants import Reduction, Variant
from afina.types import Candidate, MetricInfo
from afina.units import format_measurement

_SHOWN = ("quality", "size", "latency", "peak_memory")
THE_ORIGINAL = Variant()


class CandidatePool:
    """Judges variants, and holds the candidates that came of them.

    Args:
        maker: Makes the networks.
        metric: The metric that drops are in.
    """

    def __init__(self, maker: Maker, metric: MetricInfo) -> None:
        self.maker, self.metric, self.job, self.budget = maker, metric, maker.job, maker.budget
        self._candidates: dict[Variant, Candidate] = {}

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates, judged or rejected, in the order in which they were tried; the original is the first."""
        return list(self._candidates.values())

    @property
    def original(self) -> Candidate:
        """The original, judged."""
        return self._candidates[THE_ORIGINAL]

    def judged(self, variant: Variant) -> Candidate | None:
        """The judged candidate of a variant; None where it was not tried, or was rejected."""
        candidate = self._candidates.get(variant)
        return candidate if candidate is not None and candidate.status == "judged" else None

    def judged_of(self, reduction: Reduction) -> list[Candidate]:
        """All candidates of one reduction that were judged, trained or not."""
        return [
            candidate
            for variant, candidate in self._candidates.items()
            if variant.reduction == reduction and candidate.status == "judged"
        ]

    def least_loss(self, reduction: Reduction) -> float:
        """The least that a file of a reduction has lost; infinite where none was judged."""
        losses = (drop_of(candidate, self.original, self.metric) for candidate in self.judged_of(reduction))
        return min(losses, default=math.inf)

    def excess(self, candidate: Candidate) -> dict[str, float]:
        """The limits that a candidate breaks, and by how much."""
        return excess(candidate, self.original, self.budget, self.metric)

    def fits(self) -> bool:
        """Whether one of them keeps all limits."""
        return decide(self.candidates, self.original, self.budget, self.metric).verdict.startswith("fits")

    def add(self, tier: str, variants: Sequence[Variant]) -> None:
        """Judge the variants of one tier, then time them in turns with the original.

        Args:
            tier: Name of the tier, by which a resumed run knows its timings.
            variants: What to judge.
        """
        if not variants:
            return
        judged = [self._judge(variant) for variant in variants]
        first = [self.original] if self._candidates else []
        timed = self.job.stage(
            f"latency-{tier}",
            list[Candidate],
            lambda: add_latency(self.job, [*first, *judged], self.maker.original.input.shape),
        )
        for variant, candidate in zip(variants, timed[len(first) :], strict=True):
            self._candidates[variant] = self._on_first_scale(candidate, timed[0])
            self._report(self._candidates[variant])

    def _judge(self, variant: Variant) -> Candidate:
        name, files = variant.name, [ORIGINAL_OUTPUTS] if variant == THE_ORIGINAL else []

        def build() -> Candidate:
            try:
                draft = self.maker.make(variant)
            except AfinaError as error:
                if variant == THE_ORIGINAL:
                    raise
                return rejected(name, (), error)
            candidate = judge(self.job, draft, self.maker.original)
            if candidate.file:
                path = self.job.run.path(candidate.file)
                files.extend(str(part.relative_to(self.job.run.folder)) for part in self.job.runtime.files(path))
            return candidate

        return self.job.stage(f"judge-{name}", Candidate, build, files=files)

    def _on_first_scale(self, candidate: Candidate, original: Candidate) -> Candidate:
        """The candidate with its latency on the scale of the first tier, since a machine's pace drifts.

        Each tier is timed beside the original. Where that took 10 ms in the first tier and takes 12 ms in this one, a
        candidate at 6 ms is written as 6 * 10 / 12 = 5 ms.
        """
        if candidate.status == "rejected" or not self._candidates:
            return candidate
        pace = self.original.measurements["latency"].value / original.measurements["latency"].value
        latency = candidate.measurements["latency"]
        spread = None if latency.spread is None else latency.spread * pace
        scaled = replace(latency, value=latency.value * pace, spread=spread)
        return replace(candidate, measurements={**candidate.measurements, "latency": scaled})

    def _report(self, candidate: Candidate) -> None:
        if candidate.status == "rejected":
            text = candidate.reason
        else:
            measured = [candidate.measurements[key] for key in _SHOWN if key in candidate.measurements]
            text = ", ".join(format_measurement(m) for m in measured)
        self.job.progress.say(f"{candidate.name}: {text}")
        self.job.run.log(f"{candidate.name}: {text}")
