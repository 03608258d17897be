"""Labels: the removable units that each position of each dimension belongs to, and the union-find over them.

A *label* stands for something that can be removed: a channel, a head, a column. A dimension of `n` positions is
described by an `Expr`: a tuple of integer arrays of length `n`, the labels that each position carries. A position
goes away when any of its labels does. So

- a plain dimension is one array; a sum (after `cat`, or padding) is arrays laid end to end;
- a product (after `flatten`, or heads x head dimension) is several arrays, one for each factor, repeated or tiled;
- the empty tuple is a dimension that never changes (batch, pixels); -1 in an array is a position without a label.

Nothing needs refining when a slice or a `cat` cuts through a dimension: labels are as fine as units.

**A sum.** Convolutions of 3 and 2 channels (labels 0 1 2 and 3 4) are flattened over 2 pixels, laid end to end, and
read by a linear layer of 10 columns (labels 5 to 14):

    flatten   join(((0 1 2), FIXED), (3, 2))                 0 0 1 1 2 2
              join(((3 4), FIXED), (2, 2))                   3 3 4 4
    cat       concatenate                                    0 0 1 1 2 2 3 3 4 4
    linear    unite with                                     5 6 7 8 9 10 11 12 13 14

`unite` notes the edges 0-5, 0-6, 1-7, 1-8 and so on, and `solve` finds the classes {0, 5, 6}, {1, 7, 8}, ...: a
channel and its columns. Without following single positions, one would only know that 5 channels meet 10 columns.

**A product.** A linear layer makes 6 numbers (labels 0 to 5), which attention views as 2 heads of 3. `split` makes
labels for the heads, 6 7, and for the numbers of a head, 8 9 10, and each of the six is *defined* as a pair:

    label     0 1 2 3 4 5
    head      6 6 6 7 7 7
    number    8 9 10 8 9 10

A second layer, with labels 11 to 16, is viewed in the same way (heads 17 18, numbers 19 20 21) and multiplied with the
first. Then 0 is 11, and what defines both must be the same, factor by factor: 6 is 17 and 8 is 19. Such a match can
make other labels equal whose factors match in turn, so `solve` goes on until nothing changes any more. In the result
no label is left that can be removed alone: `expand` writes the six positions as (6 6 6 7 7 7) and (8 9 10 8 9 10), so
removing head 7 takes the last three, and removing number 9 takes the second and the fifth. Without definitions a
single one of the six could be removed, and the view as 2 x 3 would fail.

A label of three factors is a pair of the first and of a label for the others. When a label is fixed its factors are;
one that would be a factor of itself is fixed. Every step only ties labels together or fixes them, so what remains free
is safe to remove.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Expr = tuple[Array, ...]
FIXED: Expr = ()

_KNOT = "it is viewed as a product of itself"


class Labels:
    """Collects which labels ops make equal, products of others, or fixed; `solve` draws the conclusions."""

    def __init__(self) -> None:
        self._count = 0
        self._families: list[int] = []
        self._edges: list[tuple[Array, Array]] = []
        self._definitions: list[Array] = [np.empty((3, 0), dtype=np.int64)]
        self._fixes: list[tuple[Array, int]] = []
        self._reasons: list[str] = []

    def fresh(self, size: int) -> Expr:
        """A plain dimension of `size` new labels, which belong together (a family)."""
        start = self._count
        self._count += size
        self._families.append(size)
        return (np.arange(start, start + size, dtype=np.int64),)

    def fix(self, expr: Expr, reason: str) -> None:
        """The labels in `expr` must stay, for `reason`, a clause about "it"."""
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
        if _same(a, b):
            return a
        # Positions with the same numbers of labels on both sides are treated together:
        #   1 and 1    an edge between the two labels
        #   1 and 2    the one label is the product of the two, a definition
        #   2 and 2    a new label that is the product of either pair, so that `solve` matches the pairs
        #   0 and any  the labels are fixed
        left, right = _packed(a), _packed(b)
        left_counts, right_counts = (left >= 0).sum(axis=0), (right >= 0).sum(axis=0)
        for left_count, right_count in sorted(set(zip(left_counts.tolist(), right_counts.tolist(), strict=True))):
            here = (left_counts == left_count) & (right_counts == right_count)
            if not left_count or not right_count:
                self.fix((*left[:left_count, here], *right[:right_count, here]), reason)
                continue
            whole = left[0, here] if left_count == 1 else self.fresh(int(here.sum()))[0]
            self._define(whole, left[:left_count, here])
            self._define(whole, right[:right_count, here])
        return a if len(a) <= len(b) else b

    def split(self, expr: Expr, outer: int, inner: int) -> tuple[Expr, Expr]:
        """Views a dimension of `outer * inner` positions as two; gives the expressions of both."""
        if outer == 1 or inner == 1 or not expr:
            return (FIXED if outer == 1 else expr), (FIXED if inner == 1 else expr)
        if self._is_laid_in_rows(expr, outer):
            return self._tied_rows(expr, outer)
        if len(expr) > 1 and any((array < 0).any() for array in expr):
            expr = self._as_one(expr)
        # An array of 6 positions viewed as 2 x 3:
        #   0 0 0 1 1 1    is the same along a row: a factor 0 1 of the outer dimension
        #   0 1 2 0 1 2    is the same in all rows: a factor 0 1 2 of the inner dimension
        #   0 1 2 3 4 5    is neither: new labels for rows and columns, of which each of the six is the product
        rows: list[Array] = []
        columns: list[Array] = []
        for array in expr:
            grid = array.reshape(outer, inner)
            if (grid == grid[:, :1]).all():
                rows.append(grid[:, 0])
            elif (grid == grid[:1]).all():
                columns.append(grid[0])
            else:
                row, column = self.fresh(outer)[0], self.fresh(inner)[0]
                over_rows, over_columns = np.repeat(row, inner), np.tile(column, outer)
                bare = array < 0
                self.fix((over_rows[bare], over_columns[bare]), "it is viewed as a product where a part of it is fixed")
                self._define(array[~bare], np.stack((over_rows, over_columns))[:, ~bare])
                rows.append(row)
                columns.append(column)
        return tuple(rows), tuple(columns)

    def _is_laid_in_rows(self, expr: Expr, outer: int) -> bool:
        """Whether each row is of families that no other row has: rows that a `cat` or a `stack` laid end to end."""
        families = [np.where(array >= 0, self._family_of(array), -1).reshape(outer, -1) for array in expr]
        first = np.concatenate(families, axis=1)
        if not (first >= 0).any(axis=1).all():
            return False
        sets = [set(np.unique(row[row >= 0]).tolist()) for row in first]
        return sum(len(row_families) for row_families in sets) == len(set().union(*sets))

    def _family_of(self, array: Array) -> Array:
        starts = np.concatenate(([0], np.cumsum(self._families)[:-1])) if self._families else np.zeros(1)
        return np.searchsorted(starts, array, side="right") - 1

    def _tied_rows(self, expr: Expr, outer: int) -> tuple[Expr, Expr]:
        """Rows that differ in kind must all stay; what goes from one goes from the others too."""
        grids = [array.reshape(outer, -1) for array in expr]
        columns: Expr = tuple(grid[0] for grid in grids)
        for row in range(1, outer):
            columns = self.unite(
                columns, tuple(builder[row] for builder in grids), "is viewed as rows, of which one is fixed"
            )
        return FIXED, columns

    def _as_one(self, expr: Expr) -> Expr:
        """The same dimension with one label for each position that has any."""
        packed = _packed(expr)
        counts = (packed >= 0).sum(axis=0)
        whole = np.where(counts == 1, packed[0], -1)
        for count in range(2, len(expr) + 1):
            here = counts == count
            whole[here] = self.fresh(int(here.sum()))[0] if here.any() else -1
            self._define(whole[here], packed[:count, here])
        return (whole,)

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
        """The solution for classes of equal labels: fixed ones fix their factors, a product of itself is fixed."""
        factors = np.full((2, self._count), -1, dtype=np.int64)
        reason = np.full(self._count, -1, dtype=np.int64)
        reasons = (*self._reasons, _KNOT)
        for labels, index in reversed(self._fixes):
            reason[root[labels]] = index
        defined, *parts = root[np.concatenate(self._definitions, axis=1)]
        factors[:, defined] = parts
        knots = _knots(factors)
        reason[knots] = len(reasons) - 1
        while True:  # what is fixed fixes its factors
            fixed = reason[defined] >= 0
            before = int((reason >= 0).sum())
            for part in parts:
                target = part[fixed]
                reason[target] = np.where(reason[target] < 0, reason[defined[fixed]], reason[target])
            if int((reason >= 0).sum()) == before:
                break
        factors[:, knots] = -1
        return Solution(root, family, reason, reasons, factors)

    def _define(self, labels: Array, factors: Array) -> None:
        """Each label is the product of its column of factors, outermost first."""
        if len(factors) == 1:
            self._edges.append((labels, factors[0]))
            return
        if len(factors) > 2:
            rest = self.fresh(len(labels))[0]
            self._define(rest, factors[1:])
            factors = np.stack((factors[0], rest))
        self._definitions.append(np.stack((labels, *factors)))

    def _implied(self, root: Array) -> Array:
        """Pairs of factors that are the same because what they define is the same."""
        defined, *parts = root[np.concatenate(self._definitions, axis=1)]
        order = np.argsort(defined, kind="stable")
        twins = np.flatnonzero(defined[order][1:] == defined[order][:-1])
        pairs = []
        for part in parts:
            left, right = part[order][twins], part[order][twins + 1]
            new = left != right
            pairs.append(np.stack((left[new], right[new])))
        return np.concatenate(pairs, axis=1)

    @staticmethod
    def _pair(edges: Sequence[tuple[Array, Array]]) -> Array:
        if not edges:
            return np.empty((2, 0), dtype=np.int64)
        return np.stack([np.concatenate(side) for side in zip(*edges, strict=True)])


@dataclass(frozen=True)
class Solution:
    """The classes of equal labels, as `Labels.solve` gives them.

    Attributes:
        root: Class of each label (the smallest label in it).
        family: Family of each label; labels of one axis share it.
        reason: For each class, why it is fixed, as an index into `reasons`; -1 where it is free.
        reasons: The texts that `reason` counts in.
        factors: [2, classes]: the two classes that each class is the product of; -1 where it is atomic.
    """

    root: Array
    family: Array
    reason: Array
    reasons: tuple[str, ...]
    factors: Array

    def expand(self, expr: Expr) -> Expr:
        """The expression in atomic classes."""
        pending, atomic = list(expr), []
        while pending:
            array = pending.pop(0)
            classes = np.where(array >= 0, self.root[array], -1)
            parts = np.where(classes >= 0, self.factors[:, classes], -1)
            if (parts < 0).all():
                atomic.append(classes)
            else:
                pending[:0] = [np.where(parts[0] >= 0, parts[0], classes), parts[1]]
        return tuple(atomic)


def join(exprs: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    """The product of dimensions, outermost first, as a view that flattens them gives it.

    Example:
        >>> [array.tolist() for array in join([(np.arange(3),), FIXED], [3, 2])]
        [[0, 0, 1, 1, 2, 2]]
        >>> [array.tolist() for array in join([(np.arange(2),), (np.arange(2, 5),)], [2, 3])]
        [[0, 0, 0, 1, 1, 1], [2, 3, 4, 2, 3, 4]]
    """
    joined: list[Array] = []
    total = int(np.prod(sizes))
    outer = 1
    for expr, size in zip(exprs, sizes, strict=True):
        inner = total // (outer * size) if size else 0
        joined += [np.tile(np.repeat(array, inner), outer) for array in expr]
        outer *= size
    return tuple(joined)


def concatenate(exprs: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    """The sum of dimensions: one after the other.

    Example:
        >>> [array.tolist() for array in concatenate([(np.array([0, 1]),), FIXED], [2, 1])]
        [[0, 1, -1]]
    """
    widest = max((len(expr) for expr in exprs), default=0)
    slots = []
    for slot in range(widest):
        parts = [
            e[slot] if slot < len(e) else np.full(s, -1, dtype=np.int64) for e, s in zip(exprs, sizes, strict=True)
        ]
        slots.append(np.concatenate(parts))
    return tuple(slots)


def take(expr: Expr, index: "slice | Array") -> Expr:
    """The dimension that has only the positions of `index`, in its order."""
    return tuple(array[index] for array in expr)


def components(count: int, edges: Array) -> Array:
    """For each of `count` vertices the smallest vertex that `edges` [2, m] connect it with, `[count]`.

    Each round puts the larger root of every edge under the smaller one, then lets all vertices jump to the root of
    their root until they are at the top (hooking and pointer jumping, after Shiloach & Vishkin 1982).

    Example:
        >>> components(5, np.array([[0, 3], [1, 4]])).tolist()  # the edges 0-1 and 3-4
        [0, 0, 2, 3, 3]
    """
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


def _packed(expr: Expr) -> Array:
    """[most labels of a position, positions]: the labels of each position, in order, then -1."""
    stacked = np.stack(expr)
    return np.take_along_axis(stacked, np.argsort(stacked < 0, axis=0, kind="stable"), axis=0)


def _knots(factors: Array) -> Array:
    """Classes whose factors lead back to themselves."""
    resolved = factors[0] < 0
    while True:
        now = resolved | resolved[factors].all(axis=0)
        if (now == resolved).all():
            return np.flatnonzero(~now)
        resolved = now
