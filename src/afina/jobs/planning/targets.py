"""What a compressed network may cost at most, in MACs, parameters, bytes or seconds, and how a plan gets near it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from afina.errors import InputError
from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.options.targets import Goal
from afina.units import format_value

T = TypeVar("T")
# A target is met from below, by at most this share of it, where the steps of axes and ranks allow that; where they do
# not, the record says so, and what ends further below than `_TOO_FAR` is an error.
TOLERANCE, _TOO_FAR = 0.02, 0.25
_TRIES = 6
_ROUNDING = 1e-9
_COUNTED = {"macs": "MACs", "parameters": "parameters"}


@dataclass(frozen=True)
class Target:
    """A limit on the cost of a compressed network.

    Attributes:
        name: `macs`, `parameters`, `size` or `latency`.
        limit: The limit.
        unit: The limit's unit, as in `Measurement`.
        measure: The cost of a network of some shape; its weights do not matter.
    """

    name: str
    limit: float
    unit: str
    measure: Callable[[Network], float]

    @property
    def counted(self) -> bool:
        """Whether it is counted in the graph, at no cost, and not in a file or by a clock."""
        return self.name in _COUNTED

    def near(self, value: float) -> bool:
        """Whether the target is met, and no further from below than need be."""
        return self.limit * (1 - TOLERANCE) <= value <= self.limit

    def shortfall(self, value: float, reason: str, *, coarse: bool = False) -> tuple[str, ...]:
        """A note for the record where what was reached lies further below the target than it need; none where not.

        Args:
            value: What was reached.
            reason: Why no nearer: what the next step up would cost.
            coarse: Whether the user asked for coarse steps (whole blocks), so that it may end anywhere below.

        Raises:
            InputError: it lies so far below that it is not what was asked for; never of a time, which varies by itself.
        """
        if value >= self.limit * (1 - TOLERANCE):
            return ()
        reached, asked = format_cost(self, value), format_cost(self, self.limit)
        if value < self.limit * (1 - _TOO_FAR) and self.name != "latency" and not coarse:
            raise InputError(
                f"The target of {asked} is missed from below: the nearest that was found has {reached}.",
                why=reason,
                fix="Give a larger target, or one as low as that to have this network; or let more of it change "
                "(--axis, --multiple 1).",
            )
        return (f"{reached}, which is {1 - value / self.limit:.0%} below the target of {asked}: {reason}",)


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
    """The plan that meets a target from below and is near it, with what it measures; the cheapest one if none meets it.

    A planner charges layers by a model of their cost (their MACs, say), while the target is about what is measured (the
    bytes of a file, say). So the charge at which the measurement is just below the target is searched: secant steps
    between the nearest points above and below it. For a target of 100 KB, with points (charge, measured)

        whole (9.0, 150 KB), cheapest (1.0, 30 KB): the next charge is 1.0 + 8.0 * (99.5 - 30) / (150 - 30) = 5.6

    and if that plan measures 104 KB, the next one lies between 1.0 and 5.6. The search ends after `_TRIES` plans, or
    with one that is within `TOLERANCE` below the target.

    The first charge is what the target would be if charges and measurements had one scale, without going below it: the
    half of a layer of 32 channels is 16, not 15.

    Args:
        target: What is to be met.
        plan: Gives the best plan that is charged at most some cost.
        cost: What a plan is charged.
        measure: What it really costs, in the target's unit.
        whole: The charge and the measurement of the network as it is.
        least: The cheapest plan.

    Returns:
        The plan, and its measurement.
    """
    best, nearest = least, measure(least)
    measured_points = [whole, (cost(best), nearest)]
    for number in range(_TRIES if nearest <= target.limit else 0):
        aim = target.limit * (1 - TOLERANCE / 4 if number else 1 + _ROUNDING)
        above = min((point for point in measured_points if point[1] > target.limit), key=lambda point: point[1])
        below = max((point for point in measured_points if point[1] <= target.limit), key=lambda point: point[1])
        share = (aim - below[1]) / max(above[1] - below[1], 1e-12)
        candidate = plan(below[0] + (above[0] - below[0]) * min(max(share, 0.02), 0.98))
        value = measure(candidate)
        point = (cost(candidate), value)
        if point in measured_points:
            break
        measured_points.append(point)
        if nearest < value <= target.limit:
            nearest, best = value, candidate
        if target.near(value):
            break
    return best, nearest


def format_cost(target: Target, value: float) -> str:
    """A cost of the target's kind in words: `2.5 MB`, or with what it counts where the unit does not say it.

    Example:
        >>> format_cost(Target("macs", 1e6, "1", lambda network: 0.0), 40_800_000)
        '40.8 M MACs'
    """
    counted = f" {_COUNTED[target.name]}" if target.name in _COUNTED else ""
    return format_value(value, target.unit) + counted
