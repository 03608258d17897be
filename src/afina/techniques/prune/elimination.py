"""Takes units out of what layers read, each time those that cost least, and refits the weights that are left.

What one layer loses is worked out in `state`. For an axis that several layers read, their growths are summed, each as
a share of what the layer's outputs vary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afina.graph.axes import Axis
from afina.graph.network import Network
from afina.graph.statistics import Moments, Reader
from afina.graph.stored import attribute
from afina.techniques.prune.state import State

# An axis is emptied in about so many rounds: wide axes lose several units in each.
_ROUNDS = 64
# The layers that read an axis, each with the unit of each of its columns, `[stack, columns]`.
Readings = Mapping[str, tuple[State, NDArray[np.int64]]]


@dataclass(frozen=True)
class Path:
    """The order in which an axis loses units.

    Attributes:
        order: The units that go, in the order in which they go.
        losses: The summed error of the layers that read the axis when so many units are gone, from none to all of
            `order`, each layer's as a share of what its outputs vary: `[len(order) + 1]`.
        matrices: At each stop (a number of units gone), the refitted matrices of those layers by the weight's name.
        fitted: Whether it was found by elimination, from layers that had all their inputs.
    """

    order: tuple[int, ...]
    losses: NDArray[np.float64]
    matrices: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    fitted: bool = False


class States:
    """The states of a network's layers; each is made when an axis that its layer reads is first looked at.

    Args:
        network: The network.
        readers: Its layers, by the weight's name.
        moments: What they read, by the weight's name.
    """

    def __init__(self, network: Network, readers: Mapping[str, Reader], moments: Mapping[str, Moments]) -> None:
        self._network, self._readers, self._moments = network, readers, moments
        self._states: dict[str, State] = {}

    def of(self, axis: Axis) -> Readings:
        """By the weight's name, the layers that read an axis, with the unit of each of their columns.

        Layers without moments are left out.
        """
        readings: dict[str, tuple[State, NDArray[np.int64]]] = {}
        for member in axis.members:
            if member.role != "consumer" or member.dim != 1 or member.name not in self._moments:
                continue
            reader = self._readers[member.name]
            kernel = int(np.prod(reader.shape[2:]))
            units = reader.columns(torch.from_numpy(np.repeat(member.units, kernel)))
            readings[member.name] = self._state(member.name), units.numpy()
        return readings

    def are_whole(self, axis: Axis) -> bool:
        """Whether no layer that reads an axis has lost inputs yet."""
        return all(state.is_whole for state, _ in self.of(axis).values())

    def release(self, names: Iterable[str]) -> None:
        """Keep only the matrices of layers that lose no more inputs."""
        for name in names:
            if name in self._states:
                self._states[name].release()

    @property
    def by_weight(self) -> dict[str, State]:
        """The states that were made so far, by the weight's name."""
        return self._states

    def _state(self, name: str) -> State:
        if name not in self._states:
            weight = attribute(self._network.module, name)
            self._states[name] = State(self._readers[name], weight, self._moments[name])
        return self._states[name]


# An axis of 128 units loses 128 / 64 = 2 units in a round. To lose 5, with a stop at 3, it takes rounds of 2, 1 and 2:
# the second is short so that the matrices can be copied at 3. Which units cost least is worked out once in a round, for
# each unit alone, so that two units that stand in for each other may go together. What they cost together is measured
# when they are taken out, and shared evenly between them; rounds that cost 0.02, 0.02 and 0.08 give
#
#     losses  [0, 0.01, 0.02, 0.04, 0.08, 0.12]
def eliminate(
    axis: Axis, states: States, count: int, stops: Sequence[int] = (), removed: Sequence[int] | None = None
) -> Path | None:
    """Take `count` units out of the layers that read an axis, changing `states`; None where none of them has moments.

    Args:
        axis: The axis.
        states: Its layers as they are now.
        count: How many units go.
        stops: Numbers of units gone at which the matrices are copied into the path.
        removed: The units that go, in this order, where they were chosen before; None for those that cost least. They
            are taken out at once, as what is left does not depend on the order.
    """
    readings = states.of(axis)
    if not readings:
        return None
    per_round = max(1, axis.size // _ROUNDS) if removed is None else count
    order: list[int] = []
    losses = np.zeros(count + 1)
    matrices: dict[int, dict[str, Tensor]] = {}
    alive = np.ones(axis.size, dtype=bool)
    while len(order) < count:
        next_stop = min([count, *(stop for stop in stops if stop > len(order))])
        number = min(per_round, next_stop - len(order))
        gone = _cheapest(axis, readings, alive, number) if removed is None else removed[len(order) :][:number]
        growth = sum(state.take_out(units, gone) for state, units in readings.values())
        before = len(order)
        order += gone
        alive[list(gone)] = False
        losses[before : len(order) + 1] = np.linspace(losses[before], losses[before] + max(growth, 0.0), len(gone) + 1)
        if len(order) in stops:
            matrices[len(order)] = {name: state.matrices for name, (state, _) in readings.items()}
    return Path(tuple(order), losses, matrices)


def _cheapest(axis: Axis, readings: Readings, alive: NDArray[np.bool_], count: int) -> list[int]:
    """The `count` units whose loss makes the summed error grow least, of those that are `alive` (`[size]`)."""
    growth = sum(state.growth(units, axis.size).double().cpu() for state, units in readings.values())
    assert isinstance(growth, Tensor)
    ranked = np.argsort(np.where(alive, growth.numpy(), np.inf), kind="stable")
    cheapest: list[int] = ranked[:count].tolist()
    return cheapest
