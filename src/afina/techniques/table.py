"""The table of techniques: built-in ones, and those of installed packages (entry points of `afina.techniques`)."""

from afina.extensions import Table
from afina.techniques.base import Technique, accept_technique

# Built-in techniques are imported, and torch with them, when they are first asked for.
TECHNIQUES: Table[Technique] = Table(
    "technique",
    "afina.techniques",
    {
        "prune": "afina.techniques.prune:TECHNIQUE",
        "factorize": "afina.techniques.factorize:TECHNIQUE",
        "sparsify": "afina.techniques.sparsify:TECHNIQUE",
        "quantize": "afina.techniques.quantize.technique:TECHNIQUE",
    },
    accept=accept_technique,
)
