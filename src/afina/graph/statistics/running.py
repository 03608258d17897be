"""Networks that run node by node: they stop anywhere, go on from there, and hand on what is still to be read.

Layers that are solved or changed one after the other need their networks run up to each of them, and from each of them
to the end. From the start each time that would be as many passes over the images as there are layers.
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.graph.network import Network
from afina.graph.writing import owns, written


class Steps:
    """The nodes of a network in their order, and what is known of them before any of them runs.

    What is made of weights alone (quantized or standardised weights) is made anew for each node that reads it: a layer
    that was changed a moment ago has other ones.

    Args:
        network: The network; its graph stays as it is, its weights may change.

    Attributes:
        network: The network.
        nodes: Its nodes.
        places: The place of each node among them, by its name.
        of_weights: The nodes that depend on weights alone.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.nodes = network, list(network.graph.nodes)
        self.places = {node.name: place for place, node in enumerate(self.nodes)}
        self.of_weights: set[Node] = set()
        for node in self.nodes:
            if node.op not in ("placeholder", "output") and self.of_weights.issuperset(node.all_input_nodes):
                self.of_weights.add(node)
        last_use = {source: node for node in self.nodes for source in node.all_input_nodes}
        self._last_read: dict[Node, list[str]] = {}
        for source, node in last_use.items():
            self._last_read.setdefault(node, []).append(source.name)
        self._interpreter = Interpreter(network.module, garbage_collect_values=False)

    @property
    def writes_into_weights(self) -> bool:
        """Whether an op writes into what is made of weights alone, or a view of it: that is then not made anew.

        So does code that makes a tensor of zeros and fills it with what it works out.
        """
        return any(self._is_of_weights(target) for node in self.nodes for target in written(node))

    def _is_of_weights(self, target: Node) -> bool:
        while target not in self.of_weights:
            if owns(target) or not target.all_input_nodes:
                return False
            target = target.all_input_nodes[0]
        return True

    def read_last_by(self, node: Node) -> list[str]:
        """The values that no node behind this one reads."""
        return self._last_read.get(node, [])

    def value(self, node: Node, values: Mapping[str, Any], images: Tensor) -> Any:
        """What a node gives, for the values that are kept of others, by their names."""
        made = {
            source: self.value(source, values, images) if source in self.of_weights else values[source.name]
            for source in node.all_input_nodes
        }
        self._interpreter.env, self._interpreter.args_iter = made, iter([images])
        return self._interpreter.run_node(node)


class Run:
    """One batch of images on its way through a network. Gradients are off where it is used.

    Args:
        steps: The network.
        images: `[N, C, H, W]`.

    Attributes:
        reached: The place of the next node to run.
        values: What was given and is still to be read, by the node's name.
    """

    def __init__(self, steps: Steps, images: Tensor) -> None:
        self._steps, self._images = steps, images.to(steps.network.device)
        self.reached, self.values = 0, dict[str, Any]()
        self._shared: set[int] = set()  # storages of values that another run goes on from, too

    def go(self, end: int) -> None:
        """Run the nodes in front of place `end`."""
        for node in self._steps.nodes[self.reached : end]:
            if node not in self._steps.of_weights:
                self._keep_shared(node)
                self.values[node.name] = self._steps.value(node, self.values, self._images)
                for source in self._steps.read_last_by(node):
                    self.values.pop(source, None)
        self.reached = max(self.reached, end)

    def at(self, name: str) -> Node:
        """Run up to the node of that name, which does not run yet; gives it."""
        place = self._steps.places[name]
        self.go(place)
        node: Node = self._steps.nodes[place]
        return node

    def would_give(self, node: Node) -> Any:
        """What a node gives whose inputs are all kept."""
        return self._steps.value(node, self.values, self._images)

    def outputs(self) -> dict[str, Tensor]:
        """Run to the end; gives the outputs by their names."""
        place = next(place for place, node in enumerate(self._steps.nodes) if node.op == "output")
        self.go(place)
        return self._steps.network.named(self.would_give(self._steps.nodes[place]))

    def onward(self, steps: Steps) -> "Run":
        """A run of a network with the same nodes that goes on from here; this one stays where it is."""
        run = Run(steps, self._images)
        run.reached, run.values = self.reached, dict(self.values)
        run._shared = set(_storages(self.values))
        return run

    def kept(self) -> int:
        """Bytes of the values that are still to be read."""
        return sum(_storages(self.values).values())

    def _keep_shared(self, node: Node) -> None:
        """Copy all values (views stay views of the same) before a node writes into what another run goes on from."""
        if self._shared and any(self._shared & set(_storages(self.values, n.name)) for n in written(node)):
            self.values, self._shared = copy.deepcopy(self.values), set()


def most_kept(steps: Steps, images: Tensor) -> list[int]:
    """For each place, the most bytes that a run keeps of these images, in front of it or of any place behind it."""
    run, kept = Run(steps, images), [0]
    with torch.no_grad():
        for place, node in enumerate(steps.nodes):
            if node.op == "output":
                break
            run.go(place + 1)
            kept.append(run.kept())
    return list(itertools.accumulate(reversed(kept), max))[::-1]


def _storages(values: Mapping[str, Any], name: str | None = None) -> dict[int, int]:
    """The memory that values stand in, its address and bytes; of one of them, where a name is given."""
    storages = {}
    for value in values.values() if name is None else [values.get(name)]:
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return storages
