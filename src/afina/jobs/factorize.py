"""`afina factorize`: layers as chains of smaller ones, for a target in parameters, MACs, bytes or seconds."""

from dataclasses import replace
from typing import Any

from afina.devices.machine import available_cores
from afina.errors import InputError
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.common.model_source import ModelSource
from afina.jobs.common.subject import Subject, check_training, open_subject, tuned
from afina.jobs.planning.ranks import RankPlanner
from afina.jobs.planning.targets import goal_of, target_of
from afina.progress import Progress
from afina.runtimes import get_runtime
from afina.techniques.factorize import FactorizeConfig, apply, chains_with_losses, layers_of
from afina.training.config import Optimizer
from afina.types import Record
from afina.units import parse_share

# What ranks are a multiple of where time is the target: kernels work on channels in eights.
_MULTIPLE = 8


def factorize(
    model: ModelSource,
    data: Any = None,
    *,
    parameters: str | float | None = None,
    macs: str | float | None = None,
    size: str | float | None = None,
    latency: str | float | None = None,
    method: str = "auto",
    rank: str | float | None = None,
    multiple: int | None = None,
    skip: str | tuple[str, ...] | list[str] = (),
    finetune: int = 0,
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
    """Write layers of `model` as chains of smaller ones until it meets one target; gives an ordinary network.

    With images, chains are the nearest in the metric of what each layer reads, ranks are chosen from what the outputs
    lose and what they save, and layers are refitted in order to what they gave; no training is needed. Without images
    all inputs count the same, and training is.

    Args:
        model: As in `optimize`.
        data: As in `optimize`; None factorizes without images.
        parameters: Parameters that may stay, as a share (`50%` or 0.5).
        macs: Multiply-accumulates that may stay, as a share.
        size: Bytes of the exported float file, as in `5MB`.
        latency: Time for one batch of that file on `runtime`, as in `8ms`: only chains that are faster there are used.
        method: `svd`, `spatial`, `tucker`, `cp`, `tt`, or `auto`: for each layer the nearest at its cost.
        rank: Instead of a target: a rank for every layer, as a number or as a share of the largest (`25%`).
        multiple: Ranks are a multiple of it; by default 8 for a latency, else 1.
        skip: Names of layers that stay whole.
        finetune: Epochs of fine-tuning, taught by the model as it was; 0 for none.
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
        The network, and the record: form, ranks and relative output error on held-out images of each layer, what was
        skipped and why, cost (and, with data, quality) before and after.

    Raises:
        InputError: not one target, a target that cannot be met (it says the smallest that can), or a wrong option.
        NothingToDo: the target is met already, or no layer can become smaller.
    """
    goal = None if rank is not None else goal_of(macs, parameters, size, latency)
    if rank is not None and any(given is not None for given in (parameters, macs, size, latency)):
        raise InputError("A rank leaves nothing to choose for a target.", fix="Give either --rank or a target.")
    check_training(finetune, learning_rate, optimizer, data)
    step = multiple or (_MULTIPLE if goal is not None and goal[0] == "latency" else 1)
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    config = FactorizeConfig(method=method, rank=_rank(rank), multiple=step, skip=names)
    subject = open_subject(model, data, weights, input_size, example, images, seed, progress, teacher)
    exporter = Exporter(get_runtime(runtime), threads or available_cores(), batch)
    if goal is not None:
        config = _planned(subject, config, goal, exporter)
    network, record = apply(subject.network, config, subject.context(subject.network))
    if finetune:
        network = tuned(network, subject, finetune, learning_rate, optimizer)
    return network, subject.judged(record, network)


def _planned(subject: Subject, config: FactorizeConfig, goal: tuple[str, float], exporter: Exporter) -> FactorizeConfig:
    """The config with a form and ranks for each layer, so that the goal is met."""
    network, context = subject.network, subject.context(subject.network)
    target = target_of(goal, network, exporter)
    layers, _ = layers_of(network, config)
    chains = chains_with_losses(network, layers, config, context)
    kind = goal[0] if goal[0] in ("macs", "latency") else "parameters"
    planner = RankPlanner(network, layers, chains, kind, exporter, context.progress)
    return replace(config, layers=planner.reach(target))


def _rank(rank: str | float | None) -> int | float | None:
    """A number of ranks, or a share."""
    if rank is None:
        return None
    text = str(rank).strip()
    return int(text) if text.isdigit() else parse_share(rank, "--rank")
