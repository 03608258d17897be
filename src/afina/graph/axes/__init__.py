"""Which dimensions of which weights shrink together: the axes of a captured graph.

`analysis` walks a graph and shows the whole on one example; `builder` is what the rules for each op (`layers`,
`elementwise`, `indexing`, `products`, `shapes`) see of it. `labels` is the union-find over positions, `grouping`
gathers its classes into axes.
"""

from afina.graph.axes.analysis import Analysis, Axes, Axis, Member, analyse

__all__ = ["Analysis", "Axes", "Axis", "Member", "analyse"]
