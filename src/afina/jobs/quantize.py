"""`afina quantize`: a network in integers, judged as the file that its runtime will run."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from afina.budget import make_budget, read_limits
from afina.devices.machine import available_cores
from afina.errors import InputError, did_you_mean
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import ModelSource
from afina.jobs.common.subject import Subject, check_training, open_subject, suited_batch, suited_optimizer
from afina.jobs.planning.bits import fit_size
from afina.jobs.planning.plan_file import Plan, read_plan, write_plan
from afina.jobs.planning.precisions import plan_precisions
from afina.jobs.planning.quality_guard import Guard
from afina.jobs.planning.quantized_file import cautions, check_kept, with_answers, with_times
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.store.files import check_target
from afina.tasks import get_task
from afina.techniques.quantize import QuantizeConfig
from afina.techniques.quantize.apply import finish, prepare
from afina.techniques.quantize.calibration import hold_out
from afina.techniques.quantize.config import FLOAT
from afina.techniques.quantize.equalize import equalize
from afina.techniques.quantize.grids import Scheme
from afina.techniques.quantize.halves import keep_wide, kept_note
from afina.techniques.quantize.prepared import Prepared, Source
from afina.training import FitConfig, fit
from afina.training.config import Optimizer
from afina.types import Budget, Record

# Highest learning rates of training with simulated integers, by optimizer: the weights are nearly right already.
_RATES: dict[Optimizer, float] = {"sgd": 0.01, "adamw": 1e-4}


@dataclass(frozen=True)
class _Asked:
    """What the job works on, beside the subject."""

    config: QuantizeConfig
    exporter: Exporter
    qat: FitConfig | None
    learn_scales: bool
    limits: Budget
    plan: Literal["auto", "bits"] | Plan | None
    save_plan: str | Path | None


def quantize(
    model: ModelSource,
    data: Any,
    *,
    weights: str = "int8",
    activations: str = "int8",
    granularity: str = "channel",
    scheme: Scheme = "absmax",
    calibration: str = "auto",
    rounding: Literal["auto", "nearest", "gram"] = "auto",
    equalize: Literal["auto", "none"] = "auto",
    power_of_two: bool = False,
    full_range: bool = False,
    skip: str | tuple[str, ...] | list[str] = (),
    plan: str | Path | None = None,
    save_plan: str | Path | None = None,
    size: str | float | None = None,
    latency: str | float | None = None,
    max_drop: str | float | None = None,
    qat: int = 0,
    learn_scales: bool = False,
    images: int = 512,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    batch: int = 1,
    checkpoint: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    teacher: Network | None = None,
    example: Any = None,
    progress: Progress | None = None,
) -> tuple[Network, Record]:
    """Write weights and activations of `model` in fewer bits; gives the network in integers and the record.

    Ranges of activations come from training images; weights are rounded layer by layer so that the layers' outputs
    suffer least. No labels are needed, nor training. The file for `runtime` is what is judged.

    Args:
        model: As in `optimize`.
        data: As in `optimize`.
        weights: `int8`, `int7` to `int2` or `int16`; `fp16` or `bf16` (stored so, computed in float); `fp32`.
        activations: `int8` to `int2` or `int16`; `none` for float.
        granularity: Which weights share a scale: `tensor`, `channel` or `block:N`.
        scheme: Of weights: `absmax` (symmetric) or `affine`.
        calibration: `auto`, `mse`, `minmax`, `average`, `percentile` or `entropy`.
        rounding: `auto`, `nearest` or `gram`.
        equalize: `auto` moves scale between layers where that lowers the error; `none`.
        power_of_two: Scales are powers of two.
        full_range: Absmax weights use the lowest code too.
        skip: Names of layers that stay in float.
        plan: `auto` chooses each layer's precision by measured time, bytes and damage; `bits` shares out the bits of
            weights alone, for `size`; or a file of a plan.
        save_plan: Where the precisions of all layers are written (`.json`), to be used again.
        size: With `plan="auto"` or `"bits"`: limit on the file, as in `500KB`.
        latency: With `plan="auto"`: limit on the time for one batch, as in `5ms`.
        max_drop: Limit on the loss of quality of the file; where it is broken, the layers to blame get precision back.
        qat: Epochs of training with simulated integers, taught by the float network.
        learn_scales: Whether that training learns the scales too (learned step size).
        images: Training images to calibrate on.
        runtime: What will run the file: `onnxruntime` or `openvino`.
        threads: Threads of the runtime; all cores by default.
        batch: Images per call when time is measured.
        checkpoint: Weights of the model: `pretrained`, `random` or a file.
        input_size: Height and width of the input, where the model's own is wrong.
        learning_rate: Of the training.
        optimizer: Of the training: `sgd` or `adamw`.
        seed: Seed of every random choice.
        teacher: Who teaches that training; the model as it was by default.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Returns:
        The network, and the record: precision and noise of each layer, cost and quality before and after.

    Raises:
        InputError: an option that is not known or that the runtime cannot run, no images, a limit that cannot be kept.
        NothingToDo: no layer would change.
    """
    start = time.monotonic()
    chosen = get_runtime(runtime)
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    config = QuantizeConfig(
        weights=weights, activations=activations, granularity=granularity, scheme=scheme, calibration=calibration,
        rounding=rounding, equalize=equalize, power_of_two=power_of_two, full_range=full_range,
        policy=chosen.policy(),
        layers=tuple((name, FLOAT) for name in names),
    )  # fmt: skip
    _check(plan, size, latency, max_drop, data)
    check_training(qat, learning_rate, optimizer, data, "--qat")
    planned = _planned(plan)
    if isinstance(planned, Plan):
        config = planned.configure(config)
    for precision in (config.default, *dict(config.layers).values()):
        chosen.check_integers(precision.activations)
    _check_learned(learn_scales, qat, config)
    if config.full_range and config.scheme == "affine":
        raise InputError(
            "--full-range is for --scheme absmax.", why="Affine weights use all codes anyway.", fix="Leave it out."
        )
    if save_plan is not None:
        check_target(Path(save_plan), "--save-plan", ".json")
    subject = open_subject(model, data, checkpoint, input_size, example, images, seed, progress, teacher)
    exporter = Exporter(chosen, threads or available_cores(), batch)
    limits = Budget() if (size, latency, max_drop) == (None,) * 3 else _limits(subject, size, latency, max_drop)
    training = _training(subject, qat, learning_rate, optimizer) if qat else None
    asked = _Asked(config, exporter, training, learn_scales, limits, planned, save_plan)
    return _run(subject, asked, start)


def _run(subject: Subject, asked: _Asked, start: float) -> tuple[Network, Record]:
    assert subject.data is not None
    context, source = subject.context(subject.network), Source.of(subject.network)
    if isinstance(asked.plan, Plan):
        asked.plan.check_network(source)
    _check_names(source, asked.config)
    hold_out(source, asked.config, context)
    runtime = asked.exporter.runtime.name
    notes = asked.plan.notes(asked.config, runtime) if isinstance(asked.plan, Plan) else ()
    original = asked.exporter.judge(subject.network, subject.data, subject.progress)
    config = asked.config
    if asked.plan == "auto":
        config, told = plan_precisions(source, config, asked.limits, asked.exporter, context)
        notes += told
    elif asked.plan == "bits":
        assert asked.limits.size is not None
        config = fit_size(source, config, asked.limits.size, asked.exporter, context)
    source, told = equalize(source, config, context)
    config, kept = keep_wide(source, config, context)
    notes += (*told, *kept_note(kept))

    def build(wanted: QuantizeConfig) -> tuple[Network, Record]:
        prepared, told = prepare(source, wanted, context)
        prepared.placement.skipped.update(kept)
        if asked.qat is not None:
            told += _train(prepared, subject, asked.qat, asked.learn_scales)
        return finish(subject.network, prepared, context, (*notes, *told), start)

    network, record = build(config)
    found = asked.exporter.judge(network, subject.data, subject.progress, original.outputs)
    guard = None
    if asked.limits.max_drop is not None:
        guard = Guard(source, subject, asked.exporter, original, asked.limits.max_drop, build, config)
        network, record, found = guard.keep(network, record, found)
    record = with_answers(record, original, found, found.agreement(network, subject.data), subject, asked.exporter)
    record = with_times(record, subject.network, network, asked.exporter)
    if guard is not None and guard.config != config:
        check_kept(record, asked.limits)
    if asked.save_plan is not None:
        write_plan(Path(asked.save_plan), source, guard.config if guard else config, runtime)
    record = replace(record, notes=(*record.notes, *cautions(record, subject, guarded=guard is not None)))
    return network, replace(record, seconds=time.monotonic() - start)


def _train(prepared: Prepared, subject: Subject, config: FitConfig, learn_scales: bool) -> tuple[str, ...]:
    """Train the weights with all edges on, taught by the float network."""
    assert subject.data is not None
    subject.progress.say(f"Training for {config.epochs} epochs with simulated integers, taught by the original.")
    prepared.learn(learn_scales)
    trained, curve = fit(
        prepared.network,
        subject.data,
        config,
        teacher=subject.teacher or prepared.source.network,
        sparse=prepared.source.network,
        progress=subject.progress,
    )
    prepared.adopt(trained)
    what = "weights and scales" if learn_scales else "weights"
    return (f"{what.capitalize()} trained for {len(curve)} epochs with simulated integers.",)


def _training(subject: Subject, epochs: int, learning_rate: float | None, optimizer: Optimizer | None) -> FitConfig:
    assert subject.data is not None
    chosen = optimizer or suited_optimizer(subject.network)
    return FitConfig(
        epochs=epochs,
        optimizer=chosen,
        learning_rate=learning_rate or _RATES[chosen],
        weight_decay=0.0,
        keep_zeros=True,
        schedule="cosine",
        batch_size=suited_batch(subject.data),
        seed=subject.seed,
    )


def _limits(
    subject: Subject, size: str | float | None, latency: str | float | None, max_drop: str | float | None
) -> Budget:
    assert subject.data is not None
    task = get_task(subject.network.task)
    metric = task.metric if subject.data.labelled else task.agreement
    return make_budget(metric, size, latency, None, max_drop)


def _check(plan: Any, size: Any, latency: Any, max_drop: Any, data: Any) -> None:
    read_limits(size, latency, None, max_drop)
    if plan not in (None, "auto", "bits") and Path(plan).suffix != ".json":
        raise InputError(
            f"--plan {plan!r} is not known.", fix="Write --plan auto or --plan bits, or give a plan's .json file."
        )
    if plan == "bits" and (size is None or latency is not None):
        raise InputError("--plan bits is for a limit on size, and no other.", fix="Give --size, or write --plan auto.")
    if plan not in ("auto", "bits") and (size is not None or latency is not None):
        raise InputError(
            "A limit on size or latency needs a plan that is made for it.",
            why="Without, every layer has the precision that was asked for.",
            fix="Add --plan auto.",
        )
    if data is None:
        raise InputError("Quantization needs images to calibrate on and to be judged by.", fix="Give --data.")


def _planned(plan: str | Path | None) -> Literal["auto", "bits"] | Plan | None:
    """The plan that was asked for, read where it is a file."""
    if plan is None or plan == "auto" or plan == "bits":
        return plan  # type: ignore[return-value]
    return read_plan(Path(plan))


def _check_learned(learn_scales: bool, qat: int, config: QuantizeConfig) -> None:
    if learn_scales and not qat:
        raise InputError("Scales are learned by training only.", fix="Give --qat EPOCHS too.")
    if learn_scales and (config.power_of_two or config.granularity == "tensor"):
        raise InputError(
            "Scales that are learned are free, one for each channel or block.",
            why="Powers of two, and one scale for all channels, would not stay so.",
            fix="Leave out --learn-scales, or --power-of-two and --granularity tensor.",
        )


def _check_names(source: Source, config: QuantizeConfig) -> None:
    for name, _ in config.layers:
        if name not in source.layers:
            raise InputError(f"There is no layer {name!r}.", fix=did_you_mean(name, source.layers))
