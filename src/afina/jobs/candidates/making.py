"""How each variant is made: the network reduced, fine-tuned, quantized; float networks are kept in the run folder."""

from dataclasses import dataclass, replace
from functools import cached_property

from afina.graph.network import Network
from afina.jobs.candidates.judging import Draft
from afina.jobs.candidates.stages import Job
from afina.jobs.candidates.variants import ORIGINAL, Reduction, Variant
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.bits import fit_size
from afina.jobs.planning.precisions import plan_precisions
from afina.techniques import quantize
from afina.training import FitConfig, fit
from afina.types import Budget, Epoch, Record, Step

_PROBE_IMAGES = 32
# Settings of the fine-tuning that a recipe repeats: options of `distill` by the same names.
_REPEATED = ("epochs", "learning_rate", "optimizer", "batch_size", "precision", "keep_fp32")


@dataclass(frozen=True)
class Maker:
    """Makes drafts of variants of one network.

    Attributes:
        job: The run.
        original: The network.
        budget: Limits.
        finetuning: The settings of the training of a smaller network.
    """

    job: Job
    original: Network
    budget: Budget
    finetuning: FitConfig

    def make(self, variant: Variant) -> Draft:
        """The network of a variant, with the recipe that leads to it."""
        draft = self._float(variant)
        match variant.form:
            case "float":
                return draft
            case "half":
                return self._in_16_bits(draft, variant, "fp16")
            case "bf16":
                return self._in_16_bits(draft, variant, "bf16")
            case "int8":
                step = Step("quantize", {"weight_type": "int8", "activation_type": "int8"})
                return self._quantized(draft, variant, self.integers, step)
            case "few-bits":
                return self._in_few_bits(draft, variant)
            case "placed":
                return self._placed(draft, variant)

    @cached_property
    def exporter(self) -> Exporter:
        """Exports and times for the target runtime."""
        return Exporter(self.job.runtime, self.job.threads, self.job.batch)

    @property
    def integers(self) -> quantize.QuantizeConfig:
        """The configuration with integers everywhere, by the policy of the runtime."""
        return quantize.QuantizeConfig(policy=self.job.runtime.policy())

    def roughly_int8(self, network: Network) -> Network:
        """The network in int8, quickly: its file has the right size and speed, and its quality does not matter."""
        config = replace(self.integers, calibration="minmax", rounding="nearest")
        return quantize.apply(network, config, self.job.context(network, _PROBE_IMAGES))[0]

    def _float(self, variant: Variant) -> Draft:
        if variant.reduction is None:
            return Draft(ORIGINAL, self.original)
        return self._trained(variant.reduction) if variant.tuned else self._refitted(variant.reduction)

    def _in_16_bits(self, draft: Draft, variant: Variant, weight_type: str) -> Draft:
        config = quantize.QuantizeConfig(weights=weight_type, activations="none")
        step = Step("quantize", {"weight_type": weight_type, "activation_type": "none"})
        return self._quantized(draft, variant, config, step)

    def _in_few_bits(self, draft: Draft, variant: Variant) -> Draft:
        """The draft with bits of the weights shared out over the layers for the limit on size."""
        assert self.budget.size is not None
        source, context = quantize.Source.of(draft.network), self.job.context(draft.network)
        config = fit_size(source, self.integers, self.budget.size, self.exporter, context)
        return self._quantized(draft, variant, config, Step("quantize", {"plan": "bits", "size": self.budget.size}))

    def _placed(self, draft: Draft, variant: Variant) -> Draft:
        """The draft with integers in those layers where the runtime is faster for them."""
        source, context = quantize.Source.of(draft.network), self.job.context(draft.network)
        config, notes = plan_precisions(source, self.integers, Budget(), self.exporter, context)
        for note in notes:
            self.job.run.log(note)
        return self._quantized(draft, variant, config, Step("quantize", {"plan": "auto"}))

    def _quantized(self, draft: Draft, variant: Variant, config: quantize.QuantizeConfig, step: Step) -> Draft:
        network, record = quantize.apply(draft.network, config, self.job.context(draft.network))
        return replace(
            draft,
            name=variant.name,
            network=network,
            recipe=(*draft.recipe, step),
            records=(*draft.records, record),
        )

    def _refitted(self, reduction: Reduction) -> Draft:
        """The smaller network, its layers refitted to the original's."""
        name, reducer = reduction.name, reduction.reducer

        def build() -> Record:
            self.job.progress.say(f"{reducer.doing} {reduction.ratio:.0%} away and refitting the layers that are left.")
            network, record = reducer.reduce(reduction.ratio)
            self.job.keep_network(name, network)
            return record

        record = self.job.stage(f"reduce-{name}", Record, build, files=[self.job.network_file(name)])
        return Draft(name, self.job.load_network(name), (reducer.step(record),), (record,))

    def _trained(self, reduction: Reduction) -> Draft:
        """The smaller network, fine-tuned with the original as its teacher."""
        start, name = self._refitted(reduction), f"{reduction.name}-tuned"

        def build() -> tuple[Epoch, ...]:
            self.job.progress.say(f"Fine-tuning {name} for {self.finetuning.epochs} epochs, taught by the original.")
            network, curve = fit(
                start.network, self.job.data, self.finetuning, teacher=self.original, progress=self.job.progress,
                checkpoint=self.job.run.path(f"work/{name}.checkpoint"),
            )  # fmt: skip
            self.job.keep_network(name, network)
            return curve

        curve = self.job.stage(f"train-{name}", tuple[Epoch, ...], build, files=[self.job.network_file(name)])
        self.job.run.path(f"work/{name}.checkpoint").unlink(missing_ok=True)
        recipe = (*start.recipe, Step("distill", {name: getattr(self.finetuning, name) for name in _REPEATED}))
        return replace(start, name=name, network=self.job.load_network(name), recipe=recipe, curve=curve)
