"""How far to prune: from a target in MACs, parameters, bytes or seconds to the units that each axis keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from afina.budget import Choice, allocate, fewest_of
from afina.errors import InputError, NothingToDo
from afina.graph.blocks import find_blocks, remove_blocks
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.sizing import Sizing
from afina.graph.statistics import Effect, freed
from afina.graph.surgery import remove
from afina.jobs.common.exporter import Exporter
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig, Study, fewest, sensitivities, step_of
from afina.types import Sensitivity
from afina.units import format_value, parse_share, parse_size, parse_time

T = TypeVar("T")
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

    def near(self, value: float) -> bool:
        """Whether the target is met, and no further from below than need be."""
        return self.limit * (1 - TOLERANCE) <= value <= self.limit


class Planner:
    """Shares a target out over the axes of a study.

    Args:
        study: The network.
        per: `global` (from sensitivities and costs) or `layer` (the same share of every axis).
        costs: `macs` or `parameters`: what the axes are charged for.

    Attributes:
        sensitivities: What each axis costs, where the plan asks for it.
        choices: What is known of each axis, and what it may keep.
    """

    def __init__(self, study: Study, per: str, costs: str) -> None:
        self.study = study
        self.sizing: Sizing = study.sizing("parameters" if costs == "parameters" else "macs")
        self.sensitivities: dict[str, Sensitivity] = sensitivities(study) if per == "global" else {}
        self.choices = self._choices(study.config)

    def counts(self, cost: float) -> dict[str, int]:
        """Units that each axis keeps so that what axes are charged is at most `cost`, or the smallest possible."""
        return self._counts(cost, self.choices)

    def shape(self, counts: Counts) -> Network:
        """A network of that shape; which units are kept, and their weights, do not matter."""
        axes = self.study.axes
        keep = {axes[name]: range(count) for name, count in counts.items() if count < axes[name].size}
        return remove(self.study.network, keep, analysis=self.study.analysis) if keep else self.study.network

    def reach(self, target: Target) -> dict[str, int]:
        """Units that each axis keeps so that the target is met, from below, by `target.measure` of the real network.

        Where the multiple is only for wide axes (`PruneConfig.wide`) and leaves the target far, it is given up.

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
        counts, value = self._search(target, whole, self.choices)
        coarse = self.study.config.wide and any(choice.multiple > 1 for choice in self.choices.values())
        if coarse and not target.near(value):
            counts, value = self._search(target, whole, self._any_number)
            self.study.notes.append(f"Multiples of {self.study.config.multiple} channels would miss the target.")
        if value > target.limit:
            raise self._out_of_reach(target, value, counts)
        return counts

    @cached_property
    def _any_number(self) -> dict[str, Choice]:
        return self._choices(replace(self.study.config, multiple=1, wide=0))

    def _choices(self, config: PruneConfig) -> dict[str, Choice]:
        return {
            name: Choice(
                losses=self._losses(name, axis.size), multiple=step_of(axis, config), minimum=fewest(axis, config)
            )
            for name, axis in self.study.axes.items()
        }

    def _counts(self, cost: float, choices: Mapping[str, Choice]) -> dict[str, int]:
        least = fewest_of(choices)
        return least if cost <= self.sizing.total(least) else allocate(choices, self.sizing, cost)

    def _search(self, target: Target, whole: float, choices: Mapping[str, Choice]) -> tuple[dict[str, int], float]:
        return approach(
            target,
            lambda cost: self._counts(cost, choices),
            self.sizing.total,
            lambda counts: self._measured(target, counts),
            (self.sizing.total({}), whole),
            fewest_of(choices),
        )

    def _measured(self, target: Target, counts: Counts) -> float:
        value = target.measure(self.shape(counts))
        freed(self.study.network)
        return value

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


def approach(
    target: Target,
    plan: Callable[[float], T],
    cost: Callable[[T], float],
    measure: Callable[[T], float],
    whole: tuple[float, float],
    least: T,
) -> tuple[T, float]:
    """The plan that meets a target from below and is near it, with what it measures; the least one if none meets it.

    Secant steps between the nearest costs above and below the target.

    Args:
        target: What is to be met.
        plan: The best plan of at most some cost, as costs are reckoned.
        cost: What a plan is reckoned to cost.
        measure: What it really costs, in the target's unit.
        whole: Both of them of the network as it is.
        least: The cheapest plan.
    """
    best, nearest = least, measure(least)
    known = [whole, (cost(best), nearest)]
    for _ in range(_TRIES if nearest <= target.limit else 0):
        above = min((point for point in known if point[1] > target.limit), key=lambda point: point[1])
        below = max((point for point in known if point[1] <= target.limit), key=lambda point: point[1])
        share = (target.limit * (1 - TOLERANCE / 4) - below[1]) / max(above[1] - below[1], 1e-12)
        found = plan(below[0] + (above[0] - below[0]) * min(max(share, 0.02), 0.98))
        value = measure(found)
        point = (cost(found), value)
        if point in known:
            break
        known.append(point)
        if nearest < value <= target.limit:
            nearest, best = value, found
        if target.near(value):
            break
    return best, nearest


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
            freed(network)
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


def goal_of(
    macs: str | float | None, parameters: str | float | None, size: str | float | None, latency: str | float | None
) -> tuple[str, float]:
    """The one target that was given, parsed: its name, and a share of what the network has, bytes or seconds."""
    given = {"macs": macs, "parameters": parameters, "size": size, "latency": latency}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise InputError(
            f"{'No' if not asked else 'More than one'} target was given{': ' if asked else ''}{', '.join(asked)}.",
            fix="Give one of --macs 50%, --parameters 30%, --size 5MB, --latency 8ms.",
        )
    name, value = next(iter(asked.items()))
    if name == "size":
        return name, float(parse_size(value))
    return name, parse_time(value) if name == "latency" else parse_share(value, f"--{name}")


def target_of(goal: tuple[str, float], network: Network, exporter: Exporter) -> Target:
    """A goal as a target for `network`: shares become counts, files and times are measured by `exporter`."""
    name, limit = goal
    if name == "size":
        return Target(name, limit, "B", exporter.size)
    if name == "latency":
        return Target(name, limit, "s", exporter.time)
    whole = float(getattr(cost_of(network), name))
    return Target(name, limit * whole, "1", lambda shaped: float(getattr(cost_of(shaped), name)))
