"""How few units an axis may keep, in what steps, and which axes must not both lose units."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes import Analysis, Axis
from afina.techniques.prune.config import PruneConfig


def step_of(axis: Axis, config: PruneConfig) -> int:
    """The step of an axis: the number of units that it keeps is a multiple of this.

    `PruneConfig.multiple` counts channels, of which a unit may have several: heads of 4 channels keep a multiple of 8
    channels when they go two at a time.

    Example:
        >>> from afina.graph.axes import Member
        >>> heads = Axis("attention", 12, (Member("proj.weight", 0, np.repeat(np.arange(12), 4), "producer"),))
        >>> step_of(heads, PruneConfig(multiple=8)), fewest(heads, PruneConfig(multiple=8, minimum=3))
        (2, 4)
    """
    channels = max((int((m.units >= 0).sum()) // axis.size for m in axis.members if m.role == "producer"), default=1)
    multiple = config.multiple if max(channels, 1) * axis.size >= config.wide else 1
    return multiple // math.gcd(multiple, max(channels, 1))


def fewest(axis: Axis, config: PruneConfig) -> int:
    """The smallest number of units that an axis may keep: whole steps (`step_of`), where it has more than one."""
    least = max(config.minimum, math.ceil(axis.size * config.floor), 1)
    step = step_of(axis, config)
    return min(math.ceil(least / step) * step if axis.size > step else least, axis.size)


# Two axes can meet in one dimension of a weight: the channels of a grouped convolution, here 2 groups of 2 channels,
# each go with a group (axis 0) and with a place in the group (axis 1). A channel stays when both of its units stay.
#
#     owners   [[0, 0, 0, 0],     axis of the first label of each position, and of the second; -1: no free axis
#               [1, 1, 1, 1]]
#     units    [[0, 0, 1, 1],     unit of that axis
#               [0, 1, 0, 1]]
#
# All 2 x 2 pairs of units are there, so whichever group and whichever place is kept, the channel that is both of them
# stays. A layer that reads the first and the last channel alone has
#
#     owners   [[0, 0],           units   [[0, 1],
#               [1, 1]]                    [0, 1]]
#
# Keep group 0 and place 1: (0, 0) goes for its place and (1, 1) for its group, and the layer has no input left. So the
# axis of fewer units stays whole, its labels become -1, and the dimension is looked at again: with `owners`
# [[0, 0], [-1, -1]] both units of axis 0 are there, and one of them is always kept.
def at_odds(analysis: Analysis, axes: Sequence[Axis]) -> dict[str, str]:
    """Axes that have to stay whole, by name, with the reason: else a weight could be left without any position.

    Where each position of a weight goes with a unit of one axis and a unit of another (a group, and a channel of every
    group), one is left as long as every pair of units is there. A layer that reads only some pairs, such as every
    ninth of eight groups of eight channels, may lose them all: then the smaller of the axes stays whole.
    """
    sizes = np.array([axis.size for axis in axes], dtype=np.int64)
    owner = np.full(len(analysis.solution.root), -1, dtype=np.int64)
    unit = owner.copy()
    for number, axis in enumerate(axes):
        classes = analysis.classes[axis.name]
        owner[classes], unit[classes] = number, np.arange(axis.size)
    reasons: dict[str, str] = {}
    for expr in [*(expr for dims in analysis.stored_dims.values() for expr in dims), *analysis.needed]:
        while expr:
            owners = np.stack([np.where(array >= 0, owner[array], -1) for array in expr])
            units = np.where(owners >= 0, np.stack([unit[array] for array in expr]), -1)
            if _leaves_some(owners, units, sizes):
                break
            smallest, *others = sorted(set(owners[owners >= 0].tolist()), key=lambda number: (sizes[number], -number))
            reasons[axes[smallest].name] = "a layer would have nothing left if " + (
                f"it lost units together with {axes[others[0]].name}" if others else "some of its units went"
            )
            owner[analysis.classes[axes[smallest].name]] = -1
    return reasons


def _leaves_some(owners: NDArray[np.int64], units: NDArray[np.int64], sizes: NDArray[np.int64]) -> bool:
    """Whether some position is left whichever units stay, as long as each axis keeps one of its units.

    Args:
        owners: The number of the axis of each label of each position, or -1: `[labels, positions]`.
        units: The unit of that axis, or -1: `[labels, positions]`.
        sizes: How many units each axis has.

    Example:
        >>> owners, sizes = np.array([[0, 0, 0, 0], [1, 1, 1, 1]]), np.array([2, 2])
        >>> _leaves_some(owners, np.array([[0, 0, 1, 1], [0, 1, 0, 1]]), sizes)
        True
        >>> _leaves_some(owners[:, :2], np.array([[0, 1], [0, 1]]), sizes)
        False
    """
    if (owners < 0).all(axis=0).any():
        return True
    kinds, combinations = _coded(owners, len(sizes)), _coded(units, int(sizes.max()))
    for kind, first in zip(*np.unique(kinds, return_index=True), strict=True):
        pattern = owners[:, first]
        if len(np.unique(combinations[kinds == kind])) == np.prod(sizes[pattern[pattern >= 0]]):
            return True
    return False


def _coded(rows: NDArray[np.int64], largest: int) -> NDArray[np.int64]:
    """One number for each column of `rows`, whose entries are digits from -1 to `largest - 1`; equal for equal columns.

    Example:
        >>> _coded(np.array([[0, 0, 1], [-1, 1, 1]]), 2)  # (0 + 1) * 3 + (-1 + 1), ...
        array([3, 5, 8])
    """
    code = np.zeros(rows.shape[1], dtype=np.int64)
    for row in rows:
        code = code * (largest + 1) + row + 1
    return code
