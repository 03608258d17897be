"""How far to prune: from a target in MACs, parameters, bytes or seconds to the units that each axis keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from afina.budget import Choice, allocate, fewest_of
from afina.errors import InputError, NothingToDo
from afina.graph.blocks import find_blocks, remove_blocks
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.sizing import Sizing
from afina.graph.statistics import Effect, freed
from afina.graph.surgery import remove
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig, Study, fewest, sensitivities, step_of
from afina.types import Sensitivity
from afina.units import format_value

Counts = Mapping[str, int]
# A target is met from below, and no further below than this share of it, where the axes allow.
TOLERANCE = 0.02
_TRIES = 6
_COUNTED = {"macs": "MACs", "parameters": "parameters"}


@dataclass(frozen=True)
class Target:
    """What a pruned network may cost at most.

    Attributes:
        name: `macs`, `parameters`, `size` or `latency`.
        limit: The limit.
        unit: Of the limit, as in `Measurement`.
        measure: The cost of a network of some shape; its weights do not matter.
    """

    name: str
    limit: float
    unit: str
    measure: Callable[[Network], float]


class Planner:
    """Shares a target out over the axes of a study.

    Args:
        study: The network.
        per: `global` (from sensitivities and costs) or `layer` (the same share of every axis).
        costs: `macs` or `parameters`: what the axes are charged for.

    Attributes:
        sensitivities: What each axis costs, where the plan asks for it.
    """

    def __init__(self, study: Study, per: str, costs: str) -> None:
        self.study = study
        self.sizing: Sizing = study.sizing("parameters" if costs == "parameters" else "macs")
        self.sensitivities: dict[str, Sensitivity] = sensitivities(study) if per == "global" else {}
        self.choices = {
            name: Choice(
                losses=self._losses(name, axis.size),
                multiple=step_of(axis, study.config),
                minimum=fewest(axis, study.config),
            )
            for name, axis in study.axes.items()
        }

    def counts(self, cost: float) -> dict[str, int]:
        """Units that each axis keeps so that what axes are charged is at most `cost`, or the smallest possible."""
        least = fewest_of(self.choices)
        if cost <= self.sizing.total(least):
            return least
        return allocate(self.choices, self.sizing, cost)

    def shape(self, counts: Counts) -> Network:
        """A network of that shape; which units are kept, and their weights, do not matter."""
        axes = self.study.axes
        keep = {axes[name]: range(count) for name, count in counts.items() if count < axes[name].size}
        return remove(self.study.network, keep, analysis=self.study.analysis) if keep else self.study.network

    def reach(self, target: Target) -> dict[str, int]:
        """Units that each axis keeps so that the target is met, from below, by `target.measure` of the real network.

        Raises:
            NothingToDo: it is met already.
            InputError: it cannot be met; it says the smallest that can, and which axes bind.
        """
        whole = target.measure(self.study.network)
        if whole <= target.limit:
            raise NothingToDo(
                f"The network is at {told_as(target, whole)} already.",
                why=f"The target is {told_as(target, target.limit)}.",
                fix="Give a smaller target.",
            )
        least = fewest_of(self.choices)
        smallest = target.measure(self.shape(least))
        if smallest > target.limit:
            raise self._out_of_reach(target, smallest, least)
        return self._search(target, [(self.sizing.total({}), whole), (self.sizing.total(least), smallest)], least)

    def _search(self, target: Target, known: list[tuple[float, float]], best: dict[str, int]) -> dict[str, int]:
        """Secant steps between the nearest costs above and below the target."""
        nearest = known[-1][1]
        for _ in range(_TRIES):
            above = min((point for point in known if point[1] > target.limit), key=lambda point: point[1])
            below = max((point for point in known if point[1] <= target.limit), key=lambda point: point[1])
            share = (target.limit * (1 - TOLERANCE / 4) - below[1]) / max(above[1] - below[1], 1e-12)
            goal = below[0] + (above[0] - below[0]) * min(max(share, 0.02), 0.98)
            counts = self.counts(goal)
            value = target.measure(self.shape(counts))
            point = (self.sizing.total(counts), value)
            if point in known:
                break
            known.append(point)
            if nearest < value <= target.limit:
                nearest, best = value, counts
            if target.limit * (1 - TOLERANCE) <= value <= target.limit:
                break
        return best

    def _losses(self, name: str, size: int) -> np.ndarray:
        if self.sensitivities:
            return np.asarray(self.sensitivities[name].losses)
        # The same share everywhere: damage for each unit of cost that only depends on the share that is gone.
        steps = [self.sizing.saving({}, name, size - gone) if gone else 0.0 for gone in range(size)]
        share = np.arange(size) / size
        return np.concatenate(([0.0], np.cumsum(np.maximum(np.diff(steps), 1e-12) * share[1:])))

    def _out_of_reach(self, target: Target, smallest: float, least: Counts) -> InputError:
        binding = sorted(least, key=lambda name: self.sizing.saving(least, name, 0), reverse=True)[:4]
        told = ", ".join(f"{name} ({least[name]} of {self.study.axes[name].size})" for name in binding)
        return InputError(
            f"The target of {told_as(target, target.limit)} cannot be met by pruning: "
            f"the smallest possible is {told_as(target, smallest)}.",
            why=f"What binds, at the fewest units that may stay: {told}.",
            fix="Give a larger target, or combine pruning with quantization: afina optimize.",
        )


def told_as(target: Target, value: float) -> str:
    """A value of a target in words, with what it counts where the unit does not say it."""
    counted = f" {_COUNTED[target.name]}" if target.name in _COUNTED else ""
    return format_value(value, target.unit) + counted


def blocks_to_go(network: Network, target: Target, config: PruneConfig, context: Context) -> tuple[str, ...]:
    """The residual blocks to take out on the way to a target: those first that damage least for what they save.

    With other kinds of axes beside the blocks, the last block is left in if the target would be missed from above.

    Raises:
        NothingToDo: no block can go.
        InputError: there are no images, or blocks alone cannot meet the target.
    """
    known = find_blocks(network)
    if not known:
        raise NothingToDo("This network has no residual block that can be taken out.")
    effect, whole = Effect(network, context.first(len(known) * cost_of(network).macs)), target.measure(network)
    prices: dict[str, float] = {}
    with context.progress.work("Measuring blocks", len(known)) as bar:
        for name in known:
            without = remove_blocks(network, [name])
            prices[name] = effect.of(without) / max(whole - target.measure(without), 1e-12)
            del without
            freed()
            bar.advance(note=name)
    gone: list[str] = []
    value = whole
    for name in sorted(prices, key=lambda name: prices[name]):
        if value <= target.limit:
            return tuple(gone)
        value = target.measure(remove_blocks(network, [*gone, name]))
        if value <= target.limit and len(config.axes) > 1:
            return tuple(gone)
        gone.append(name)
    if value > target.limit and len(config.axes) == 1:
        raise InputError(
            f"The target of {told_as(target, target.limit)} cannot be met by taking blocks out: "
            f"the smallest possible is {told_as(target, value)}.",
            fix="Prune other axes as well: --axis blocks --axis channels.",
        )
    return tuple(gone)


def computed(name: str, share: float, network: Network) -> Target:
    """A share of the MACs or parameters of `network`."""
    whole = float(getattr(cost_of(network), name))
    return Target(name, share * whole, "1", lambda shaped: float(getattr(cost_of(shaped), name)))
