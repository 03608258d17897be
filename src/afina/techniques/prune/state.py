"""A layer that loses inputs: what it costs to take some out, and the weights that make up for them.

A layer computes `y = W x` on rows with second moments `H = xx / rows` (damped). When the columns S of W go and the
others are refitted by least squares, the mean squared error of y grows by `tr(W_S [(H^-1)_SS]^-1 W_S^T)`, and

    W <- W - W_S [(H^-1)_SS]^-1 (H^-1)_S,:        H^-1 <- H^-1 - (H^-1)_:,S [(H^-1)_SS]^-1 (H^-1)_S,:

(Hassibi & Stork 1993, "Second order derivatives for network pruning: optimal brain surgeon", equations 3 to 5, for a
set of columns instead of one weight).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afina.errors import AfinaError
from afina.graph.statistics import Moments, Reader

_DAMPING = {torch.float64: 1e-4, torch.float32: 1e-3}
# Below so many rows for each column the damping grows, by that power of what is missing. Measured on a network of 2,304
# columns and 1,800 rows, at 85% and 70% of the MACs (cosine with the original on other images): 0.78 and 0.75 without,
# 0.87 and 0.81 with a power of 2, 0.94 and 0.89 with 4; with a power of 4 and 8 rows for each column 0.95 and 0.93.
_ENOUGH, _POWER = 4, 4
# Matrices are cut down to the columns that are there once this share of them is gone.
_GONE = 0.125


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
    """A layer that loses inputs: its refitted matrices, with the constant's column last, and what they rest on.

    Args:
        reader: The layer.
        weight: Its weight, as in the network.
        moments: What it reads.

    Attributes:
        scale: One over the energy of the layer's outputs around their mean; errors are multiplied by it.
        is_whole: Whether the layer still has all its inputs.

    Example:
        >>> reader = Reader("fc.weight", bias=None, shape=(1, 3), nodes=("fc",))
        >>> h = [[5, 4, 0, 0], [4, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]
        >>> moments = Moments(100 * torch.tensor([h], dtype=torch.float64), rows=100)
        >>> state = State(reader, torch.tensor([[3, 2, 1.5]]), moments)
        >>> units = np.array([[0, 1, 2]])
        >>> (state.growth(units, 3) / state.scale).numpy().round(1)
        array([16.2,  7.2, 11.3])
        >>> round(state.take_out(units, [1]) / state.scale, 1), state.matrices[0, 0].numpy().round(1)
        (7.2, array([4.6, 0. , 1.5, 0. ]))
    """

    def __init__(self, reader: Reader, weight: Tensor, moments: Moments) -> None:
        h = moments.xx / max(moments.rows, 1)
        matrices = torch.nn.functional.pad(reader.matrices(weight.detach()).to(h), (0, 1))
        energy = float(((matrices @ h) * matrices).sum() - (matrices @ h[:, :, -1:]).square().sum())  # around the mean
        self.scale, self._width, self.is_whole = 1.0 / max(energy, 1e-12), matrices.shape[2], True
        self._parts = [
            _Part(reader.name, matrix.clone(), part, np.arange(self._width - 1), np.ones(self._width - 1, dtype=bool))
            for matrix, part in zip(matrices, _damp(h, reader, moments.rows), strict=True)
        ]

    @property
    def matrices(self) -> Tensor:
        """`[stack, outputs, columns + 1]`, zero where inputs are gone.

        A stack is the groups, or the blocks of inputs, of the layer.
        """
        first = self._parts[0].matrix
        whole = first.new_zeros(len(self._parts), first.shape[0], self._width)
        for matrix, part in zip(whole, self._parts, strict=True):
            here = torch.from_numpy(np.append(part.columns[part.present], self._width - 1))
            kept = torch.from_numpy(np.flatnonzero(np.append(part.present, True)))
            matrix[:, here.to(matrix.device)] = part.matrix[:, kept.to(matrix.device)]
        return whole

    def growth(self, units: NDArray[np.int64], size: int) -> Tensor:
        """How much the error would grow without each single unit, `[size]`; 0 for units that are not read here.

        Args:
            units: The unit of each column, -1 for a column of no unit: `[stack, columns]`.
            size: How many units the axis has.

        Raises:
            AfinaError: the moments cannot be inverted.
        """
        first = self._parts[0].matrix
        total = torch.zeros(size, dtype=first.dtype, device=first.device)
        for part, its in zip(self._parts, units, strict=True):
            for some, index in by_width(part.units(its)):
                index = index.to(first.device)
                total.index_add_(0, some.to(first.device), part.growth(index))
        return total * self.scale

    def take_out(self, units: NDArray[np.int64], gone: Sequence[int]) -> float:
        """Take the columns of the units `gone` out and refit the others, in place; gives the growth of the error.

        Raises:
            AfinaError: the moments cannot be inverted.
        """
        total = 0.0
        for part, its in zip(self._parts, units, strict=True):
            index = np.flatnonzero(np.isin(part.units(its), list(gone)))
            if len(index):
                total += part.take_out(index)
                self.is_whole = False
        return total * self.scale

    def release(self) -> None:
        """Keep only the matrices of a layer that loses no more inputs: the inverses are what takes the memory."""
        for part in self._parts:
            part.release()


@dataclass
class _Part:
    """One matrix of a stack, without the columns that went first.

    Columns that are known to go are taken out by one system of equations for those that stay. The inverse, which costs
    several times as much, is worked out where it is asked which columns cost least.

    Attributes:
        name: The layer's name.
        matrix: `[outputs, n + 1]`, the constant's column last.
        moments: The damped mean of `[x; 1] [x; 1]^T`, `[n + 1, n + 1]`; empty once the inverse is there.
        columns: Which of the layer's columns the `n` are.
        present: Which of them are still there; the matrices are cut down to those now and then.
    """

    name: str
    matrix: Tensor
    moments: Tensor
    columns: NDArray[np.int64]
    present: NDArray[np.bool_]
    _inverse: Tensor | None = None

    @property
    def inverse(self) -> Tensor:
        """The inverse of the moments. Raises `AfinaError` where there is none."""
        if self._inverse is None:
            self._inverse = torch.cholesky_inverse(_factor(self.moments, self.name))
            self.moments = self.moments[:0, :0].clone()
        return self._inverse

    def release(self) -> None:
        """Keep the matrix alone."""
        self.moments = self._inverse = self.moments[:0, :0].clone()

    def units(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """The unit of each of the `n` columns, from those of all the layer's columns; -1 for what is gone."""
        return np.where(self.present, units[self.columns], -1)

    def growth(self, index: Tensor) -> Tensor:
        """How much the error would grow without each unit, from the columns of units with `m` each: `[units, m]`."""
        if index.shape[1] == 1:
            columns = index[:, 0]
            return self.matrix[:, columns].square().sum(0) / self.inverse.diagonal()[columns]
        block = self.inverse[index[:, :, None], index[:, None, :]]
        weights = self.matrix.T[index]
        # tr(W_S B^-1 W_S^T) is tr(B^-1 W_S^T W_S), whose matrices are small.
        solved = torch.linalg.solve(block, weights @ weights.transpose(1, 2))
        return solved.diagonal(dim1=1, dim2=2).sum(1)  # type: ignore[no-any-return]

    def take_out(self, gone: NDArray[np.int64]) -> float:
        """Take columns out, and refit the others; gives the growth of the error."""
        index = torch.from_numpy(gone).to(self.matrix.device)
        weights = self.matrix[:, index]
        if self._inverse is None:
            return self._take_out_at_once(gone, index, weights)
        rows = self._inverse[index]
        solved = torch.linalg.solve(rows[:, index], torch.cat((rows, weights.T), dim=1))
        step, back = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
        growth = float((back * weights.T).sum())
        self.matrix.addmm_(weights, step, alpha=-1)
        self._inverse.addmm_(rows.T, step, alpha=-1)
        self.present[gone] = False
        if self.present.mean() <= 1 - _GONE:
            kept = self._cut()
            self._inverse = self._inverse[kept][:, kept]
        return growth

    def _take_out_at_once(self, gone: NDArray[np.int64], index: Tensor, weights: Tensor) -> float:
        """The same without the inverse: with the columns K that stay, `W_K <- W_K + W_S H_SK (H_KK)^-1`."""
        alone = float(((weights @ self.moments[index][:, index]) * weights).sum())
        wanted = weights @ self.moments[index]
        self.present[gone] = False
        kept = self._cut()
        self.moments, wanted = self.moments[kept][:, kept], wanted[:, kept].T
        solved = torch.cholesky_solve(wanted, _factor(self.moments, self.name))
        self.matrix += solved.T
        return alone - float((solved * wanted).sum())

    def _cut(self) -> Tensor:
        """Keep the columns that are present alone; gives which of the matrix's columns those are."""
        kept = torch.from_numpy(np.flatnonzero(np.append(self.present, True))).to(self.matrix.device)
        self.matrix = self.matrix[:, kept]
        self.columns = self.columns[self.present]
        self.present = self.present[self.present]
        return kept


def by_width(units: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each number `m` of columns that a unit has: the `n` units that have so many, and their columns `[n, m]`.

    So the units of one width are solved for in one batch. Columns of unit -1 are left out.

    Example:
        >>> for units, index in by_width(np.array([0, 0, 2, -1, 1, 1])):  # unit 2 has one column, 0 and 1 have two
        ...     print(units.tolist(), index.tolist())
        [2] [[2]]
        [0, 1] [[0, 1], [4, 5]]
    """
    order = np.argsort(units, kind="stable")
    order = order[units[order] >= 0]
    present, counts = np.unique(units[order], return_counts=True)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])) if len(counts) else counts
    for width in np.unique(counts):
        chosen = counts == width
        index = order[starts[chosen][:, None] + np.arange(width)]
        yield torch.from_numpy(present[chosen]), torch.from_numpy(index)


def _damp(h: Tensor, reader: Reader, rows: int) -> Tensor:
    """Damp moments `h`, `[stack, columns + 1, columns + 1]`, of so many rows, in place, and give them.

    Of few rows they are nearly singular: the columns that stay seem to make up for any that go, and on other images do
    not. The damping grows with the square of what is missing.

    Where the layer cannot take a constant, the last row and column are those of the identity: then no weight is moved
    to the constant.
    """
    diagonal = h.diagonal(dim1=1, dim2=2)
    scarce = max(1.0, _ENOUGH * h.shape[1] / max(rows, 1)) ** _POWER
    diagonal += _DAMPING[h.dtype] * scarce * diagonal[:, :-1].mean(1, keepdim=True).clamp_min(1e-12)
    if not reader.takes_constant:
        h[:, -1, :] = h[:, :, -1] = 0
        h[:, -1, -1] = 1
    return h


def _factor(moments: Tensor, name: str) -> Tensor:
    """The Cholesky factor of a layer's damped moments."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(moments)
    if bool(failed.any()):
        raise AfinaError(
            f"What {name} reads on the calibration images could not be inverted.",
            why="Its inputs are of extremely different size.",
            fix="Use more calibration images, or the magnitude criterion.",
        )
    return factor
