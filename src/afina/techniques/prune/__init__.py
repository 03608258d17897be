"""Structured pruning: remove the units of each free axis (channels, neurons, heads) that matter least.

`technique` chooses how many units stay and rewrites the network, `importance` says which ones matter.
"""

from afina.techniques.prune.technique import PruneConfig, apply

__all__ = ["PruneConfig", "apply"]
