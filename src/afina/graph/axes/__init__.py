"""Which dimensions of which weights shrink together: the axes of a captured graph.

`labels` is the union-find over positions, `layers`, `elementwise` and `shapes` are the rules for each op,
`analysis` walks a graph with them and gathers what was found.
"""

from afina.graph.axes.analysis import Analysis, Axes, Axis, Member, analyse

__all__ = ["Analysis", "Axes", "Axis", "Member", "analyse"]
