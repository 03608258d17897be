"""Replay: what a `Record` says was done to a network, done again."""

from typing import TYPE_CHECKING

from afina.techniques.table import TECHNIQUES
from afina.types import Record, Step

if TYPE_CHECKING:
    from afina.graph.network import Network
    from afina.techniques.context import Context


def replay(step: Step, network: "Network", context: "Context") -> "tuple[Network, Record]":
    """Apply a step to a network: on the same network and context, the network that the step was recorded from.

    Choices that were made for the step (units, ranks, precisions of single layers) are in it, and are not made again.

    Args:
        step: `Record.step`, which may have been through JSON.
        network: The network; it is left as it was.
        context: Calibration images and seed, as for `apply`.

    Raises:
        InputError: there is no such technique, or the step's config does not fit it or the network.
        NothingToDo: nothing of this network is touched.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.techniques.context import Context
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> grey = InputSpec(4, 4, mean=(0.5,), std=(0.5,), order="L")
        >>> network = capture(module, grey, TaskSpec("classification", ("cat", "dog")))
        >>> smaller, record = replay(Step("prune", {"ratio": 0.5}), network, Context())
        >>> again, _ = replay(record.step, network, Context())
        >>> int(record.after["parameters"]), record.step.config["keep"]
        (78, {'1': 4})
    """
    technique = TECHNIQUES.get(step.technique)
    return technique.apply(network, technique.read(step.config), context)
