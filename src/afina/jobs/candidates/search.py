"""The candidates of a run, cheap ones first: the original, half precision, int8, fewer bits; then smaller networks.

A smaller network is judged before it is fine-tuned: where refitting its layers is enough, no training is paid for; and
where it is not, the one that has lost least is trained first.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from afina.budget import decide, drop_of, excess
from afina.errors import AfinaError
from afina.graph.network import Network
from afina.jobs.candidates.judging import ORIGINAL, Draft, add_latency, judge, rejected
from afina.jobs.candidates.proposals import FEW_BITS, FLOAT, INT8, Way, Ways, limited
from afina.jobs.candidates.stages import Job
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.bits import fit_size
from afina.jobs.planning.precisions import plan_precisions
from afina.techniques import quantize
from afina.training import FitConfig, fit
from afina.types import Budget, Candidate, Epoch, MetricInfo, Record, Step
from afina.units import format_value

_PROBE_IMAGES = 32
PLACED = "placed"
# Settings of the fine-tuning that a recipe repeats.
_TUNING = ("epochs", "learning_rate", "optimizer", "batch_size", "precision", "keep_fp32")


class Search:
    """Tries candidates in order of their cost to the user's time, until the budget is met.

    Args:
        job: The run.
        original: The adapted network.
        budget: Limits.
        metric: The metric that the drop is in.
        finetune: How a smaller network is trained.
        thorough: Go on when a candidate already fits.
    """

    def __init__(
        self,
        job: Job,
        original: Network,
        budget: Budget,
        metric: MetricInfo,
        finetune: FitConfig,
        thorough: bool,
    ) -> None:
        self.job, self.original, self.budget, self.metric = job, original, budget, metric
        self.finetune, self.thorough = finetune, thorough
        self.candidates: list[Candidate] = []
        self._ways = Ways(job, original, budget, self._known, self._roughly_int8)

    def run(self) -> list[Candidate]:
        """All candidates, judged or rejected; the original is the first."""
        for tier, drafts in (("untrained", self._untrained), ("planned", self._planned)):
            self._try(tier, drafts())
            if self._enough():
                return self.candidates
        for ways in self._ways.rounds():
            if self._tried(ways):
                break
        return self.candidates

    def _tried(self, ways: list[Way]) -> bool:
        """Judge all ways untrained, then train the most promising; gives whether that is the end of the search."""
        for way in ways:
            self._try(way.name, self._files(way, way.name, partial(self._refitted, way)))
            if self._enough():
                return True
        worth = [way for way in sorted(ways, key=self._lost) if self._lost(way) < math.inf]
        for way in worth if self.thorough or limited(self.budget) else worth[:1]:
            name = f"{way.name}-tuned"
            self._try(name, self._files(way, name, partial(self._trained, way)))
            if self._enough():
                return True
        return self._too_far(ways)

    def _untrained(self) -> dict[str, Callable[[], Draft]]:
        return {
            ORIGINAL: lambda: Draft(ORIGINAL, self.original),
            "half": lambda: self._halved("half", "fp16"),
            **({"bf16": lambda: self._halved("bf16", "bf16")} if self.job.runtime.computes_bf16() else {}),
            INT8: lambda: self._int8(Draft(ORIGINAL, self.original), INT8),
        }

    def _halved(self, name: str, weights: str) -> Draft:
        config = quantize.QuantizeConfig(weights=weights, activations="none")
        step = Step("quantize", {"weights": weights, "activations": "none"})
        return self._quantized(Draft(ORIGINAL, self.original), name, config, step)

    def _planned(self) -> dict[str, Callable[[], Draft]]:
        """Precisions chosen layer by layer for the limits that int8 everywhere does not keep."""
        int8 = self._known(INT8)
        over = excess(int8, self.candidates[0], self.budget, self.metric) if int8 else {}
        start, found = Draft(ORIGINAL, self.original), dict[str, Callable[[], Draft]]()
        if "size" in over:
            found[FEW_BITS] = lambda: self._in_few_bits(start, FEW_BITS)
        if self.budget.latency is not None and (self.thorough or int8 is None or "latency" in over):
            found[PLACED] = lambda: self._placed(start)
        return found

    def _known(self, name: str) -> Candidate | None:
        """A candidate that was judged."""
        return next((c for c in self.candidates if c.name == name and c.status == "judged"), None)

    def _in_few_bits(self, draft: Draft, name: str) -> Draft:
        """Bits of the weights shared out over the layers for the limit on size."""
        assert self.budget.size is not None
        source, context = quantize.Source.of(draft.network), self.job.context(draft.network)
        config = fit_size(source, self._integers(), self.budget.size, self._exporter, context)
        return self._quantized(draft, name, config, Step("quantize", {"plan": "bits", "size": self.budget.size}))

    def _placed(self, draft: Draft) -> Draft:
        """Integers where the runtime is faster for them."""
        source, context = quantize.Source.of(draft.network), self.job.context(draft.network)
        config, notes = plan_precisions(source, self._integers(), Budget(), self._exporter, context)
        for note in notes:
            self.job.run.log(note)
        return self._quantized(draft, PLACED, config, Step("quantize", {"plan": "auto"}))

    @property
    def _exporter(self) -> Exporter:
        return Exporter(self.job.runtime, self.job.threads, self.job.batch)

    def _files(self, way: Way, name: str, make: Callable[[], Draft]) -> dict[str, Callable[[], Draft]]:
        """The drafts of one way, by their names: one for each precision."""
        found = {
            FLOAT: (name, make),
            INT8: (f"{name}-{INT8}", lambda: self._int8(make(), f"{name}-{INT8}")),
            FEW_BITS: (f"{name}-{FEW_BITS}", lambda: self._in_few_bits(make(), f"{name}-{FEW_BITS}")),
        }
        return dict(found[precision] for precision in way.precisions)

    def _lost(self, way: Way) -> float:
        """The least that a file of this way has lost before any training."""
        return min(
            (drop_of(c, self.candidates[0], self.metric) for c in self._of([way]) if c.status == "judged"),
            default=math.inf,
        )

    def _of(self, ways: list[Way]) -> list[Candidate]:
        """The candidates of some ways."""
        names = {way.name for way in ways}
        return [c for c in self.candidates if "-".join(c.name.split("-")[:2]) in names]

    def _try(self, tier: str, drafts: dict[str, Callable[[], Draft]]) -> None:
        """Judge the drafts of one tier, then time them interleaved with the original."""
        if not drafts:
            return
        known = [self._judged(name, make) for name, make in drafts.items()]
        timed = [c for c in self.candidates if c.name == ORIGINAL] + known
        result = self.job.stage(
            f"latency-{tier}",
            list[Candidate],
            lambda: add_latency(self.job, timed, self.original.input.shape),
        )
        for candidate in result[len(timed) - len(known) :]:
            self.candidates.append(self._relative(candidate, result[0]))
        for candidate in known:
            text = (
                f"{candidate.name}: {candidate.reason}"
                if candidate.status == "rejected"
                else self._line(candidate.name)
            )
            self.job.progress.say(text)
            self.job.run.log(text)

    def _judged(self, name: str, make: Callable[[], Draft]) -> Candidate:
        files = ["work/original-outputs.npy"] if name == ORIGINAL else []

        def build() -> Candidate:
            try:
                draft = make()
            except AfinaError as error:
                if name == ORIGINAL:
                    raise
                return rejected(name, (), error)
            candidate = judge(self.job, draft, self.original)
            if candidate.file:
                path = self.job.run.path(candidate.file)
                files.extend(str(part.relative_to(self.job.run.folder)) for part in self.job.runtime.files(path))
            return candidate

        return self.job.stage(f"judge-{name}", Candidate, build, files=files)

    def _relative(self, candidate: Candidate, original: Candidate) -> Candidate:
        """Latency on the original's scale: later tiers are timed beside the original, and a machine's pace drifts."""
        if candidate.name == ORIGINAL or candidate.status == "rejected" or not self.candidates:
            return candidate
        first, again = self.candidates[0].measurements["latency"], original.measurements["latency"]
        mine = candidate.measurements["latency"]
        pace = first.value / again.value
        spread = None if mine.spread is None else mine.spread * pace
        scaled = replace(mine, value=mine.value * pace, spread=spread)
        return replace(candidate, measurements={**candidate.measurements, "latency": scaled})

    def _int8(self, draft: Draft, name: str) -> Draft:
        step = Step("quantize", {"weights": INT8, "activations": INT8})
        return self._quantized(draft, name, self._integers(), step)

    def _roughly_int8(self, network: Network) -> Network:
        """In int8 where only the file's size and speed matter."""
        config = replace(self._integers(), calibration="minmax", rounding="nearest")
        return quantize.apply(network, config, self.job.context(network, _PROBE_IMAGES))[0]

    def _integers(self) -> quantize.QuantizeConfig:
        runtime = self.job.runtime
        return quantize.QuantizeConfig(policy=runtime.policy())

    def _quantized(self, draft: Draft, name: str, config: quantize.QuantizeConfig, step: Step) -> Draft:
        network, record = quantize.apply(draft.network, config, self.job.context(draft.network))
        return replace(
            draft, name=name, network=network, recipe=(*draft.recipe, step), records=(*draft.records, record)
        )

    def _refitted(self, way: Way) -> Draft:
        """The smaller network, its layers refitted to the original's; kept in the run folder."""

        def build() -> Record:
            self.job.progress.say(f"{way.reducer.doing} {way.ratio:.0%} away and refitting the layers that are left.")
            network, record = way.reducer.reduce(way.ratio)
            self.job.keep_network(way.name, network)
            return record

        record = self.job.stage(f"reduce-{way.name}", Record, build, files=[self.job.network_file(way.name)])
        return Draft(way.name, self.job.load_network(way.name), (way.reducer.step(record),), (record,))

    def _trained(self, way: Way) -> Draft:
        """The smaller network, fine-tuned with the original as its teacher; kept in the run folder."""
        start, name = self._refitted(way), f"{way.name}-tuned"

        def build() -> tuple[Epoch, ...]:
            self.job.progress.say(f"Fine-tuning {name} for {self.finetune.epochs} epochs, taught by the original.")
            tuned, curve = fit(
                start.network, self.job.data, self.finetune, teacher=self.original, progress=self.job.progress,
                checkpoint=self.job.run.path(f"work/{name}.checkpoint"),
            )  # fmt: skip
            self.job.keep_network(name, tuned)
            return curve

        curve = self.job.stage(f"train-{name}", tuple[Epoch, ...], build, files=[self.job.network_file(name)])
        self.job.run.path(f"work/{name}.checkpoint").unlink(missing_ok=True)
        step = Step("distill", {key: getattr(self.finetune, key) for key in _TUNING})
        return replace(start, name=name, network=self.job.load_network(name), recipe=(*start.recipe, step), curve=curve)

    def _enough(self) -> bool:
        """Whether to stop: everything asked for is met, and a limit on resources says when it is enough."""
        if self.thorough or not limited(self.budget):
            return False
        return decide(self.candidates, self.candidates[0], self.budget, self.metric).verdict == "fits"

    def _too_far(self, ways: list[Way]) -> bool:
        """Whether a harsher ratio is pointless: this one keeps all limits but the drop."""
        if self.thorough or self.budget.max_drop is None:
            return False
        tried = [c for c in self._of(ways) if c.status == "judged"]
        over = [excess(c, self.candidates[0], self.budget, self.metric) for c in tried]
        return bool(over) and all("max_drop" in limits for limits in over)

    def _line(self, name: str) -> str:
        candidate = next(c for c in self.candidates if c.name == name)
        shown = ("quality", "size", "latency", "peak_memory")
        numbers = [candidate.measurements[key] for key in shown if key in candidate.measurements]
        return f"{name}: " + ", ".join(format_value(m.value, m.unit) for m in numbers)
