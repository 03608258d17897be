"""What a compressed network may cost at most, in MACs, parameters, bytes or seconds, and how a plan gets near it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.options.targets import Goal
from afina.units import format_value

T = TypeVar("T")
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


def target_of(goal: Goal, network: Network, exporter: Exporter) -> Target:
    """A goal as a target for `network`: shares become counts, files and times are measured by `exporter`."""
    name, limit = goal
    if name == "size":
        return Target(name, limit, "B", exporter.size)
    if name == "latency":
        return Target(name, limit, "s", exporter.time)
    whole = float(getattr(cost_of(network), name))
    return Target(name, limit * whole, "1", lambda shaped: float(getattr(cost_of(shaped), name)))


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
