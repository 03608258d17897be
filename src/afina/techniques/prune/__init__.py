"""Structured pruning: remove the units of each free axis (channels, neurons, heads) that matter least.

`study` looks at a network's axes and prunes it, `elimination` chooses units in closed form and refits the layers that
read them, `importance` ranks by other criteria, `limits` says how few units an axis may keep, `sensitivity` measures
what losing units costs.
"""

from afina.techniques.prune.config import CRITERIA, KINDS, PruneConfig
from afina.techniques.prune.limits import fewest, step_of
from afina.techniques.prune.sensitivity import levels_for, sensitivities
from afina.techniques.prune.study import Study
from afina.techniques.prune.technique import TECHNIQUE, apply

__all__ = [
    "CRITERIA",
    "KINDS",
    "TECHNIQUE",
    "PruneConfig",
    "Study",
    "apply",
    "fewest",
    "levels_for",
    "sensitivities",
    "step_of",
]
