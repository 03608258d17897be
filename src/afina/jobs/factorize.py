"""`afina factorize`: layers as chains of smaller ones, for a target in parameters, MACs, bytes or seconds."""

from dataclasses import replace

from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.finetuning import finetuned
from afina.jobs.common.subject import Subject, open_subject
from afina.jobs.options.declaration import command
from afina.jobs.options.factorize import FactorizeOptions
from afina.jobs.options.shared import names
from afina.jobs.options.targets import Goal
from afina.jobs.planning.expected_time import tell_factorizing_time
from afina.jobs.planning.ranks import RankPlanner
from afina.jobs.planning.targets import target_of
from afina.techniques.factorize import MEASURED, FactorizeConfig, apply, chains_with_losses, layers_of
from afina.types import Record

# What ranks are a multiple of where time is the target: kernels work on channels in eights.
_MULTIPLE = 8


def _factorize(options: FactorizeOptions) -> tuple[Network, Record]:
    """Write layers of `model` as chains of smaller ones until it meets one target; gives an ordinary network.

    With images, chains are the nearest in the metric of what each layer reads, ranks are chosen from what the outputs
    lose and what they save, and layers are refitted in order to what they gave; no training is needed. Without images
    all inputs count the same, and training is.

    Returns:
        The network, and the record: form, ranks and relative output error on held-out images of each layer, what was
        skipped and why, cost (and, with data, quality) before and after.

    Raises:
        InputError: not one target, a target that cannot be met (it says the smallest that can), or a wrong option.
        NothingToDo: the target is met already, or no layer can become smaller.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> network, record = afina.factorize(model, "digits", parameters="50%", images=128)
        >>> record.after["parameters"] <= 0.5 * record.before["parameters"]
        True
    """
    goal, config = options.goal, factorize_config(options)
    exporter = Exporter.of(options)
    subject = open_subject(options, options.model, options.data, options.images, options.teacher)
    notes = list[str]()
    if goal is not None:
        config, notes = _planned(subject, config, goal, exporter)
    network, record = apply(subject.network, config, subject.context(subject.network))
    record = replace(record, notes=(*record.notes, *notes))
    if options.finetune:
        network = finetuned(network, subject, options, options.finetune)
    return network, subject.judged(record, network)


factorize = command(FactorizeOptions, _factorize)


def factorize_config(options: FactorizeOptions) -> FactorizeConfig:
    """The configuration of the technique. Raises `InputError` where an option is out of range."""
    timed = options.goal is not None and options.goal.name == "latency"
    multiple = options.multiple or (_MULTIPLE if timed else 1)
    return FactorizeConfig(method=options.method, rank=options.same_rank, multiple=multiple, skip=names(options.skip))


def _planned(
    subject: Subject, config: FactorizeConfig, goal: Goal, exporter: Exporter
) -> tuple[FactorizeConfig, list[str]]:
    """The config with a form and ranks for each layer, so that the goal is met, and notes for the record."""
    network, context = subject.network, subject.context(subject.network)
    target = target_of(goal, network, exporter)
    layers, _ = layers_of(network, config)
    readers = [layer.reader for layer in layers.values()]
    tell_factorizing_time(subject.progress, network, readers, MEASURED * len(readers), subject.judged_images, context)
    chains = chains_with_losses(network, layers, config, context)
    kind = goal.name if goal.name in ("macs", "latency") else "parameters"
    planner = RankPlanner(network, layers, chains, kind, exporter, context.progress)
    return replace(config, layers=planner.reach(target)), planner.notes
