"""`afina prune`: a smaller network for a target in MACs, parameters, bytes or seconds."""

from dataclasses import replace

from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.finetuning import finetuned
from afina.jobs.common.subject import Subject, open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.prune import PruneOptions
from afina.jobs.options.shared import names
from afina.jobs.planning.axes import AxisPlanner
from afina.jobs.planning.blocks import blocks_to_go
from afina.jobs.planning.expected_time import tell_pruning_time
from afina.jobs.planning.targets import target_of
from afina.techniques.prune import PruneConfig, Study, levels_for
from afina.types import Record

# Kernels work on channels in eights: other numbers can be slower than the next multiple. Where time is not the target,
# only axes of so many channels keep to it: in steps of an eighth of the 64-wide axes, ResNet-20 on CIFAR-10 loses 0.6
# points of accuracy at 35% of the MACs.
_MULTIPLE, _WIDE = 8, 96


def _prune(options: PruneOptions) -> tuple[Network, Record]:
    """Remove channels, neurons, heads until `model` meets one target; gives an ordinary network and the record.

    With images, how much each axis gives is chosen from what the outputs lose and what it saves; which units go, and
    the weights of the layers that are left, are solved for in closed form; no training is needed. Without images units
    go by magnitude, and training is.

    Returns:
        The network, and the record: what was touched and skipped, cost (and, with data, quality) before and after.

    Raises:
        InputError: not one target, a target that cannot be met (it says the smallest that can), or a wrong option.
        NothingToDo: the target is met already, or no axis is free.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> network, record = afina.prune(model, "digits", macs="50%", images=128)
        >>> record.after["macs"] <= 0.5 * record.before["macs"]
        True
    """
    exporter = Exporter.of(options)
    subject = open_subject(options, options.model, options.data, options.images, options.teacher)
    network, records = subject.network, list[Record]()
    for step in range(1, options.steps + 1):
        if options.steps > 1:
            subject.progress.say(f"Step {step} of {options.steps}.")
        network, record = _once(network, subject, options, exporter, step / options.steps)
        records.append(record)
        if options.finetune:
            network = finetuned(network, subject, options, max(1, round(options.finetune / options.steps)))
    return network, subject.judged(_joined(records), network)


prune = command(PruneOptions, _prune)


def _once(
    network: Network,
    subject: Subject,
    options: PruneOptions,
    exporter: Exporter,
    share_of_steps: float,
) -> tuple[Network, Record]:
    """Prune once, in one of several steps.

    `share_of_steps` is the share of the steps with this one: the target lies that far between the cost and the goal, in
    logarithms.
    """
    goal, config = options.goal, prune_config(options)
    target = target_of(goal, subject.network, exporter)
    whole = target.measure(subject.network)
    if share_of_steps < 1 and whole > target.limit:
        target = replace(target, limit=whole * (target.limit / whole) ** share_of_steps)
    if "blocks" in config.axes:
        config = replace(config, blocks=blocks_to_go(network, target, config, subject.context(network)))
    study = Study(network, config, subject.context(network))
    last = share_of_steps == 1
    if not study.axes:
        pruned, record = study.prune({})
        notes = tuple[str, ...]()
        if last and config.blocks:
            notes = target.shortfall(target.measure(pruned), "blocks go as a whole.", coarse=True)
        return pruned, replace(record, notes=(*record.notes, *notes))
    if study.axes and options.per == "global" and study.config.criterion == "fit":
        measured = len(study.axes) * len(levels_for(study.context.images))
        tell_pruning_time(
            subject.progress, study.network, study.readers.values(), measured, subject.judged_images, study.context
        )
    planner = AxisPlanner(study, options.per, "parameters" if goal.name in ("parameters", "size") else "macs")
    return study.prune(planner.reach(target, last))


def prune_config(options: PruneOptions) -> PruneConfig:
    """The configuration of the technique. Raises `InputError` where an option is out of range."""
    wide = 0 if options.goal.name == "latency" or options.multiple is not None else _WIDE
    multiple = _MULTIPLE if options.multiple is None else options.multiple
    return PruneConfig(criterion=options.criterion, axes=names(options.axis), multiple=multiple, wide=wide)


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
