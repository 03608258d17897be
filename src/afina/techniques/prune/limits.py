"""How few units an axis may keep, in what steps, and which axes must not both lose units."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afina.graph.axes import Analysis, Axis
from afina.techniques.prune.config import PruneConfig


def step_of(axis: Axis, config: PruneConfig) -> int:
    """What is kept is a multiple of this. The config counts channels, of which a unit may have several (a head)."""
    channels = max((int((m.units >= 0).sum()) // axis.size for m in axis.members if m.role == "producer"), default=1)
    multiple = config.multiple if max(channels, 1) * axis.size >= config.wide else 1
    return multiple // math.gcd(multiple, max(channels, 1))


def fewest(axis: Axis, config: PruneConfig) -> int:
    """Units that an axis keeps at least: whole steps, unless it has no more than one."""
    least = max(config.minimum, math.ceil(axis.size * config.floor), 1)
    step = step_of(axis, config)
    return min(math.ceil(least / step) * step if axis.size > step else least, axis.size)


def at_odds(analysis: Analysis, axes: Sequence[Axis]) -> dict[str, str]:
    """Axes that stay whole so that something of every weight is left whichever units the others keep; with the reason.

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
    found: dict[str, str] = {}
    for expr in [*(expr for dims in analysis.held.values() for expr in dims), *analysis.needed]:
        while expr:
            owners = np.stack([np.where(array >= 0, owner[array], -1) for array in expr])
            units = np.where(owners >= 0, np.stack([unit[array] for array in expr]), -1)
            if _leaves_some(owners, units, sizes):
                break
            smallest, *others = sorted(set(owners[owners >= 0].tolist()), key=lambda number: (sizes[number], -number))
            found[axes[smallest].name] = "a layer would have nothing left if " + (
                f"it lost units together with {axes[others[0]].name}" if others else "some of its units went"
            )
            owner[analysis.classes[axes[smallest].name]] = -1
    return found


def _leaves_some(owners: NDArray[np.int64], units: NDArray[np.int64], sizes: NDArray[np.int64]) -> bool:
    """Whether a position `[labels, positions]` stays as long as one unit of each axis does: all combinations occur."""
    if (owners < 0).all(axis=0).any():
        return True
    kinds, combinations = _coded(owners, len(sizes)), _coded(units, int(sizes.max()))
    for kind, first in zip(*np.unique(kinds, return_index=True), strict=True):
        pattern = owners[:, first]
        if len(np.unique(combinations[kinds == kind])) == np.prod(sizes[pattern[pattern >= 0]]):
            return True
    return False


def _coded(rows: NDArray[np.int64], largest: int) -> NDArray[np.int64]:
    """One number for each column of numbers from -1 to below `largest`."""
    code = np.zeros(rows.shape[1], dtype=np.int64)
    for row in rows:
        code = code * (largest + 1) + row + 1
    return code
