"""Taking units out of what layers read, each time the one that costs least, and refitting what is left.

A layer computes `y = W x` on rows with second moments `H = xx / rows` (damped). When the columns S of W go and the
others are refitted by least squares, the mean squared error of y grows by `tr(W_S [(H^-1)_SS]^-1 W_S^T)`, and

    W <- W - W_S [(H^-1)_SS]^-1 (H^-1)_S,:        H^-1 <- H^-1 - (H^-1)_:,S [(H^-1)_SS]^-1 (H^-1)_S,:

(Hassibi & Stork 1993, "Optimal brain surgeon", equations 3 to 5, for a set of columns instead of one weight). An axis
whose units several layers read is judged by the sum of their errors, each as a share of what its outputs vary.
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
# An axis is emptied in about so many rounds: wide axes lose several units at a time.
_ROUNDS = 64


class State:
    """A layer on its way to fewer inputs: its matrices with the constant's column last, and the inverse moments.

    Attributes:
        matrices: `[stack, outputs, columns + 1]`.
        inverse: `[stack, columns + 1, columns + 1]`.
        whole: Which columns are still there, `[stack, columns]`.
        scale: One over the energy of the layer's outputs around their mean.
    """

    def __init__(self, reader: Reader, weight: Tensor, moments: Moments) -> None:
        self.reader = reader
        h = moments.xx / max(moments.rows, 1)
        matrices = torch.nn.functional.pad(reader.matrices(weight.detach()).to(h), (0, 1))
        centred = h - h[:, :, -1:] * h[:, -1:, :]
        energy = float(((matrices @ centred) * matrices).sum())
        self.matrices, self.scale = matrices, 1.0 / max(energy, 1e-12)
        self.inverse = _inverse(h, reader)
        self.whole = torch.ones(matrices.shape[0], matrices.shape[2] - 1, dtype=torch.bool)

    def growth(self, columns: "list[_Columns]", size: int) -> Tensor:
        """For each of `size` units, how much the error would grow without it; 0 for units that are not read here."""
        grown = torch.zeros(size, dtype=self.matrices.dtype, device=self.matrices.device)
        for matrix, inverse, found in zip(self.matrices, self.inverse, columns, strict=True):
            for units, index in found.parts():
                block = inverse[index[:, :, None], index[:, None, :]]
                parts = matrix[:, index].transpose(0, 1)
                solved = torch.linalg.solve(block, parts.transpose(1, 2))
                grown.index_add_(0, units, (solved * parts.transpose(1, 2)).sum((1, 2)))
        return grown * self.scale

    def take_out(self, columns: "list[_Columns]", units: Sequence[int]) -> float:
        """Take the columns of `units` out and refit the others; gives the growth of the error."""
        grown = 0.0
        for s, found in enumerate(columns):
            gone = found.of(units)
            if not len(gone):
                continue
            rows = self.inverse[s, gone]
            parts = self.matrices[s][:, gone]
            solved = torch.linalg.solve(rows[:, gone], torch.cat((rows, parts.T), dim=1))
            step, back = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
            grown += float((back * parts.T).sum())
            self.matrices[s] -= parts @ step
            self.inverse[s] -= rows.T @ step
            self.whole[s, gone.cpu()] = False
            # What went earlier stays exactly zero, whatever is left of it in the inverse by rounding.
            self.matrices[s][:, :-1][:, ~self.whole[s]] = 0
        return grown * self.scale


class _Columns:
    """Which columns of one matrix go with which units."""

    def __init__(self, units: NDArray[np.int64], device: torch.device) -> None:
        self._units, self._device = units, device

    def of(self, units: Iterable[int]) -> Tensor:
        """The columns of some units."""
        return torch.from_numpy(np.flatnonzero(np.isin(self._units, list(units)))).to(self._device)

    def parts(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Units with as many columns each, `[n]`, and their columns `[n, m]`."""
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
    """The order in which an axis loses its units.

    Attributes:
        order: All units, the first to go first.
        losses: For each number of units gone, 0 to all but one, the summed error of what reads the axis, as a share of
            what those outputs vary.
        matrices: For each number of units gone that was asked for, the refitted matrices by the weight's name.
    """

    order: tuple[int, ...]
    losses: NDArray[np.float64]
    matrices: dict[int, dict[str, Tensor]] = field(default_factory=dict)


class States:
    """The layers that were looked at, made when they are first asked for.

    Args:
        network: The network.
        readers: Its layers.
        moments: What they read.
    """

    def __init__(self, network: Network, readers: Mapping[str, Reader], moments: Mapping[str, Moments]) -> None:
        self._network, self._readers, self._moments = network, readers, moments
        self._known: dict[str, State] = {}

    def of(self, axis: Axis) -> dict[str, tuple[State, list[_Columns]]]:
        """The layers that read an axis, with the unit of each of their columns; only those that have moments."""
        found: dict[str, tuple[State, list[_Columns]]] = {}
        for member in axis.members:
            if member.role != "consumer" or member.dim != 1 or member.name not in self._moments:
                continue
            reader = self._readers[member.name]
            kernel = int(np.prod(reader.shape[2:]))
            units = reader.columns(torch.from_numpy(np.repeat(member.units, kernel)))
            state = self._state(member.name)
            units = torch.where(state.whole, units, -1)
            columns = [_Columns(part.numpy(), state.matrices.device) for part in units]
            found[member.name] = state, columns
        return found

    def release(self, names: Iterable[str]) -> None:
        """Of layers that lose no more inputs, keep the matrices alone: the inverses are what takes the memory."""
        for name in names:
            if name in self._known:
                self._known[name].inverse = self._known[name].inverse[:, :0, :0].clone()

    @property
    def changed(self) -> dict[str, State]:
        """The layers that were asked for."""
        return self._known

    def _state(self, name: str) -> State:
        if name not in self._known:
            weight = attribute(self._network.module, name)
            self._known[name] = State(self._readers[name], weight, self._moments[name])
        return self._known[name]


def eliminate(
    axis: Axis, states: States, gone: int, stops: Sequence[int] = (), removed: Sequence[int] | None = None
) -> Path | None:
    """Take `gone` units out of what reads an axis, changing `states`; None where no layer with moments reads it.

    Args:
        axis: The axis.
        states: Its layers as they are now.
        gone: How many units are to go.
        stops: Numbers of units gone at which to keep the matrices.
        removed: The units that go, in this order, where they were chosen before; else those that cost least.
    """
    if not states.of(axis):
        return None
    per_round = max(1, axis.size // _ROUNDS)
    order: list[int] = []
    losses = np.zeros(gone + 1)
    kept: dict[int, dict[str, Tensor]] = {}
    alive = np.ones(axis.size, dtype=bool)
    while len(order) < gone:
        readings = states.of(axis)
        due = min([gone, *(stop for stop in stops if stop > len(order))])
        count = min(per_round, due - len(order))
        chosen = _cheapest(axis, readings, alive, count) if removed is None else removed[len(order) :][:count]
        grown = sum(state.take_out(columns, chosen) for state, columns in readings.values())
        before = len(order)
        order += chosen
        alive[list(chosen)] = False
        losses[before : len(order) + 1] = np.linspace(losses[before], losses[before] + max(grown, 0.0), len(chosen) + 1)
        if len(order) in stops:
            kept[len(order)] = {name: state.matrices.clone() for name, (state, _) in readings.items()}
    return Path(tuple(order), losses, kept)


def _cheapest(
    axis: Axis, readings: Mapping[str, tuple[State, "list[_Columns]"]], alive: NDArray[np.bool_], count: int
) -> list[int]:
    """The `count` units whose loss makes the summed error grow least, of those that are `alive`."""
    growth = sum(state.growth(columns, axis.size).double().cpu() for state, columns in readings.values())
    assert isinstance(growth, Tensor)
    ranked = np.argsort(np.where(alive, growth.numpy(), np.inf), kind="stable")
    cheapest: list[int] = ranked[:count].tolist()
    return cheapest


def _inverse(h: Tensor, reader: Reader) -> Tensor:
    """The inverse of damped moments; the constant has no part in it where the layer cannot take one."""
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
