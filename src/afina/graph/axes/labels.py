"""Labels: what is known about each position of each dimension, and the union-find over it.

A *label* stands for something that can be removed: a channel, a head, a column. A dimension of `n` positions is
described by an `Expr`: a tuple of integer arrays of length `n`, the labels that each position carries. A position
goes away when any of its labels does. So

- a plain dimension is one array; a sum (after `cat`, or padding) is arrays laid end to end;
- a product (after `flatten`, or heads x head dimension) is several arrays, one for each factor, repeated or tiled;
- the empty tuple is a dimension that never changes (batch, pixels); -1 in an array is a position without a label.

Nothing needs refining when a slice or a `cat` cuts through a dimension: labels are as fine as units.

When a plain dimension is viewed as a product, each of its labels is *defined* as the pair of a row's label and
a column's label. Definitions of labels that turn out to be the same are matched factor by factor, until nothing
changes any more. Every step only ties labels together or fixes them, so what remains free is safe to remove.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Expr = tuple[Array, ...]
FIXED: Expr = ()

_CLASH = "is viewed as products of different shapes"
_KNOT = "is viewed as a product of itself"


class Labels:
    """Collects what the ops say about labels; `solve` draws the conclusions."""

    def __init__(self) -> None:
        self._count = 0
        self._families: list[int] = []
        self._edges: list[tuple[Array, Array]] = []
        self._definitions: dict[int, list[tuple[Array, Array]]] = {}
        self._fixes: list[tuple[Array, int]] = []
        self._reasons: list[str] = []

    def fresh(self, size: int) -> Expr:
        """A plain dimension of `size` new labels, which belong together (a family)."""
        start = self._count
        self._count += size
        self._families.append(size)
        return (np.arange(start, start + size, dtype=np.int64),)

    def fix(self, expr: Expr, reason: str) -> None:
        """The labels in `expr` must stay, for `reason` (which reads after "it")."""
        if not expr:
            return
        if not self._reasons or self._reasons[-1] != reason:
            self._reasons.append(reason)
        for array in expr:
            self._fixes.append((array[array >= 0], len(self._reasons) - 1))

    def unite(self, a: Expr, b: Expr, reason: str) -> Expr:
        """The two dimensions are the same one; gives its expression. A fixed side fixes the other, for `reason`."""
        if not a or not b:
            self.fix(a or b, reason)
            return FIXED
        if len(a) == len(b) == 1:
            bare = (a[0] < 0) | (b[0] < 0)
            if bare.any():
                for side in (a[0], b[0]):
                    self.fix((side[bare],), reason)
            self._edges.append((a[0][~bare], b[0][~bare]))
            return (np.where(bare, -1, a[0]),)
        if _same(a, b):
            return a
        if any((array < 0).any() for array in a + b):
            self.fix(a + b, "is a sum of products that is tied to another one")
            return FIXED
        whole = a if len(a) == 1 else self.fresh(len(a[0]))
        self._define(whole[0], a)
        self._define(whole[0], b)
        return a

    def split(self, expr: Expr, outer: int, inner: int) -> tuple[Expr, Expr]:
        """Views a dimension of `outer * inner` positions as two; gives the expressions of both."""
        if outer == 1 or inner == 1 or not expr:
            return (FIXED if outer == 1 else expr), (FIXED if inner == 1 else expr)
        rows: list[Array] = []
        columns: list[Array] = []
        for array in expr:
            grid = array.reshape(outer, inner)
            if (grid == grid[:, :1]).all():
                rows.append(grid[:, 0])
            elif (grid == grid[:1]).all():
                columns.append(grid[0])
            elif (grid < 0).any():
                self.fix(expr, "is viewed as a product where a part of it is fixed")
                return FIXED, FIXED
            else:
                row, column = self.fresh(outer), self.fresh(inner)
                self._define(array, (np.repeat(row[0], inner), np.tile(column[0], outer)))
                rows.append(row[0])
                columns.append(column[0])
        return tuple(rows), tuple(columns)

    def solve(self) -> "Solution":
        """The classes of labels that can be removed, and why the others cannot."""
        edges = [self._pair(self._edges)]
        while True:
            root = components(self._count, np.concatenate(edges, axis=1))
            implied = self._implied(root)
            if implied.shape[1] == 0:
                break
            edges.append(implied)
        family = np.repeat(np.arange(len(self._families)), self._families)
        tied = np.unique(np.sort(family[np.concatenate(edges, axis=1)], axis=0), axis=1)
        family = components(len(self._families), tied)[family]
        return self._conclude(root, family)

    def _conclude(self, root: Array, family: Array) -> "Solution":
        widest = max(self._definitions, default=1)
        factors = np.full((widest, self._count), -1, dtype=np.int64)
        arity = np.zeros(self._count, dtype=np.int64)
        reason = np.full(self._count, -1, dtype=np.int64)
        reasons = (*self._reasons, _CLASH, _KNOT)
        for labels, index in reversed(self._fixes):
            reason[root[labels]] = index
        for k, entries in self._definitions.items():
            cells, parts = _joined(entries)
            clash = root[cells[(arity[root[cells]] != 0) & (arity[root[cells]] != k)]]
            reason[clash] = len(reasons) - 2
            arity[root[cells]] = k
            factors[:k, root[cells]] = root[parts]
        knots = _knots(factors, arity)
        reason[knots] = len(reasons) - 1
        self._spread(root, reason)
        factors[:, knots], arity[knots] = -1, 0
        return Solution(root, family, reason, reasons, factors, arity)

    def _spread(self, root: Array, reason: Array) -> None:
        """What is fixed fixes its factors."""
        while True:
            before = int((reason >= 0).sum())
            for entries in self._definitions.values():
                cells, parts = _joined(entries)
                fixed = reason[root[cells]] >= 0
                for part in root[parts[:, fixed]]:
                    reason[part] = np.where(reason[part] < 0, reason[root[cells[fixed]]], reason[part])
            if int((reason >= 0).sum()) == before:
                return

    def _define(self, labels: Array, factors: Expr) -> None:
        if len(factors) == 1:
            self._edges.append((labels, factors[0]))
        else:
            self._definitions.setdefault(len(factors), []).append((labels, np.stack(factors)))

    def _implied(self, root: Array) -> Array:
        """Pairs of factors that are the same because what they define is the same."""
        pairs = [np.empty((2, 0), dtype=np.int64)]
        for entries in self._definitions.values():
            cells, parts = _joined(entries)
            order = np.argsort(root[cells], kind="stable")
            group, parts = root[cells][order], parts[:, order]
            twins = np.flatnonzero(group[1:] == group[:-1])
            for part in parts:
                left, right = part[twins], part[twins + 1]
                new = root[left] != root[right]
                pairs.append(np.stack((left[new], right[new])))
        return np.concatenate(pairs, axis=1)

    @staticmethod
    def _pair(edges: Sequence[tuple[Array, Array]]) -> Array:
        if not edges:
            return np.empty((2, 0), dtype=np.int64)
        return np.stack([np.concatenate(side) for side in zip(*edges, strict=True)])


@dataclass(frozen=True)
class Solution:
    """What `Labels.solve` found.

    Attributes:
        root: Class of each label (the smallest label in it).
        family: Family of each label; labels of one axis share it.
        reason: For each class, why it is fixed, as an index into `reasons`; -1 where it is free.
        reasons: Texts.
        factors: For each class, the classes that it is a product of; -1 where there are none.
        arity: For each class, how many factors it has; 0 for one that is atomic.
    """

    root: Array
    family: Array
    reason: Array
    reasons: tuple[str, ...]
    factors: Array
    arity: Array

    def expand(self, expr: Expr) -> Expr:
        """The expression in atomic classes."""
        waiting, done = list(expr), []
        while waiting:
            array = waiting.pop(0)
            classes = np.where(array >= 0, self.root[array], -1)
            arity = np.where(classes >= 0, self.arity[classes], 0)
            if not arity.any():
                done.append(classes)
                continue
            parts = np.where(arity > 0, self.factors[: arity.max(), classes], -1)
            parts[0] = np.where(arity > 0, parts[0], classes)
            waiting[:0] = list(parts)
        return tuple(done)


def join(exprs: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    """The product of dimensions, outermost first, as a view that flattens them gives it."""
    joined: list[Array] = []
    total = int(np.prod(sizes))
    outer = 1
    for expr, size in zip(exprs, sizes, strict=True):
        inner = total // (outer * size) if size else 0
        joined += [np.tile(np.repeat(array, inner), outer) for array in expr]
        outer *= size
    return tuple(joined)


def concatenate(exprs: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    """The sum of dimensions: one after the other."""
    widest = max((len(expr) for expr in exprs), default=0)
    slots = []
    for slot in range(widest):
        parts = [
            e[slot] if slot < len(e) else np.full(s, -1, dtype=np.int64) for e, s in zip(exprs, sizes, strict=True)
        ]
        slots.append(np.concatenate(parts))
    return tuple(slots)


def take(expr: Expr, index: slice) -> Expr:
    """A run of the positions."""
    return tuple(array[index] for array in expr)


def components(count: int, edges: Array) -> Array:
    """For each of `count` vertices the smallest vertex that `edges` [2, m] connect it with."""
    root = np.arange(count, dtype=np.int64)
    left, right = edges
    while left.size:
        a, b = root[left], root[right]
        open_ = a != b
        left, right, a, b = left[open_], right[open_], a[open_], b[open_]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = root[root]
            if (jumped == root).all():
                break
            root = jumped
    return root


def _same(a: Expr, b: Expr) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _joined(entries: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    cells = np.concatenate([cells for cells, _ in entries])
    return cells, np.concatenate([parts for _, parts in entries], axis=1)


def _knots(factors: Array, arity: Array) -> Array:
    """Classes whose factors lead back to themselves."""
    resolved = arity == 0
    while True:
        known = (factors < 0) | resolved[factors]
        now = resolved | known.all(axis=0)
        if (now == resolved).all():
            return np.flatnonzero(~now)
        resolved = now
