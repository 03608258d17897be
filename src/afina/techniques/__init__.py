"""Techniques: functions from a network to a cheaper one, each in a package of its own, and the table of them.

`TECHNIQUES` finds one by name (also those of other packages), `Technique` is the contract that each keeps, `replay`
does again what a `Record` says was done. Nothing here imports torch before a technique is asked for.
"""

from afina.techniques.base import DENSE_WEIGHTS, FLOAT_WEIGHTS, TRAITS, Technique, step_of_config
from afina.techniques.replay import replay
from afina.techniques.table import TECHNIQUES

__all__ = ["DENSE_WEIGHTS", "FLOAT_WEIGHTS", "TECHNIQUES", "TRAITS", "Technique", "replay", "step_of_config"]
