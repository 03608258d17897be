"""`afina prune`: a smaller network for a target in MACs, parameters, bytes or seconds."""

from dataclasses import replace
from typing import Any, Literal

from afina.devices.machine import available_cores
from afina.errors import AfinaError, InputError
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import ModelSource
from afina.jobs.common.subject import Subject, check_training, open_subject, tuned
from afina.jobs.planning.axes import AxisPlanner
from afina.jobs.planning.blocks import blocks_to_go
from afina.jobs.planning.targets import goal_of, target_of
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.techniques.prune import PruneConfig, Study
from afina.training.config import Optimizer
from afina.types import Record

# Kernels work on channels in eights: other numbers can be slower than the next multiple. Where time is not the target,
# only axes of so many channels keep to it: in steps of an eighth of the 64-wide axes, ResNet-20 on CIFAR-10 loses 0.6
# points of accuracy at 35% of the MACs.
_MULTIPLE, _WIDE = 8, 96


def prune(
    model: ModelSource,
    data: Any = None,
    *,
    macs: str | float | None = None,
    parameters: str | float | None = None,
    size: str | float | None = None,
    latency: str | float | None = None,
    criterion: str = "fit",
    axis: str | tuple[str, ...] | list[str] | None = None,
    per: Literal["global", "layer"] = "global",
    multiple: int | None = None,
    finetune: int = 0,
    steps: int = 1,
    images: int = 1024,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    batch: int = 1,
    weights: str | None = None,
    input_size: str | tuple[int, int] | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    teacher: Network | None = None,
    example: Any = None,
    progress: Progress | None = None,
) -> tuple[Network, Record]:
    """Remove channels, neurons, heads until `model` meets one target; gives an ordinary network and the record.

    With images, how much each axis gives is chosen from what the outputs lose and what it saves; which units go, and
    the weights of the layers that are left, are solved for in closed form; no training is needed. Without images units
    go by magnitude, and training is.

    Args:
        model: As in `optimize`.
        data: As in `optimize`; None prunes without images, by magnitude.
        macs: Multiply-accumulates that may stay, as a share (`50%` or 0.5).
        parameters: Parameters that may stay, as a share.
        size: Bytes of the exported float file, as in `5MB`.
        latency: Time for one batch of the exported float file on `runtime`, as in `8ms`.
        criterion: `fit`, `magnitude`, `taylor`, `batchnorm` or `random`.
        axis: Kinds of axes to prune (`channels`, `hidden`, `heads`, `head-dim`, `embedding`, `groups`) or names of
            axes; all by default. `blocks` takes whole residual blocks out, as long as the target is not met; with
            other kinds beside it these make up the rest.
        per: `global` shares the target out by sensitivity; `layer` takes the same share of every axis.
        multiple: Channels that are kept are a multiple of it (8 or 16 suit many kernels). By default 8: everywhere for
            a latency, else for axes of 96 channels and more, as long as the target is met within 2%.
        finetune: Epochs of fine-tuning, taught by the model as it was; 0 for none.
        steps: Prune in so many steps, with fine-tuning after each (its epochs are divided).
        images: Training images that the statistics rest on.
        runtime: For `size` and `latency`.
        threads: Threads of the runtime; all cores by default.
        batch: Images per call when latency is measured.
        weights: `pretrained`, `random` or a file of weights.
        input_size: Height and width of the input, where the model's own is wrong.
        learning_rate: Of fine-tuning.
        optimizer: Of fine-tuning: `sgd` or `adamw`.
        seed: Seed of every random choice.
        teacher: Who teaches the fine-tuning; the model as it was by default.
        example: For an `nn.Module`: a tensor of the input's shape, or an `InputSpec`.
        progress: What the user sees.

    Returns:
        The network, and the record: what was touched and skipped, cost (and, with data, quality) before and after.

    Raises:
        InputError: not one target, a target that cannot be met (it says the smallest that can), or a wrong option.
        NothingToDo: the target is met already, or no axis is free.
    """
    goal = goal_of(macs, parameters, size, latency)
    wide = 0 if goal[0] == "latency" or multiple is not None else _WIDE
    chosen = _MULTIPLE if multiple is None else multiple
    config = PruneConfig(criterion=criterion, axes=axes_asked(axis), multiple=chosen, wide=wide)
    check_training(finetune, learning_rate, optimizer, data)
    _check(per, steps, finetune)
    subject = open_subject(model, data, weights, input_size, example, images, seed, progress, teacher)
    exporter = Exporter(get_runtime(runtime), threads or available_cores(), batch)
    network, records = subject.network, list[Record]()
    for step in range(1, steps + 1):
        if steps > 1:
            subject.progress.say(f"Step {step} of {steps}.")
        network, record = _once(network, subject, config, per, goal, exporter, step / steps)
        records.append(record)
        if finetune:
            epochs = max(1, round(finetune / steps))
            network = tuned(network, subject, epochs, learning_rate, optimizer)
    return network, subject.judged(_joined(records), network)


def _once(
    network: Network,
    subject: Subject,
    config: PruneConfig,
    per: str,
    goal: tuple[str, float],
    exporter: Exporter,
    done: float,
) -> tuple[Network, Record]:
    """One pruning: the last of several steps ends at the goal, those before on the way to it."""
    target = target_of(goal, subject.network, exporter)
    whole = target.measure(subject.network)
    if done < 1 and whole > target.limit:
        target = replace(target, limit=whole * (target.limit / whole) ** done)
    if "blocks" in config.axes:
        config = replace(config, blocks=blocks_to_go(network, target, config, subject.context(network)))
    study = Study(network, config, subject.context(network))
    if not study.axes:
        return study.prune({})
    planner = AxisPlanner(study, per, "parameters" if goal[0] in ("parameters", "size") else "macs")
    return study.prune(planner.reach(target))


def axes_asked(axis: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Kinds or names of axes as the config takes them; none means all."""
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else tuple(axis)


def _check(per: str, steps: int, finetune: int) -> None:
    if per not in ("global", "layer"):
        raise InputError(f"--per {per!r} is not known.", fix="Choose global or layer.")
    if steps < 1:
        raise InputError(f"--steps is {steps}.", fix="Give 1 or more.")
    if steps > 1 and not finetune:
        raise AfinaError(
            "Pruning in steps without fine-tuning between them gains nothing.", fix="Give --finetune EPOCHS."
        )


def _joined(records: list[Record]) -> Record:
    """One record of all steps."""
    first, last = records[0], records[-1]
    if len(records) == 1:
        return last
    return replace(
        last,
        touched=tuple(dict.fromkeys(layer for record in records for layer in record.touched)),
        before=first.before,
        seconds=sum(record.seconds for record in records),
        notes=(f"pruned in {len(records)} steps", *last.notes),
    )
