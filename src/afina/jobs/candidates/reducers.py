"""Ways to a network with a smaller share of its parameters or multiply-accumulates, for `afina optimize`.

What a reducer has to know of the network (sensitivities of axes, losses of chains) is measured once, when it is first
needed, and serves every ratio.
"""

import math
from functools import cached_property
from typing import Protocol

from afina.graph.cost import layer_rows
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.axes import AxisPlanner
from afina.jobs.planning.ranks import RankPlanner
from afina.techniques import factorize
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig, Study
from afina.types import Record, Step

# Kernels like channels in eights; where layers are narrower than this, steps of eight would be too coarse.
_NARROW = 64


class Reducer(Protocol):
    """A technique that makes networks smaller by any share of their cost.

    Attributes:
        name: Name of the technique.
        doing: What it does, for the user to read.
    """

    name: str
    doing: str

    def most(self) -> float:
        """The largest ratio that can go."""
        ...

    def shape(self, ratio: float) -> Network:
        """A network of the shape that it has when `ratio` of the cost is gone; its weights do not matter."""
        ...

    def reduce(self, ratio: float) -> tuple[Network, Record]:
        """The network without `ratio` of the cost, its layers refitted."""
        ...

    def step(self, record: Record) -> Step:
        """The reduction as a step of a recipe."""
        ...


class Pruner:
    """Prunes axes.

    Args:
        network: The network.
        costs: `parameters` or `macs`: what is to go.
        context: Images.
        timed: Whether time is what counts.
    """

    name = "prune"
    doing = "Pruning"

    def __init__(self, network: Network, costs: str, context: Context, timed: bool) -> None:
        self._network, self._costs, self._context = network, costs, context
        narrowest = min((row.output[0] for row in layer_rows(network)[:-1] if row.output), default=_NARROW)
        self._config = PruneConfig(multiple=8 if timed or narrowest >= _NARROW else 4)

    @cached_property
    def _planner(self) -> AxisPlanner:
        return AxisPlanner(Study(self._network, self._config, self._context), "global", self._costs)

    def most(self) -> float:
        """1: for a ratio that cannot be reached the planner gives the smallest network."""
        return 1.0

    def shape(self, ratio: float) -> Network:
        """See `Reducer.shape`."""
        return self._planner.shape(self._counts(ratio))

    def reduce(self, ratio: float) -> tuple[Network, Record]:
        """See `Reducer.reduce`."""
        return self._planner.study.prune(self._counts(ratio))

    def step(self, record: Record) -> Step:
        """See `Reducer.step`."""
        left = _left(record, self._costs)
        return Step("prune", {self._costs: left, "multiple": self._config.multiple, "images": self._context.images})

    def _counts(self, ratio: float) -> dict[str, int]:
        return self._planner.counts((1 - ratio) * self._planner.sizing.total({}))


class Factorizer:
    """Writes layers as chains of smaller ones.

    Args:
        network: The network.
        costs: `parameters` or `macs`: what is to go.
        context: Images.
        timed: Whether time is what counts.
        exporter: Exports and times for the target runtime.
    """

    name = "factorize"
    doing = "Factorizing"

    def __init__(self, network: Network, costs: str, context: Context, timed: bool, exporter: Exporter) -> None:
        self._network, self._costs, self._context, self._exporter = network, costs, context, exporter
        self._config = factorize.FactorizeConfig(multiple=8 if timed else 1)

    @cached_property
    def _layers(self) -> dict[str, factorize.Layer]:
        return factorize.layers_of(self._network, self._config)[0]

    @cached_property
    def _planner(self) -> RankPlanner:
        chains = factorize.chains_with_losses(self._network, self._layers, self._config, self._context)
        return RankPlanner(self._network, self._layers, chains, self._costs, self._exporter, self._context.progress)

    def most(self) -> float:
        """See `Reducer.most`."""
        return 1 - self._planner.smallest / self._planner.total

    def shape(self, ratio: float) -> Network:
        """See `Reducer.shape`."""
        return factorize.shaped(self._network, self._layers, self._chosen(ratio))

    def reduce(self, ratio: float) -> tuple[Network, Record]:
        """See `Reducer.reduce`."""
        config = factorize.FactorizeConfig(multiple=self._config.multiple, layers=self._chosen(ratio))
        return factorize.apply(self._network, config, self._context)

    def step(self, record: Record) -> Step:
        """See `Reducer.step`."""
        left = _left(record, self._costs)
        return Step("factorize", {self._costs: left, "multiple": self._config.multiple, "images": self._context.images})

    def _chosen(self, ratio: float) -> factorize.Chosen:
        return self._planner.within((1 - ratio) * self._planner.total)


def _left(record: Record, costs: str) -> float:
    """The share of the cost that is left, rounded up to 0.01%, so that a step with it leaves no less."""
    return math.ceil(1e4 * record.after[costs] / record.before[costs]) / 1e4
