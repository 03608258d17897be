"""The candidates of a run, cheap ones first: the original, half precision, int8, fewer bits; then pruned, and tuned.

Before any network is pruned for good, one of the same shape is exported and timed, since size and latency do not
depend on its weights: only ratios that can keep the limits on size, latency and memory cost more. A pruned network is
judged before it is fine-tuned: where refitting its layers is enough, no training is paid for.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from afina.budget import decide, excess
from afina.errors import AfinaError
from afina.graph.cost import layer_rows
from afina.graph.network import Network
from afina.jobs.exporting import Exporter
from afina.jobs.judge import ORIGINAL, Draft, add_latency, file_size, judge, rejected
from afina.jobs.planning import Planner
from afina.jobs.precision import fit_size
from afina.jobs.stages import Job
from afina.runtimes import measure_latency
from afina.techniques import prune, quantize
from afina.techniques.context import Context
from afina.training import FitConfig, fit
from afina.types import Budget, Candidate, Epoch, Measurement, MetricInfo, Record, Step

# Ratios that are looked at when a limit on resources says how far to go; without one, a few plain ones are tried.
RATIOS = tuple(step / 64 for step in range(1, 61))
PLAIN_RATIOS = (0.25, 0.5, 0.75)
# Kernels like channels in eights; where layers are narrower than this, steps of eight would be too coarse.
_NARROW = 64
_PROBE_IMAGES = 32
INT8 = "int8"
_PRUNING_IMAGES = 512
# A probe is a file of the same shape, timed once: within this share of the limit it is worth a training.
_PROBE_SLACK = 1.05


@dataclass(frozen=True)
class Probe:
    """What pruning at `ratio`, then int8, would weigh (bytes) and take (seconds, where that is limited)."""

    ratio: float
    size: float
    latency: float | None = None


class Search:
    """Tries candidates in order of their cost to the user's time, until the budget is met.

    Args:
        job: The run.
        original: The adapted network.
        budget: Limits.
        metric: The metric that the drop is in.
        finetune: How a pruned network is trained.
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

    def run(self) -> list[Candidate]:
        """All candidates, judged or rejected; the original is the first."""
        for tier, drafts in (("untrained", self._untrained), ("few-bits", self._few_bits)):
            self._try(tier, drafts())
            if self._enough():
                return self.candidates
        for ratio in self._ratios():
            self._try(f"pruned-{ratio:.3f}", self._pruned(ratio))
            if self._enough():
                break
            self._try(f"tuned-{ratio:.3f}", self._tuned(ratio))
            if self._enough() or self._too_far(ratio):
                break
        return self.candidates

    def _untrained(self) -> dict[str, Callable[[], Draft]]:
        return {
            ORIGINAL: lambda: Draft(ORIGINAL, self.original),
            "half": lambda: self._halved("half", "fp16"),
            **({"bf16": lambda: self._halved("bf16", "bf16")} if self.job.runtime.computes_bf16() else {}),
            INT8: lambda: self._int8(Draft(ORIGINAL, self.original), INT8),
        }

    def _halved(self, name: str, weights: str) -> Draft:
        config = quantize.QuantizeConfig(weights=weights, activations="none")
        return self._quantized(Draft(ORIGINAL, self.original), name, config, self.job.context(self.original))

    def _few_bits(self) -> dict[str, Callable[[], Draft]]:
        """Bits shared out over the layers for the limit on size, where int8 alone does not keep it."""
        int8 = next(c for c in self.candidates if c.name == INT8)
        limit = self.budget.size
        if limit is None or int8.status != "judged" or int8.measurements["size"].value <= limit:
            return {}
        return {"few-bits": lambda: self._in_few_bits("few-bits", limit)}

    def _in_few_bits(self, name: str, limit: float) -> Draft:
        exporter = Exporter(self.job.runtime, self.job.threads, self.job.batch)
        context = self.job.context(self.original)
        source = quantize.Source.of(self.original)
        config = fit_size(source, self._integers(), limit, exporter, context)
        return self._quantized(Draft(ORIGINAL, self.original), name, config, context)

    def _pruned(self, ratio: float) -> dict[str, Callable[[], Draft]]:
        name = f"prune-{ratio:g}"
        return {
            name: lambda: self._refitted(name, ratio),
            f"{name}-int8": lambda: self._int8(self._refitted(name, ratio), f"{name}-int8"),
        }

    def _tuned(self, ratio: float) -> dict[str, Callable[[], Draft]]:
        name = f"prune-{ratio:g}-tuned"
        return {
            name: lambda: self._trained(name, ratio),
            f"{name}-int8": lambda: self._int8(self._trained(name, ratio), f"{name}-int8"),
        }

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

    def _int8(self, draft: Draft, name: str, quick: bool = False) -> Draft:
        """In int8; `quick` where only the file's size and speed matter."""
        config = self._integers()
        if quick:
            config = replace(config, calibration="minmax", rounding="nearest")
        context = self.job.context(draft.network, _PROBE_IMAGES) if quick else self.job.context(draft.network)
        return self._quantized(draft, name, config, context)

    def _integers(self) -> quantize.QuantizeConfig:
        runtime = self.job.runtime
        return quantize.QuantizeConfig(weight_bits=runtime.weight_bits(), fused=runtime.fuses, sums=runtime.sums)

    @staticmethod
    def _quantized(draft: Draft, name: str, config: quantize.QuantizeConfig, context: Context) -> Draft:
        network, record = quantize.apply(draft.network, config, context)
        return replace(
            draft,
            name=name,
            network=network,
            recipe=(*draft.recipe, record.step),
            records=(*draft.records, record),
        )

    @cached_property
    def _planner(self) -> Planner:
        """Shares out what is to go: parameters where the size is limited, MACs where it is not."""
        narrowest = min((row.output[0] for row in layer_rows(self.original)[:-1] if row.output), default=_NARROW)
        wide = narrowest >= _NARROW or self.budget.latency is not None
        config = prune.PruneConfig(multiple=8 if wide else 4)
        study = prune.Study(self.original, config, self.job.context(self.original, _PRUNING_IMAGES))
        return Planner(study, "global", "macs" if self.budget.size is None else "parameters")

    def _counts(self, ratio: float) -> dict[str, int]:
        """What each axis keeps when `ratio` of the cost goes."""
        return self._planner.counts((1 - ratio) * self._planner.sizing.total({}))

    def _refitted(self, name: str, ratio: float) -> Draft:
        """The pruned network, its layers refitted to the original's; kept in the run folder."""

        def build() -> Record:
            self.job.progress.say(f"Pruning {ratio:.0%} away and refitting the layers that are left.")
            network, record = self._planner.study.prune(self._counts(ratio))
            self.job.keep_network(name, network)
            return record

        record = self.job.stage(f"prune-{name}", Record, build, files=[self.job.network_file(name)])
        return Draft(name, self.job.load_network(name), (record.step,), (record,))

    def _trained(self, name: str, ratio: float) -> Draft:
        """The pruned network, fine-tuned with the original as its teacher; kept in the run folder."""
        start = self._refitted(f"prune-{ratio:g}", ratio)

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
        recipe = (*start.recipe, Step("finetune", {**asdict(self.finetune), "teacher": ORIGINAL}))
        return replace(start, name=name, network=self.job.load_network(name), recipe=recipe, curve=curve)

    def _ratios(self) -> tuple[float, ...]:
        """Which ratios to train: the gentlest that can keep the limits on resources, or the harshest if none can.

        Size and latency fall as the ratio grows, so the gentlest is found by bisection.
        """
        if self._resources() == Budget():
            return PLAIN_RATIOS
        low, high = 0, len(RATIOS) - 1
        with self.job.progress.work("Sizing pruned networks", math.ceil(math.log2(len(RATIOS)))) as bar:
            while low < high:
                middle = (low + high) // 2
                if self._can_fit(self._probe(RATIOS[middle])):
                    high = middle
                else:
                    low = middle + 1
                bar.advance(note=f"ratio {RATIOS[middle]:g}")
        return (RATIOS[low],)

    def _probe(self, ratio: float) -> Probe:
        """Export a network of the shape that `ratio` gives, in int8, and time it where time is limited."""

        def build() -> Probe:
            name = f"probe-{ratio:g}"
            try:
                draft = self._int8(Draft(name, self._planner.shape(self._counts(ratio))), name, quick=True)
            except AfinaError as error:
                self.job.run.log(f"{name}: {error}")
                return Probe(ratio, math.inf)
            path = self.job.run.path(f"work/{name}/model{self.job.runtime.suffix}")
            self.job.runtime.export(draft.network, path)
            latency = None if self.budget.latency is None else self._latency(path)
            probe = Probe(ratio, file_size(self.job, path).value, latency)
            told = "" if latency is None else f" and {latency * 1e3:.3f} ms"
            self.job.run.log(f"{name}: int8 would take {probe.size:.0f} B{told}")
            return probe

        return self.job.stage(f"probe-{ratio:g}", Probe, build)

    def _latency(self, path: Path) -> float:
        """Of a file, timed beside the original and on its first scale."""
        files = {ORIGINAL: self.job.run.path(self.candidates[0].file or ""), "probe": path}
        times = measure_latency(files, self.original.input.shape, threads=self.job.threads, batch=self.job.batch)
        return times["probe"].value * self.candidates[0].measurements["latency"].value / times[ORIGINAL].value

    def _can_fit(self, probe: Probe) -> bool:
        size, latency = self.budget.size, self.budget.latency
        if probe.latency is not None and latency is not None and probe.latency > latency * _PROBE_SLACK:
            return False
        return probe.size <= (math.inf if size is None else size)

    def _resources(self) -> Budget:
        return replace(self.budget, max_drop=None)

    def _enough(self) -> bool:
        """Whether to stop: everything asked for is met, and a limit on resources says when it is enough."""
        if self.thorough or self._resources() == Budget():
            return False
        return decide(self.candidates, self.candidates[0], self.budget, self.metric).verdict == "fits"

    def _too_far(self, ratio: float) -> bool:
        """Whether a harsher ratio is pointless: this one keeps all limits but the drop."""
        if self.thorough or self.budget.max_drop is None:
            return False
        tried = [c for c in self.candidates if c.name.startswith(f"prune-{ratio:g}") and c.status == "judged"]
        over = [excess(c, self.candidates[0], self.budget, self.metric) for c in tried]
        return bool(over) and all("max_drop" in limits for limits in over)

    def _line(self, name: str) -> str:
        from afina.units import format_value

        candidate = next(c for c in self.candidates if c.name == name)
        shown = ("quality", "size", "latency", "peak_memory")
        numbers: list[Measurement] = [candidate.measurements[key] for key in shown if key in candidate.measurements]
        return f"{name}: " + ", ".join(format_value(m.value, m.unit) for m in numbers)
