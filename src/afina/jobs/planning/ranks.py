"""Which layers become chains, and of what rank: from a target to a form and ranks for each layer."""

from collections.abc import Mapping, Sequence
from functools import partial

from afina.budget import Option, choose
from afina.errors import InputError, NothingToDo
from afina.graph.network import Network
from afina.graph.statistics import freed
from afina.jobs.common.exporter import Exporter
from afina.jobs.planning.chain_times import ChainTimes
from afina.jobs.planning.targets import Target, approach, format_cost
from afina.progress import Progress
from afina.techniques.factorize import Chain, Chosen, Layer, frontier, shaped

# One layer's possibilities in the order of their costs; None is the layer as it is.
Priced = Sequence[tuple[Chain | None, float]]


class RankPlanner:
    """Shares a target out over the layers of a network.

    Args:
        network: The network.
        layers: Those that can become chains.
        chains: What each could become, with losses.
        kind: What layers are charged for: `parameters`, `macs` or `latency`.
        exporter: Times chains, where it is latency.
        progress: What the user sees.

    Attributes:
        total: What the layers cost as they are.
        smallest: What they cost at least.
        notes: Sentences for the record.
    """

    def __init__(
        self,
        network: Network,
        layers: Mapping[str, Layer],
        chains: Mapping[str, Sequence[Chain]],
        kind: str,
        exporter: Exporter,
        progress: Progress,
    ) -> None:
        self._network, self._layers, self.notes = network, layers, list[str]()
        times = ChainTimes(exporter, layers, chains, progress) if kind == "latency" else None
        self._priced = {name: _priced(layers[name], chains[name], kind, times) for name in layers}
        self._least = {name: _cheapest(priced) for name, priced in self._priced.items()}
        self._nothing = dict.fromkeys(self._priced, 0)
        self.total, self.smallest = self._cost(self._nothing), self._cost(self._least)

    def within(self, cost: float) -> Chosen:
        """A form and ranks for each layer that becomes a chain, so that the layers cost at most `cost` if they can."""
        return self._forms_and_ranks(self._least if cost <= self.smallest else self._chosen(cost))

    def reach(self, target: Target) -> Chosen:
        """A form and ranks for each layer that becomes a chain, so that the target is met, from below.

        Raises:
            NothingToDo: it is met already.
            InputError: it cannot be met, or only from far below; it says what can.
        """
        whole = target.measure(self._network)
        if whole <= target.limit:
            raise NothingToDo(
                f"The network is at {format_cost(target, whole)} already.",
                why=f"The target is {format_cost(target, target.limit)}.",
                fix="Give a smaller target.",
            )
        chosen, value = approach(
            target, self._chosen, self._cost, partial(self._measured, target), (self.total, whole), self._least
        )
        if value > target.limit:
            raise InputError(
                f"The target of {format_cost(target, target.limit)} cannot be met by factorizing: "
                f"the smallest possible is {format_cost(target, value)}.",
                fix="Give a larger target, or combine it with pruning or quantization: afina run, afina optimize.",
            )
        self.notes += target.shortfall(value, "ranks have no finer steps.")
        return self._forms_and_ranks(chosen)

    def _chosen(self, cost: float) -> dict[str, int]:
        options = {
            name: [Option(0.0 if chain is None else chain.loss, price) for chain, price in priced]
            for name, priced in self._priced.items()
        }
        return choose(options, cost)

    def _cost(self, chosen: Mapping[str, int]) -> float:
        return sum(self._priced[name][index][1] for name, index in chosen.items())

    def _forms_and_ranks(self, chosen: Mapping[str, int]) -> Chosen:
        chains = {name: self._priced[name][index][0] for name, index in chosen.items()}
        return {name: (chain.form, chain.ranks) for name, chain in chains.items() if chain is not None}

    def _measured(self, target: Target, chosen: Mapping[str, int]) -> float:
        value = target.measure(shaped(self._network, self._layers, self._forms_and_ranks(chosen)))
        freed(self._network)
        return value


def _cheapest(priced: Priced) -> int:
    """The index of the possibility that costs least."""
    return min(range(len(priced)), key=lambda i: priced[i][1])


def _priced(layer: Layer, chains: Sequence[Chain], kind: str, times: ChainTimes | None) -> Priced:
    """The layer as it is, and the chains that cost less; of chains with the same cost, the one with the least loss."""
    if times is None:
        whole = layer.macs if kind == "macs" else layer.parameters
        return [
            (None, whole),
            *((chain, getattr(chain, kind)) for chain in frontier(chains, kind) if getattr(chain, kind) < whole),
        ]
    return [(None, times.whole(layer)), *times.worth(layer, chains)]
