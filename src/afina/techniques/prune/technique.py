"""The technique: which axes, how many units of each, and the record of it."""

import math
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from afina.errors import InputError, NothingToDo, did_you_mean
from afina.graph.axes import Axes, Axis, analyse
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.surgery import remove
from afina.techniques.context import Context
from afina.techniques.prune import importance
from afina.types import Record, Step

_CRITERIA = ("activation", "magnitude", "random")


@dataclass(frozen=True)
class PruneConfig:
    """How to prune.

    Attributes:
        ratio: Share of the units of each free axis that is removed, between 0 and 1. About `1 - (1 - ratio)^2`
            of the MACs go with them, as a layer loses inputs and outputs.
        criterion: Which units go: `activation` (those that their consumers would miss least on calibration
            images; `magnitude` where there are none), `magnitude` (those with the smallest weights), `random`.
        multiple: Where a layer has more channels than this, what is kept is a multiple of it, which kernels like.
        minimum: Units that every axis keeps at least.
    """

    ratio: float = 0.5
    criterion: str = "activation"
    multiple: int = 8
    minimum: int = 2


def apply(network: Network, config: PruneConfig, context: Context) -> tuple[Network, Record]:
    """A smaller network without the units that matter least, and the record; the input is left as it was.

    The result is ordinary: it runs, trains, saves, exports and prunes again.

    Raises:
        InputError: the configuration is not possible.
        NothingToDo: no unit of any axis can be removed.
    """
    start = time.monotonic()
    _check(config)
    axes = analyse(network)
    notes: list[str] = []
    if config.criterion == "activation" and context.calibration is None:
        config = replace(config, criterion="magnitude")
        notes.append("There are no calibration images, so units are chosen by magnitude.")
    plan, skipped = _plan(axes, config)
    if not plan:
        raise NothingToDo("No unit of this network can be pruned.", why=_reasons(axes, skipped))
    scores = _scores(network, tuple(plan), config, context)
    keep = {axis: _best(scores[axis], count) for axis, count in plan.items()}
    pruned = remove(network, keep)
    before, after = cost_of(network), cost_of(pruned)
    touched = dict.fromkeys(layer for axis in plan for layer in axis.producers or (axis.name,))
    notes += [f"{axis.name}: {count} of {axis.size} units kept" for axis, count in plan.items()]
    return pruned, Record(
        step=Step("prune", asdict(config)),
        touched=tuple(touched),
        skipped={name: reason for name, reason in skipped.items() if name not in touched},
        before={"parameters": before.parameters, "macs": before.macs, "bytes": before.bytes},
        after={"parameters": after.parameters, "macs": after.macs, "bytes": after.bytes},
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )


def _check(config: PruneConfig) -> None:
    if not 0 < config.ratio < 1:
        raise InputError(
            f"The ratio to prune is {config.ratio}, and must be between 0 and 1.",
            why="It is the share of units that is removed from each layer.",
            fix="Give 0.5 to remove half of them.",
        )
    if config.criterion not in _CRITERIA:
        raise InputError(
            f"There is no pruning criterion {config.criterion!r}.", fix=did_you_mean(config.criterion, _CRITERIA)
        )
    for name in ("multiple", "minimum"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}, and must be 1 or more.")


def _plan(axes: Axes, config: PruneConfig) -> tuple[dict[Axis, int], dict[str, str]]:
    """How many units each axis keeps, and the layers and ops left alone with the reason."""
    skipped = {layer: axis.reason for axis in axes.fixed for layer in axis.producers}
    skipped.update({op: f"not understood: {why}" for op, why in axes.unknown.items()})
    plan: dict[Axis, int] = {}
    for axis in sorted(axes.free, key=lambda axis: -axis.size):
        rival = next((other for other in plan if axis.crosses(other)), None)
        if rival is not None:
            skipped.setdefault(axis.name, f"its channels are pruned through {rival.name} already")
            continue
        count = _kept(axis, config)
        if count < axis.size:
            plan[axis] = count
        else:
            skipped.setdefault(axis.name, f"of {axis.size} units none can go at this ratio, multiple and minimum")
    order = {axis: index for index, axis in enumerate(axes.free)}
    return dict(sorted(plan.items(), key=lambda item: order[item[0]])), skipped


def _kept(axis: Axis, config: PruneConfig) -> int:
    """Units to keep. The multiple counts channels, of which a unit may have several (a group of a convolution)."""
    wanted = axis.size * (1 - config.ratio)
    channels = max((int((m.units >= 0).sum()) // axis.size for m in axis.members if m.role == "producer"), default=1)
    step = config.multiple // math.gcd(config.multiple, channels)
    count = max(round(wanted / step), 1) * step if axis.size > step else math.floor(wanted + 0.5)
    return min(max(count, config.minimum), axis.size)


def _scores(
    network: Network, axes: tuple[Axis, ...], config: PruneConfig, context: Context
) -> dict[Axis, NDArray[np.float64]]:
    if config.criterion == "random":
        generator = np.random.default_rng(context.seed)
        return {axis: generator.random(axis.size) for axis in axes}
    if config.criterion == "activation" and context.calibration is not None:
        return importance.by_activation(network, axes, context.calibration(), context.progress)
    return importance.by_magnitude(network, axes)


def _best(scores: NDArray[np.float64], count: int) -> list[int]:
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def _reasons(axes: Axes, skipped: dict[str, str]) -> str:
    if not skipped:
        return "It has no layer whose outputs only other layers read."
    shown = [f"{name}: {reason}" for name, reason in list(skipped.items())[:4]]
    more = f" and {len(skipped) - 4} more" if len(skipped) > 4 else ""
    return f"{'; '.join(shown)}{more}."
