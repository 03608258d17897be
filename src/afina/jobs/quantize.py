"""`afina quantize`: a network in integers, judged as the file that its runtime will run."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from afina.budget import check_images, make_budget
from afina.data import ImageData
from afina.errors import InputError, did_you_mean
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.subject import Subject, open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.quantize import QuantizeOptions
from afina.jobs.options.shared import names
from afina.jobs.planning.bits import fit_size
from afina.jobs.planning.placement import stored_only
from afina.jobs.planning.plan_file import Plan, read_plan, write_plan
from afina.jobs.planning.precisions import plan_precisions
from afina.jobs.planning.quality_guard import Guard
from afina.jobs.planning.quantized_file import (
    cautions,
    check_kept,
    is_slower,
    not_confirmed,
    with_answers,
    with_times,
)
from afina.runtimes import Runtime
from afina.store.files import check_target
from afina.tasks import get_task
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig
from afina.techniques.quantize.apply import finish, prepare
from afina.techniques.quantize.calibration import hold_out
from afina.techniques.quantize.config import FLOAT
from afina.techniques.quantize.contrast import with_contrast
from afina.techniques.quantize.equalize import equalize
from afina.techniques.quantize.halves import keep_wide, kept_note
from afina.techniques.quantize.prepared import Prepared, Source
from afina.training import FitConfig, fit
from afina.training.suited import quantization_aware_training
from afina.types import Budget, Record


def _quantize(options: QuantizeOptions) -> tuple[Network, Record]:
    """Write weights and activations of `model` in fewer bits; gives the network in integers and the record.

    Ranges of activations come from training images; weights are rounded layer by layer so that the layers' outputs
    suffer least. No labels are needed, nor training. The file for `runtime` is what is judged.

    Returns:
        The network, and the record: precision and noise of each layer, cost and quality before and after.

    Raises:
        InputError: an option that is not known or that the runtime cannot run, no images, a limit that cannot be kept.
        NothingToDo: no layer would change.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> network, record = afina.quantize(model, "digits", weight_type="int4", images=128)
        >>> record.touched, record.after["bytes"] < 0.25 * record.before["bytes"]
        (('0', '3'), True)
    """
    start = time.monotonic()
    exporter, plan = Exporter.of(options), _plan(options.plan)
    config = quantize_config(options, exporter.runtime)
    if isinstance(plan, Plan):
        config = plan.configure(config)
    for precision in (config.default, *dict(config.layers).values()):
        exporter.runtime.check_integers(precision.activations)
    if options.save_plan is not None:
        check_target(Path(options.save_plan), "--save-plan", ".json")
    subject = open_subject(options, options.model, options.data, options.images, options.teacher)
    network, record = _Quantization(options, subject, exporter, config, plan, start).run()
    return network, replace(record, seconds=time.monotonic() - start)


quantize = command(QuantizeOptions, _quantize)


def quantize_config(options: QuantizeOptions, runtime: Runtime) -> QuantizeConfig:
    """The configuration of the technique for a runtime. Raises `InputError` where an option is out of range."""
    return QuantizeConfig(
        weights=options.weight_type, activations=options.activation_type, granularity=options.granularity,
        scheme=options.scheme, calibration=options.calibration, rounding=options.rounding, equalize=options.equalize,
        power_of_two=options.power_of_two, full_range=options.full_range,
        policy=runtime.policy(),
        layers=tuple((name, FLOAT) for name in names(options.skip)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Quantization:
    """The quantization of one network.

    Attributes:
        options: What the command line or the caller chose.
        subject: The network and its images.
        exporter: Makes, judges and times files.
        config: The configuration by the options, before a plan changes it.
        plan: A plan from a file, or the kind of plan to make; None for no plan.
        start: When it began, in seconds of `time.monotonic`.
    """

    options: QuantizeOptions
    subject: Subject
    exporter: Exporter
    config: QuantizeConfig
    plan: Literal["auto", "bits"] | Plan | None
    start: float

    def run(self) -> tuple[Network, Record]:
        """The network in integers and its record; the file is judged, and the limits are kept."""
        subject, limits = self.subject, self._limits()
        assert subject.data is not None
        context, contrast = with_contrast(subject.context(subject.network), subject.network.input, self.config)
        source = Source.of(subject.network)
        if isinstance(self.plan, Plan):
            self.plan.check_network(source)
        _check_names(source, self.config)
        hold_out(source, self.config, context)
        original = self.exporter.judge(subject.network, subject.data, subject.progress)
        config, notes = self._planned(source, limits, context)
        source, equalized = equalize(source, config, context)
        config, wide_layers = keep_wide(source, config, context)
        notes += (*equalized, *kept_note(wide_layers), *contrast)

        def build(config_to_build: QuantizeConfig) -> tuple[Network, Record]:
            prepared, prepared_notes = prepare(source, config_to_build, context)
            prepared.placement.skipped.update(wide_layers)
            if self.options.qat:
                prepared_notes += self._train(prepared)
            return finish(subject.network, prepared, context, (*notes, *prepared_notes), self.start)

        guard = Guard(source, subject, self.exporter, original, limits.max_drop, build)
        planned = config
        network, record, kept = self._judged(guard, config)
        if self.plan == "auto" and is_slower(record):
            slow, config = record, stored_only(source, kept)
            subject.progress.say(
                "The last timing does not confirm that integers are faster: all layers compute in float."
            )
            network, record, kept = self._judged(guard, config)
            record = replace(record, notes=(*record.notes, not_confirmed(slow)))
        if kept != planned:
            check_kept(record, limits)
        if self.options.save_plan is not None:
            write_plan(Path(self.options.save_plan), source, kept, self.exporter.runtime.name)
        last = cautions(record, subject, guarded=limits.max_drop is not None)
        return network, replace(record, notes=(*subject.alarms, *record.notes, *last))

    def _judged(self, guard: Guard, config: QuantizeConfig) -> tuple[Network, Record, QuantizeConfig]:
        """The network of a configuration that keeps the quality, its record with the judgement of its file, and that
        of the configurations which was kept."""
        network, record, answers, kept = guard.keep(config)
        record = with_answers(record, guard.original, answers, network, self.subject, self.exporter, guard.max_drop)
        return network, with_times(record, self.subject.network, network, self.exporter), kept

    def _planned(self, source: Source, limits: Budget, context: Context) -> tuple[QuantizeConfig, tuple[str, ...]]:
        """The configuration that the plan gives, and notes on it for the record."""
        if isinstance(self.plan, Plan):
            return self.config, self.plan.notes(self.config, self.exporter.runtime.name)
        if self.plan == "auto":
            return plan_precisions(source, self.config, limits, self.exporter, context)
        if self.plan == "bits":
            assert limits.size is not None
            return fit_size(source, self.config, limits.size, self.exporter, context), ()
        return self.config, ()

    def _limits(self) -> Budget:
        options, data = self.options, self.subject.data
        if (options.size, options.latency, options.max_drop) == (None, None, None):
            return Budget()
        assert data is not None
        task = get_task(self.subject.network.task)
        metric = task.metric if data.labelled else task.agreement
        limits = make_budget(metric, options.size, options.latency, None, options.max_drop)
        check_images(data.count(data.judging), limits, metric)
        return limits

    def _train(self, prepared: Prepared) -> tuple[str, ...]:
        """Train the weights with simulated integers on all edges, with the float network as teacher; gives a note."""
        subject, learn_scales = self.subject, self.options.learn_scales
        assert subject.data is not None
        subject.progress.say(f"Training for {self.options.qat} epochs with simulated integers, taught by the original.")
        prepared.learn(learn_scales)
        trained, curve = fit(
            prepared.network,
            subject.data,
            self._training(subject.data),
            teacher=subject.teacher or prepared.source.network,
            sparse=prepared.source.network,
            progress=subject.progress,
        )
        prepared.adopt(trained)
        what = "weights and scales" if learn_scales else "weights"
        return (f"{what.capitalize()} trained for {len(curve)} epochs with simulated integers.",)

    def _training(self, data: ImageData) -> FitConfig:
        return quantization_aware_training(
            self.subject.network,
            data.count("train"),
            epochs=self.options.qat,
            optimizer=self.options.optimizer,
            learning_rate=self.options.learning_rate,
            seed=self.subject.seed,
        )


def _plan(plan: str | Path | None) -> Literal["auto", "bits"] | Plan | None:
    """The value of `--plan`: `auto`, `bits`, None, or the plan in a file."""
    if plan is None or plan == "auto" or plan == "bits":
        return plan  # type: ignore[return-value]
    return read_plan(Path(plan))


def _check_names(source: Source, config: QuantizeConfig) -> None:
    for name, _ in config.layers:
        if name not in source.layers:
            raise InputError(f"There is no layer {name!r}.", fix=did_you_mean(name, source.layers))
