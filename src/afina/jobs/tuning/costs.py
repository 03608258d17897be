"""What a network costs beside its quality: further objectives of a search, and limits on its trials."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from afina.errors import InputError, did_you_mean

if TYPE_CHECKING:  # a search over a function needs no torch, and its workers start in a second
    from afina.graph.network import Network
    from afina.jobs.common.exporter import Exporter

# What is measured, and its unit. `seconds` is the time of the training, which is known when it is over.
COSTS = {"size": "B", "latency": "s", "parameters": "1", "macs": "1", "seconds": "s"}
SECONDS = "seconds"


@dataclass(frozen=True)
class Costs:
    """Which costs count, and how they are measured: on the exported float file, or in the graph.

    Attributes:
        exporter: Exports, weighs and times.
        also: Names in `COSTS`: what is to be low, beside the quality.
        limits: The largest value of what is limited, by its name.

    Raises:
        InputError: there is no such cost.
    """

    exporter: "Exporter"
    also: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.also:
            if name not in COSTS:
                raise InputError(f"There is no objective {name!r}.", fix=did_you_mean(name, COSTS))

    def of(self, network: "Network") -> dict[str, float]:
        """The costs of a network that count and do not depend on its weights, by their names."""
        counted = {*self.also, *self.limits} - {SECONDS}
        measured = {}
        if "size" in counted:
            measured["size"] = self.exporter.size(network)
        if "latency" in counted:
            measured["latency"] = self.exporter.time(network)
        if counted & {"parameters", "macs"}:
            from afina.graph.cost import cost_of

            cost = cost_of(network)
            measured |= {"parameters": float(cost.parameters), "macs": float(cost.macs)}
        return {name: measured[name] for name in COSTS if name in counted}
