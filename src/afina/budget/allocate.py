"""The allocator: how many units each axis keeps, or what is done with each layer, so that a budget does least damage.

Two problems, two solvers. Layers that are changed each for itself have damages and costs that add up: `choose` solves
that as an integer program. Units of axes do not: a convolution between two axes costs the product of what both
keep, so what a unit saves depends on what is gone elsewhere. `allocate` goes step by step instead, each time where a
unit of cost is cheapest in damage.

A worked example of `allocate`: axes a and b of 4 units, a cost of kept(a) x kept(b) = 16 at the start, a limit of 8.

    losses of a   0  1  2  9      (0, 1, 2, 3 units gone)
    losses of b   0  4  5  6

The next unit of a costs 1 and saves 4: 1/4 for a unit of cost. For b the lower convex hull of the losses counts, 0, 2,
4, 6, since the step to 4 is worth it only with those after it: 2/4. So a goes to 3 and then to 2, and 2 x 4 = 8 fits
with a damage of 2. Without the hull b would look as dear as its first unit, 4, however cheap the others are. The last
step may save more than is needed; what fits again is then given back, where that undoes the most damage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from afina.budget.silence import silent_library
from afina.errors import InputError

# An axis is emptied in at most so many steps on the way; the last step is as fine as it can be.
_STEPS = 48
_MOST_BINDING = 4
# How far from the best an integer program may stop, as a share of it.
_GAP = 1e-3


class Costs(Protocol):
    """The cost that is limited, such as MACs or parameters, as a function of how many units each axis keeps."""

    def total(self, counts: Mapping[str, int]) -> float:
        """The cost of the whole network."""

    def saving(self, counts: Mapping[str, int], axis: str, count: int) -> float:
        """How much the cost falls when one axis goes from its units in `counts` to `count` units."""


@dataclass(frozen=True)
class Choice:
    """The damage that an axis does for each number of units gone, and the numbers that it may keep.

    Attributes:
        losses: Damage for each number of units gone, from 0; damages of axes add up.
        multiple: The number of kept units is a multiple of it, where more than that is kept.
        minimum: Units that must stay.

    Example:
        >>> Choice(losses=np.arange(10.0), multiple=4, minimum=2).fewer(10)
        [8, 4]
    """

    losses: NDArray[np.float64]
    multiple: int = 1
    minimum: int = 1

    @property
    def size(self) -> int:
        """Units of the axis as it is."""
        return len(self.losses)

    def fewer(self, count: int) -> list[int]:
        """The numbers of units that may be kept, of those below `count`, the largest first."""
        step = self.multiple if self.size > self.multiple else 1
        steps = range(((count - 1) // step) * step, 0, -step)
        whole = [self.size] if self.size < count and self.size % step else []
        return [*whole, *(units for units in steps if units >= self.minimum)]


def fewest_of(choices: Mapping[str, Choice]) -> dict[str, int]:
    """The fewest units that each axis may keep."""
    return {name: (choice.fewer(choice.size) or [choice.size])[-1] for name, choice in choices.items()}


def allocate(choices: Mapping[str, Choice], costs: Costs, limit: float) -> dict[str, int]:
    """How many units each axis keeps, so that the cost is at most `limit` (and near it).

    Units go where a unit of cost is cheapest, over the lower convex hull of each axis's losses. Were savings fixed,
    that would be the optimum of the Lagrangian relaxation; as a layer's cost is a product, they are taken anew at
    each step.

    Raises:
        InputError: even the smallest network costs more; it says what that costs and which axes bind.

    Example:
        >>> class Product:
        ...     def total(self, counts):
        ...         return counts["a"] * counts["b"]
        ...     def saving(self, counts, axis, count):
        ...         return self.total(counts) - self.total({**counts, axis: count})
        >>> choices = {"a": Choice(np.array([0.0, 1, 2, 9])), "b": Choice(np.array([0.0, 4, 5, 6]))}
        >>> allocate(choices, Product(), limit=8)
        {'a': 2, 'b': 4}
    """
    counts = {name: choice.size for name, choice in choices.items()}
    hulls = {name: np.asarray(_hull(choice.losses)) for name, choice in choices.items()}
    cost = costs.total(counts)
    while cost > limit:
        best = min(
            (_offer(name, choice, counts, costs, hulls[name]) for name, choice in choices.items()),
            key=lambda offer: offer[0],
            default=(np.inf, "", 0),
        )
        price, name, units = best
        if not np.isfinite(price):
            raise _too_small(choices, counts, cost, limit)
        if cost - costs.saving(counts, name, units) < limit:
            units = _most_units(choices[name], counts, costs, name, cost - limit)
        counts[name] = units
        cost = costs.total(counts)
    return _use_up(choices, counts, costs, limit - cost)


def _use_up(choices: Mapping[str, Choice], counts: Mapping[str, int], costs: Costs, room: float) -> dict[str, int]:
    """The counts after units are given back where that undoes the most damage, as far as `room` of the cost allows."""
    counts = dict(counts)
    while True:
        offers = []
        for name, choice in choices.items():
            lost = choice.losses[choice.size - counts[name]]
            for more in (units for units in choice.fewer(choice.size + 1) if units > counts[name]):
                if -costs.saving(counts, name, more) <= room:
                    offers.append((choice.losses[choice.size - more] - lost, name, more))
        if not offers:
            return counts
        _, name, more = min(offers)
        room += costs.saving(counts, name, more)
        counts[name] = more


def _offer(
    name: str, choice: Choice, counts: Mapping[str, int], costs: Costs, hull: NDArray[np.float64]
) -> tuple[float, str, int]:
    """The damage of an axis's next step for each unit of cost that it saves, the axis, and the units that it keeps."""
    count = counts[name]
    options = choice.fewer(count)
    if not options:
        return np.inf, name, count
    step = max(1, choice.size // _STEPS)
    units = next((option for option in options if option <= count - step), options[-1])
    saved = costs.saving(counts, name, units)
    grown = hull[choice.size - units] - hull[choice.size - count]
    return (grown / saved if saved > 0 else np.inf), name, units


def _most_units(choice: Choice, counts: Mapping[str, int], costs: Costs, name: str, gap: float) -> int:
    """The most units that the axis can keep while it saves `gap`."""
    return next(units for units in choice.fewer(counts[name]) if costs.saving(counts, name, units) >= gap)


def _hull(losses: NDArray[np.float64]) -> list[float]:
    """The lower convex hull of the losses, at every number of units gone."""
    corners: list[int] = []
    for x in range(len(losses)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (losses[b] - losses[a]) * (x - a) < (losses[x] - losses[a]) * (b - a):
                break
            corners.pop()
        corners.append(x)
    return list(np.interp(np.arange(len(losses)), corners, losses[corners]))


def _too_small(choices: Mapping[str, Choice], counts: Mapping[str, int], cost: float, limit: float) -> InputError:
    binding = sorted(choices, key=lambda name: -counts[name])[:_MOST_BINDING]
    shown = ", ".join(f"{name} (at {counts[name]} of {choices[name].size})" for name in binding) or "no axis is free"
    return InputError(
        f"The target of {limit:.4g} cannot be met by pruning: the smallest possible is {cost:.4g}.",
        why=f"What binds: {shown}.",
        fix="Give a larger target, a smaller minimum or multiple, or combine pruning with quantization.",
    )


@dataclass(frozen=True)
class Option:
    """One thing that may be done with a layer.

    Attributes:
        loss: The damage to the network's outputs.
        cost: What the layer then costs, in the unit of the limit.
    """

    loss: float
    cost: float


def choose(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, int]:
    """One option for each layer, by its number, so that the costs add up to at most `limit` with the least damage.

    An integer program, solved to within a thousandth of the best: damages and costs of layers add up.

    Raises:
        InputError: even the cheapest options cost more.

    Example:
        >>> layer = [Option(loss=0.0, cost=4.0), Option(loss=1.0, cost=2.0), Option(loss=5.0, cost=1.0)]
        >>> choose({"conv1": layer, "conv2": layer}, limit=6.0) in ({"conv1": 0, "conv2": 1}, {"conv1": 1, "conv2": 0})
        True
    """
    smallest = sum(min(option.cost for option in layer_options) for layer_options in options.values())
    if smallest > limit:
        raise InputError(f"The limit of {limit:.4g} cannot be met: the smallest possible is {smallest:.4g}.")
    flat = [option for layer_options in options.values() for option in layer_options]
    one_each = np.zeros((len(options), len(flat)))
    start = 0
    for row, layer_options in enumerate(options.values()):
        one_each[row, start : start + len(layer_options)] = 1
        start += len(layer_options)
    with silent_library():
        solution = milp(
            np.array([option.loss for option in flat]),
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(np.array([[option.cost for option in flat]]), -np.inf, limit),
            ],
            options={"mip_rel_gap": _GAP},
        )
    chosen = np.asarray(solution.x)
    return {name: int(chosen[one_each[row] > 0].argmax()) for row, name in enumerate(options)}
