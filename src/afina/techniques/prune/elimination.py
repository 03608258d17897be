"""Takes units out of what layers read, each time those that cost least, and refits the weights that are left.

A layer computes `y = W x` on rows with second moments `H = xx / rows` (damped). When the columns S of W go and the
others are refitted by least squares, the mean squared error of y grows by `tr(W_S [(H^-1)_SS]^-1 W_S^T)`, and

    W <- W - W_S [(H^-1)_SS]^-1 (H^-1)_S,:        H^-1 <- H^-1 - (H^-1)_:,S [(H^-1)_SS]^-1 (H^-1)_S,:

(Hassibi & Stork 1993, "Second order derivatives for network pruning: optimal brain surgeon", equations 3 to 5, for a
set of columns instead of one weight). For an axis that several layers read, their growths are summed, each as a share
of what the layer's outputs vary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afina.errors import AfinaError
from afina.graph.axes import Axis
from afina.graph.network import Network
from afina.graph.statistics import Moments, Reader
from afina.graph.stored import attribute

_DAMPING = {torch.float64: 1e-4, torch.float32: 1e-3}
# An axis is emptied in about so many rounds: wide axes lose several units in each.
_ROUNDS = 64


# One output reads three inputs, `y = 3 x0 + 2 x1 + 1.5 x2`. The first two resemble each other, the third is alone:
#
#     H = [[5, 4, 0],        H^-1 = [[ 0.56, -0.44, 0  ],
#          [4, 5, 0],                [-0.44,  0.56, 0  ],
#          [0, 0, 5]]                [ 0,     0,    0.2]]
#
# `growth`: without input j the error grows by w_j^2 / (H^-1)_jj, which is 16.2, 7.2 and 11.25. So input 1 goes, though
# the smallest weight is that of input 2: input 0 can stand in for input 1, and nothing for input 2.
#
# `take_out`: w <- [3, 2, 1.5] - 2 / 0.56 * [-0.44, 0.56, 0] = [4.6, 0, 1.5]. Input 0 takes over 4/5 of the weight, as
# 4/5 x0 is the best guess of x1. Had weight 1 become zero and no other changed, the error would be 2 * 5 * 2 = 20.
# H^-1 <- [[0.2, 0, 0], [0, 0, 0], [0, 0, 0.2]], which is the inverse of H without input 1. So the next growths (105.8
# and 11.25) are again those of a full refit, and H itself is inverted once.
#
# A unit with several columns (the pixels of a channel after `flatten`, a head) takes them all out together: w_j becomes
# the matrix W_S and (H^-1)_jj the block (H^-1)_SS. The constant is a last column that always stays.
class State:
    """A layer that loses inputs: its refitted matrices, with the constant's column last, and the inverse moments.

    Args:
        reader: The layer.
        weight: Its weight, as in the network.
        moments: What it reads.

    Attributes:
        matrices: `[stack, outputs, columns + 1]`; a stack is the groups, or the blocks of inputs, of the layer.
        inverse: The inverse of the damped mean of `[x; 1] [x; 1]^T`: `[stack, columns + 1, columns + 1]`.
        present: Which columns are still there, `[stack, columns]`.
        scale: One over the energy of the layer's outputs around their mean; errors are multiplied by it.

    Raises:
        AfinaError: the moments cannot be inverted.

    Example:
        >>> reader = Reader("fc.weight", bias=None, shape=(1, 3), nodes=("fc",))
        >>> h = [[5, 4, 0, 0], [4, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]
        >>> moments = Moments(torch.tensor([h], dtype=torch.float64), rows=1)
        >>> state = State(reader, torch.tensor([[3, 2, 1.5]]), moments)
        >>> columns = [_Columns(np.array([0, 1, 2]), torch.device("cpu"))]
        >>> (state.growth(columns, 3) / state.scale).numpy().round(1)
        array([16.2,  7.2, 11.3])
        >>> round(state.take_out(columns, [1]) / state.scale, 1), state.matrices[0, 0].numpy().round(1)
        (7.2, array([4.6, 0. , 1.5, 0. ]))
    """

    def __init__(self, reader: Reader, weight: Tensor, moments: Moments) -> None:
        self.reader = reader
        h = moments.xx / max(moments.rows, 1)
        matrices = torch.nn.functional.pad(reader.matrices(weight.detach()).to(h), (0, 1))
        centred = h - h[:, :, -1:] * h[:, -1:, :]
        energy = float(((matrices @ centred) * matrices).sum())
        self.matrices, self.scale = matrices, 1.0 / max(energy, 1e-12)
        self.inverse = _inverse(h, reader)
        self.present = torch.ones(matrices.shape[0], matrices.shape[2] - 1, dtype=torch.bool)

    def growth(self, columns: "list[_Columns]", size: int) -> Tensor:
        """How much the error would grow without each single unit, `[size]`; 0 for units that are not read here.

        Args:
            columns: The unit of each column, for each matrix of the stack.
            size: How many units the axis has.
        """
        total = torch.zeros(size, dtype=self.matrices.dtype, device=self.matrices.device)
        for matrix, inverse, unit_columns in zip(self.matrices, self.inverse, columns, strict=True):
            for units, index in unit_columns.by_width():
                block = inverse[index[:, :, None], index[:, None, :]]
                weights = matrix[:, index].transpose(0, 1)
                solved = torch.linalg.solve(block, weights.transpose(1, 2))
                total.index_add_(0, units, (solved * weights.transpose(1, 2)).sum((1, 2)))
        return total * self.scale

    def take_out(self, columns: "list[_Columns]", units: Sequence[int]) -> float:
        """Take the columns of `units` out and refit the others, in place; gives the growth of the error."""
        total = 0.0
        for s, unit_columns in enumerate(columns):
            index = unit_columns.of(units)
            if not len(index):
                continue
            rows = self.inverse[s, index]
            weights = self.matrices[s][:, index]
            solved = torch.linalg.solve(rows[:, index], torch.cat((rows, weights.T), dim=1))
            step, back = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
            total += float((back * weights.T).sum())
            self.matrices[s] -= weights @ step
            self.inverse[s] -= rows.T @ step
            self.present[s, index.cpu()] = False
            # What went earlier stays exactly zero, whatever is left of it in the inverse by rounding.
            self.matrices[s][:, :-1][:, ~self.present[s]] = 0
        return total * self.scale


class _Columns:
    """Which columns of one matrix go with which units.

    Args:
        units: The unit of each column, -1 for a column of no unit (or one that is gone): `[columns]`.
        device: Where indices are put.

    Example:
        >>> columns = _Columns(np.array([0, 0, 2, -1, 1, 1]), torch.device("cpu"))
        >>> columns.of([0, 2])
        tensor([0, 1, 2])
        >>> for units, index in columns.by_width():  # unit 2 has one column, the units 0 and 1 have two
        ...     print(units.tolist(), index.tolist())
        [2] [[2]]
        [0, 1] [[0, 1], [4, 5]]
    """

    def __init__(self, units: NDArray[np.int64], device: torch.device) -> None:
        self._units, self._device = units, device

    def of(self, units: Iterable[int]) -> Tensor:
        """The columns of some units."""
        return torch.from_numpy(np.flatnonzero(np.isin(self._units, list(units)))).to(self._device)

    def by_width(self) -> Iterable[tuple[Tensor, Tensor]]:
        """For each number `m` of columns that a unit has: the `n` units that have so many, and their columns `[n, m]`.

        So the units of one width are solved for in one batch.
        """
        order = np.argsort(self._units, kind="stable")
        order = order[self._units[order] >= 0]
        present, counts = np.unique(self._units[order], return_counts=True)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1])) if len(counts) else counts
        for width in np.unique(counts):
            chosen = counts == width
            index = order[starts[chosen][:, None] + np.arange(width)]
            yield torch.from_numpy(present[chosen]).to(self._device), torch.from_numpy(index).to(self._device)


@dataclass(frozen=True)
class Path:
    """The order in which an axis loses units.

    Attributes:
        order: The units that go, in the order in which they go.
        losses: The summed error of the layers that read the axis when so many units are gone, from none to all of
            `order`, each layer's as a share of what its outputs vary: `[len(order) + 1]`.
        matrices: At each stop (a number of units gone), the refitted matrices of those layers by the weight's name.
    """

    order: tuple[int, ...]
    losses: NDArray[np.float64]
    matrices: dict[int, dict[str, Tensor]] = field(default_factory=dict)


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

    def of(self, axis: Axis) -> dict[str, tuple[State, list[_Columns]]]:
        """By the weight's name, the layers that read an axis, with the unit of each of their columns.

        Layers without moments are left out. Columns that are gone already belong to no unit any more.
        """
        readings: dict[str, tuple[State, list[_Columns]]] = {}
        for member in axis.members:
            if member.role != "consumer" or member.dim != 1 or member.name not in self._moments:
                continue
            reader = self._readers[member.name]
            kernel = int(np.prod(reader.shape[2:]))
            units = reader.columns(torch.from_numpy(np.repeat(member.units, kernel)))
            state = self._state(member.name)
            units = torch.where(state.present, units, -1)
            columns = [_Columns(part.numpy(), state.matrices.device) for part in units]
            readings[member.name] = state, columns
        return readings

    def release(self, names: Iterable[str]) -> None:
        """Keep only the matrices of layers that lose no more inputs: the inverses are what takes the memory."""
        for name in names:
            if name in self._states:
                self._states[name].inverse = self._states[name].inverse[:, :0, :0].clone()

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
        removed: The units that go, in this order, where they were chosen before; None for those that cost least.
    """
    if not states.of(axis):
        return None
    per_round = max(1, axis.size // _ROUNDS)
    order: list[int] = []
    losses = np.zeros(count + 1)
    matrices: dict[int, dict[str, Tensor]] = {}
    alive = np.ones(axis.size, dtype=bool)
    while len(order) < count:
        readings = states.of(axis)
        next_stop = min([count, *(stop for stop in stops if stop > len(order))])
        number = min(per_round, next_stop - len(order))
        units = _cheapest(axis, readings, alive, number) if removed is None else removed[len(order) :][:number]
        growth = sum(state.take_out(columns, units) for state, columns in readings.values())
        before = len(order)
        order += units
        alive[list(units)] = False
        losses[before : len(order) + 1] = np.linspace(losses[before], losses[before] + max(growth, 0.0), len(units) + 1)
        if len(order) in stops:
            matrices[len(order)] = {name: state.matrices.clone() for name, (state, _) in readings.items()}
    return Path(tuple(order), losses, matrices)


def _cheapest(
    axis: Axis, readings: Mapping[str, tuple[State, "list[_Columns]"]], alive: NDArray[np.bool_], count: int
) -> list[int]:
    """The `count` units whose loss makes the summed error grow least, of those that are `alive` (`[size]`)."""
    growth = sum(state.growth(columns, axis.size).double().cpu() for state, columns in readings.values())
    assert isinstance(growth, Tensor)
    ranked = np.argsort(np.where(alive, growth.numpy(), np.inf), kind="stable")
    cheapest: list[int] = ranked[:count].tolist()
    return cheapest


def _inverse(h: Tensor, reader: Reader) -> Tensor:
    """The inverse of damped moments `h`, `[stack, columns + 1, columns + 1]`.

    Where the layer cannot take a constant, the last row and column are those of the identity: then no weight is moved
    to the constant.
    """
    count = h.shape[1]
    diagonal = h.diagonal(dim1=1, dim2=2)
    damping = _DAMPING[h.dtype] * diagonal[:, :-1].mean(1, keepdim=True).clamp_min(1e-12)
    damped = h + torch.diag_embed(damping.expand(-1, count))
    if not reader.takes_constant:
        damped[:, -1, :] = damped[:, :, -1] = 0
        damped[:, -1, -1] = 1
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        raise AfinaError(
            f"What {reader.name} reads on the calibration images could not be inverted.",
            why="Its inputs are of extremely different size.",
            fix="Use more calibration images, or the magnitude criterion.",
        )
    return torch.cholesky_inverse(factor)
