"""The posterior mean over a grid as a tensor train: its exact parts, and a search along it.

With levels chosen for each coordinate, the factors of the kernel are a table for each coordinate, (levels, data). The
mean at a point of the grid is a contraction of one row of each table: its additive part is a train of rank 2, its
part of pairs and that of products one of rank n + 2 and n (`e2` and products are recursions over the coordinates, one
for each of the n data). So a point costs n operations for each coordinate, a change of one coordinate n in all, and
the additive part has its exact minimum coordinate by coordinate.
"""

import numpy as np
from numpy.typing import NDArray

from afina.search.tensor_train.kernel import Array, combine, distances, factors
from afina.search.tensor_train.surrogate import Surrogate

Indices = NDArray[np.intp]


class TensorTrain:
    """The posterior over a grid.

    Args:
        surrogate: The Gaussian process, of d coordinates and n data.
        levels: The grid of each coordinate of the surrogate's kernel; one that is not active has [NaN] alone.
    """

    def __init__(self, surrogate: Surrogate, levels: list[Array]) -> None:
        self.surrogate, self.levels = surrogate, levels
        layout = surrogate.layout
        a, length, product, self._w2, self._wp, _ = layout.split(surrogate.theta)
        sizes = [len(grid) for grid in levels]
        padded = np.full((max(sizes), layout.d), np.nan)
        for j, grid in enumerate(levels):
            padded[: len(grid), j] = grid
        gap = distances(padded, surrogate.places, layout.categorical)
        k, _ = factors(gap, length, layout.categorical)
        c, _ = factors(gap, product, layout.categorical)
        self._u = [a[j] * k[j, : sizes[j]] for j in range(layout.d)]
        self._c = [c[j, : sizes[j]] for j in range(layout.d)]

    def points(self, rows: Indices) -> Array:
        """Points (m, d) of indices (m, d) into the levels."""
        return np.stack([grid[rows[:, j]] for j, grid in enumerate(self.levels)], axis=1)

    def covariance(self, rows: Indices) -> Array:
        """The kernel (m, n) between points of the grid, given as indices (m, d), and the data."""
        u = np.stack([table[rows[:, j]] for j, table in enumerate(self._u)])
        c = np.stack([table[rows[:, j]] for j, table in enumerate(self._c)])
        return combine(u, c, self._w2, self._wp)

    def posterior(self, rows: Indices) -> tuple[Array, Array]:
        """Mean and variance (m,) at indices (m, d)."""
        return self.surrogate.from_covariance(self.covariance(rows))

    def neighbours(self, row: Indices) -> tuple[Indices, Array]:
        """All indices (m, d) that differ from `row` (d,) in one coordinate, and their kernel (m, n) with the data."""
        rows, crosses = [], []
        u = np.stack([table[i] for table, i in zip(self._u, row, strict=True)])
        c = np.stack([table[i] for table, i in zip(self._c, row, strict=True)])
        total, squares = u.sum(axis=0), (u**2).sum(axis=0)
        ahead = np.cumprod(np.vstack([np.ones_like(total), c[:-1]]), axis=0)
        behind = np.cumprod(np.vstack([np.ones_like(total), c[:0:-1]]), axis=0)[::-1]
        for j, grid in enumerate(self.levels):
            if len(grid) < 2:
                continue
            # Pairs are e2 = (s^2 - q) / 2, with s the sum of all u and q that of their squares: the old u_j leaves
            # both, and the new one enters. The product without c_j is that of all before j times that of all behind.
            others = np.delete(np.arange(len(grid)), row[j])
            changed = np.tile(row, (len(others), 1))
            changed[:, j] = others
            one = self._u[j][others]
            s = total - u[j] + one
            q = squares - u[j] ** 2 + one**2
            crosses.append(s + self._w2 * (s * s - q) / 2 + self._wp * ahead[j] * behind[j] * self._c[j][others])
            rows.append(changed)
        if not rows:
            return row[None], self.covariance(row[None])
        return np.concatenate(rows), np.concatenate(crosses)

    def additive_minimum(self, optimism: tuple[float, ...] = (0.0,)) -> Indices:
        """Where the additive part of the posterior is least over the whole grid: exact.

        Args:
            optimism: Standard deviations of each coordinate's own part that are taken off its mean.

        Returns:
            Indices (len(optimism), d).
        """
        s, out = self.surrogate, np.zeros((len(optimism), len(self.levels)), dtype=np.intp)
        for j, table in enumerate(self._u):
            if len(table) < 2:
                continue
            mean = table @ s.weights
            spread = table @ s.whitener.T
            spread_squared = np.exp(s.theta[j]) - np.einsum("gn,gn->g", spread, spread)
            deviation = np.sqrt(np.maximum(spread_squared, 0.0))
            for b, share in enumerate(optimism):
                out[b, j] = np.argmin(mean - share * deviation)
        return out

    def beam(self, start: Indices, width: int, order: Indices) -> Indices:
        """A search along the train for where the mean is least: the `width` best beginnings are kept at each step.

        A beginning is compared by the mean of the point that has it and the rest of `start`, so that no result is
        worse than `start`. With two coordinates of three levels, `start` = (0, 0) and `width` = 2:

            first step     means at (0, 0), (1, 0), (2, 0)  =  0.9, 0.2, 0.4     kept: (1, 0), (2, 0)
            second step    means at (1, *) and (2, *)       =  0.2, 0.1, 0.5     kept: (2, 2), (1, 1)
                                                               0.4, 0.3, 0.0

        A search with `width` = 1 would have ended at (1, 1).

        Args:
            start: Indices (d,).
            width: Beginnings kept.
            order: The coordinates in the order in which the train is walked, (d,).

        Returns:
            Indices (at most `width`, d), the best first.
        """
        weights = self.surrogate.weights
        beginnings = start[None].copy()
        for j in order:
            size = len(self.levels[j])
            if size < 2:
                continue
            others = np.arange(len(self.levels)) != j
            u = np.stack([table[beginnings[:, i]] for i, table in enumerate(self._u)])[others]
            c = np.stack([table[beginnings[:, i]] for i, table in enumerate(self._c)])[others]
            total, pairs = u.sum(axis=0), (u.sum(axis=0) ** 2 - (u**2).sum(axis=0)) / 2
            one = self._u[j]
            # total + one + w2 (pairs + total * one) + wp * product * c, contracted with the weights of the data.
            fixed = (total + self._w2 * pairs) @ weights
            free = (weights * (1 + self._w2 * total)) @ one.T
            free += (weights * self._wp * c.prod(axis=0)) @ self._c[j].T
            values = fixed[:, None] + free
            best = np.argsort(values, axis=None, kind="stable")[: 4 * width]
            parent, level = np.unravel_index(best, values.shape)
            following = beginnings[parent]
            following[:, j] = level
            _, first = np.unique(following, axis=0, return_index=True)
            beginnings = following[np.sort(first)[:width]]
        return beginnings
