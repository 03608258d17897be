"""How few units an axis may keep, and in what steps."""

import math

from afina.graph.axes import Axis
from afina.techniques.prune.config import PruneConfig


def step_of(axis: Axis, config: PruneConfig) -> int:
    """What is kept is a multiple of this. The config counts channels, of which a unit may have several (a head)."""
    channels = max((int((m.units >= 0).sum()) // axis.size for m in axis.members if m.role == "producer"), default=1)
    return config.multiple // math.gcd(config.multiple, max(channels, 1))


def fewest(axis: Axis, config: PruneConfig) -> int:
    """Units that an axis keeps at least: whole steps, unless it has no more than one."""
    least = max(config.minimum, math.ceil(axis.size * config.floor), 1)
    step = step_of(axis, config)
    return min(math.ceil(least / step) * step if axis.size > step else least, axis.size)
