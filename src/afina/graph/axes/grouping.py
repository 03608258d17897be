"""Classes of labels gathered into axes: units that always go with the same weights, as often as each other.

Two convolutions, `a` with 3 channels and `b` with 2, are flattened over 2 pixels, laid end to end and read by `fc`:

    fc(cat([a(x).flatten(1), b(x).flatten(1)], dim=1))

`Labels.solve` gives the classes 0, 1, 2 to the channels of `a` and 6, 7 to those of `b`. Each dimension of a weight is
a *slot*, with the class of each of its positions:

    slot 0, outputs of a:    0 1 2
    slot 1, outputs of b:    6 7
    slot 2, columns of fc:   0 0 1 1 2 2 6 6 7 7

All five classes are of one family, since the columns of `fc` hold them side by side. Were they one axis of five units,
removing the same share of units would not be removing the same share of weights, and ranking its units would compare
channels of `a` with channels of `b`. What tells them apart is where they stand. For each class, count how often each
slot has it:

    class    slot 0   slot 1   slot 2
    0, 1, 2       1        0        2
    6, 7          0        1        2

Classes with equal rows (and family, reason and tags) are one axis: {0, 1, 2} and {6, 7}. The table has a column for
each dimension of each weight, so it is not made. Each slot gets a random 64-bit number instead, and a class the sum of
the numbers of its slots, as often as it stands there: equal rows give equal sums, and other rows give other sums but
for a chance of 1 in 2^64. Cost is linear in the size of the weights' dimensions. Families are needed beside the sums:
2 heads of 2 numbers each stand equally often in the same weights, and are two axes.

Last, each axis says for each slot which unit stands at each position: for the axis of `b`, whose units 0 and 1 are the
classes 6 and 7, `units` is `-1 -1 -1 -1 -1 -1 0 0 1 1` in the columns of `fc`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes.labels import Array


@dataclass(frozen=True)
class Group:
    """The classes of one axis.

    Attributes:
        classes: `[units]`: the class of each unit.
        places: For each slot that has any of them, its number, and for each position the unit there, or -1.
    """

    classes: Array
    places: tuple[tuple[int, Array], ...]


def group(slots: Sequence[Array], kinds: Sequence[NDArray[Any]]) -> list[Group]:
    """The classes that stand in `slots`, gathered into groups, in the order of the smallest class of each.

    Args:
        slots: For each dimension of each weight, the class of each position; -1 where there is none.
        kinds: Arrays `[classes]`; classes that differ in one of them are of different groups.

    Example:
        >>> slots = [np.array(slot) for slot in ([0, 1, 2], [3, 4], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])]
        >>> [axis.classes.tolist() for axis in group(slots, [np.zeros(5)])]
        [[0, 1, 2], [3, 4]]
        >>> group(slots, [np.zeros(5)])[1].places[1]
        (2, array([-1, -1, -1, -1, -1, -1,  0,  0,  1,  1]))
    """
    count = len(kinds[0])
    signature = _signatures(slots, count)
    present = np.flatnonzero(signature)
    if not present.size:
        return []
    keys = np.stack([signature[present], *(kind[present].astype(np.uint64) for kind in kinds)])
    _, numbers = np.unique(keys, axis=1, return_inverse=True)
    group_of_present = _by_first(numbers.reshape(-1))

    # Units of a group are numbered in the order of their classes.
    order = np.argsort(group_of_present, kind="stable")
    sizes = np.bincount(group_of_present)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    group_of, unit_of = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    group_of[present] = group_of_present
    unit_of[present[order]] = np.arange(len(present)) - np.repeat(starts, sizes)

    places: list[list[tuple[int, Array]]] = [[] for _ in sizes]
    for slot, classes in enumerate(slots):
        here = np.where(classes >= 0, group_of[classes], -1)
        for number in np.unique(here[here >= 0]):
            places[number].append((slot, np.where(here == number, unit_of[classes], -1)))
    return [
        Group(present[order[start : start + size]], tuple(part))
        for start, size, part in zip(starts, sizes, places, strict=True)
    ]


def _signatures(slots: Sequence[Array], count: int) -> NDArray[np.uint64]:
    """For each class the sum of the random numbers of the positions that it stands at; 0 where it stands nowhere."""
    signature = np.zeros(count, dtype=np.uint64)
    numbers = np.random.default_rng(0).integers(1, 2**63, size=len(slots), dtype=np.uint64)
    for number, classes in zip(numbers, slots, strict=True):
        np.add.at(signature, classes[classes >= 0], number)
    return signature


def _by_first(numbers: NDArray[Any]) -> Array:
    """Group numbers in the order in which the groups appear."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
