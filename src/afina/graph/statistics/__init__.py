"""Statistics of a network's layers over calibration images, and least-squares weights computed from them.

`readers` writes each layer as a matrix product, `moments` sums products of the rows that layers read, `sweep` those of
one layer after the other, `refit` solves for weights by least squares, `effect` compares outputs, `watching` reports
the values of single nodes, `running` runs a network from node to node.
"""

from afina.graph.statistics.effect import Effect, freed, tried
from afina.graph.statistics.moments import Moments, compare, gather, rows_wanted
from afina.graph.statistics.readers import Reader, find_readers, rows_of_image
from afina.graph.statistics.refit import add_constant, constant_of, refit, solve, write_matrices
from afina.graph.statistics.sweep import images_in_sweep, moments_in_turn
from afina.graph.statistics.watching import output_errors, watch

__all__ = [
    "Effect",
    "Moments",
    "Reader",
    "add_constant",
    "compare",
    "constant_of",
    "find_readers",
    "freed",
    "gather",
    "images_in_sweep",
    "moments_in_turn",
    "output_errors",
    "refit",
    "rows_of_image",
    "rows_wanted",
    "solve",
    "tried",
    "watch",
    "write_matrices",
]
