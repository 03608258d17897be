"""The moments of one layer after the other, each with what the layer reads once those before it are solved.

To run the network from the start for each layer would take as many passes over the images as there are layers. Here the
reference and the network stop in front of a layer, with what is still to be read kept for each batch of images; when
the layer is solved, both go on from there. So each layer runs once for each image in either network.

What is kept has to fit into memory. Where it does not, several layers share a pass (`passes`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Interpreter, Node

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics.moments import LayerSums, Moments, compare, gather
from afina.graph.statistics.readers import Reader

# Multiply-accumulates that all passes over the images may take together; a pass stops at the last layer to solve.
_WORK = 1.6e13
_FEWEST_PASSES, _FEWEST_IMAGES = 12, 64
# Bytes that may be kept of both networks' values between two layers.
_KEPT_BYTES = 1.5e9

Outputs = Mapping[str, Tensor | None]


def moments_in_turn(
    reference: Network,
    network: Network,
    readers: Mapping[str, Reader],
    outputs: Outputs,
    images: Callable[[], Iterable[Tensor]],
    count: int,
) -> Iterator[tuple[dict[str, Moments], bool]]:
    """The moments of layers in the order of the graph; whoever takes them solves the layers before taking the next.

    Args:
        reference: The network before.
        network: The network after, with the nodes of the one before; its layers are solved in between.
        readers: Its layers, by the weight's name, in the order of the graph.
        outputs: For each weight, which outputs of the reference's layer the network still has (indices); None for all.
        images: Gives a fresh stream of batches `[N, C, H, W]` at each call.
        count: About how many images that is.

    Yields:
        The moments by the weight's name, with `xy` to the outputs in the reference (of layers in blocks without), and
        whether they are those of one layer: else several were looked at in one pass, and none of them knows what the
        others correct.
    """
    sweep = Sweep.of(reference, network, images, count)
    if sweep is None:
        parts, few = passes(list(readers), reference, count)
        for part in parts:
            yield (
                _measured(reference, network, {name: readers[name] for name in part}, outputs, images(), few),
                (len(part) == 1),
            )
        return
    for name, reader in readers.items():
        moments = sweep.moments(reader, outputs)
        if moments is None:
            yield _measured(reference, network, {name: reader}, outputs, sweep.batches, sweep.count), True
        else:
            yield {name: moments}, True


def _measured(
    reference: Network,
    network: Network,
    readers: Mapping[str, Reader],
    outputs: Outputs,
    images: Iterable[Tensor],
    count: int,
) -> dict[str, Moments]:
    """The moments of some layers by one pass from the start."""
    kept = list(images) if any(reader.blocks > 1 for reader in readers.values()) else images
    single = {name: reader for name, reader in readers.items() if reader.blocks == 1}
    moments = compare(reference, network, single, outputs, kept, count) if single else {}
    if len(single) < len(readers):
        moments |= gather(network, {n: r for n, r in readers.items() if r.blocks > 1}, kept, count)
    return moments


class Sweep:
    """Two networks that run side by side over some batches, and stop in front of each layer that is asked for.

    Args:
        reference: The network before.
        network: The network after.
        batches: Images `[N, C, H, W]`, kept as long as this is.

    Attributes:
        batches: The images.
        count: How many they are.
    """

    def __init__(self, reference: Network, network: Network, batches: Sequence[Tensor]) -> None:
        self.batches, self.count = batches, sum(map(len, batches))
        self._networks = reference, network
        self._reference, self._network = (_Run(one, batches) for one in (reference, network))

    @classmethod
    def of(
        cls, reference: Network, network: Network, images: Callable[[], Iterable[Tensor]], count: int
    ) -> "Sweep | None":
        """A sweep over about `count` images, or as many as memory allows; None where too few would fit.

        There is none either where a network writes into what it makes of its weights: that is not made anew for each
        reader alone.
        """
        size = network.batch_size or network.input.batch
        batches = list[Tensor]()
        allowed = count
        for batch in (part for whole in images() for part in whole.split(size)):
            if not batches:
                runs = [_Run(one, [batch]) for one in (reference, network)]
                if any(run.writes_into_weights for run in runs):
                    return None
                kept = sum(run.most_kept() for run in runs) / len(batch)
                allowed = min(count, int(_KEPT_BYTES / max(kept, 1)))
                if allowed < min(count, _FEWEST_IMAGES):
                    return None
            batches.append(batch)
            if sum(map(len, batches)) >= allowed:
                break
        return cls(reference, network, batches) if batches else None

    def moments(self, reader: Reader, outputs: Outputs) -> Moments | None:
        """The moments of a layer; None where it runs several times, on weights, or where the networks are past it."""
        if len(reader.nodes) > 1 or not self._network.comes_to(reader.nodes[0]):
            return None
        reference = None if reader.blocks > 1 else self._networks[0]
        sums = LayerSums(self._networks[1], {reader.weight: reader}, self.count, reference, outputs)
        with torch.no_grad():
            for place in range(len(self.batches)):
                sums.batch = place
                if reference is not None:
                    node, y = self._reference.through(place, reader.nodes[0])
                    sums.remember(node, y)
                node, x, y = self._network.up_to(place, reader.nodes[0], y if reference is not None else None)
                sums.add(node, x, y)
        return sums.finished()[reader.weight]


class _Run:
    """A network that runs node by node over some batches.

    What is made of weights alone (quantized or standardised weights) is made anew for each node that reads it: a layer
    that was solved a moment ago has other ones.

    Args:
        network: The network.
        batches: Images `[N, C, H, W]`.
    """

    def __init__(self, network: Network, batches: Sequence[Tensor]) -> None:
        self._nodes = list(network.graph.nodes)
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        self._interpreter = Interpreter(network.module, garbage_collect_values=False)
        self._batches = [batch.to(network.device) for batch in batches]
        self._values: list[dict[Node, Any]] = [{} for _ in batches]
        self._reached = [0] * len(batches)
        self._of_weights: set[Node] = set()
        for node in self._nodes:
            if node.op not in ("placeholder", "output") and self._of_weights.issuperset(node.all_input_nodes):
                self._of_weights.add(node)
        last_use = {source: node for node in self._nodes for source in node.all_input_nodes}
        self._last_read: dict[Node, list[Node]] = {}
        for source, node in last_use.items():
            self._last_read.setdefault(node, []).append(source)

    @property
    def writes_into_weights(self) -> bool:
        """Whether an op writes into what is made of weights alone."""
        return any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in self._of_weights)

    def comes_to(self, name: str) -> bool:
        """Whether the node of that name is still to run, for each batch anew."""
        place = self._places[name]
        return place >= max(self._reached) and self._nodes[place] not in self._of_weights

    def through(self, batch: int, name: str) -> tuple[Node, Tensor]:
        """Run a batch up to a node and through it; gives the node, and what it gives."""
        node = self._run(batch, self._places[name] + 1)
        return node, self._values[batch][node]

    def up_to(self, batch: int, name: str, y: Tensor | None) -> tuple[Node, Tensor, Tensor]:
        """Run a batch up to a node, which does not run yet; gives it, what it reads, and what it would give.

        `y` is a tensor of the same positions as what it would give, where there is one.
        """
        self._run(batch, self._places[name])
        node = self._nodes[self._places[name]]
        values = self._values[batch]
        return node, values[node.all_input_nodes[0]], self._value(node, values) if y is None else y

    def most_kept(self) -> int:
        """The most bytes that are kept of the first batch between two nodes, of a run to the end."""
        most = 0
        with torch.no_grad():
            for place, node in enumerate(self._nodes):
                if node.op == "output":
                    break
                self._run(0, place + 1)
                most = max(most, self._kept())
        return most

    def _kept(self) -> int:
        storages = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in self._values[0].values()
            if isinstance(value, Tensor)
        }
        return sum(storages.values())

    def _run(self, batch: int, end: int) -> Node:
        """Run the nodes of a batch that come before place `end`; gives the last of them."""
        values = self._values[batch]
        if not self._reached[batch]:
            self._interpreter.args_iter = iter([self._batches[batch]])
        for node in self._nodes[self._reached[batch] : end]:
            if node in self._of_weights:
                continue
            values[node] = self._value(node, values)
            for source in self._last_read.get(node, ()):
                values.pop(source, None)
        self._reached[batch] = max(self._reached[batch], end)
        last: Node = self._nodes[end - 1]
        return last

    def _value(self, node: Node, values: dict[Node, Any]) -> Any:
        """What a node gives for the values that are kept."""
        made = {source: self._value(source, values) for source in node.all_input_nodes if source in self._of_weights}
        self._interpreter.env = {**values, **made}
        return self._interpreter.run_node(node)


def passes(names: Sequence[str], network: Network, count: int) -> tuple[list[Sequence[str]], int]:
    """Layers in graph order, in groups that share a pass over the images; and how many images a pass takes.

    One layer each where the network is small. In a large one there are fewer passes, and fewer images in each rather
    than more layers: layers of one group are solved for inputs that the others in it have not corrected yet.

    A network of 2e9 multiply-accumulates with 50 layers and 1000 images: a pass through both networks is 4e12, so
    that `_WORK` allows 4 passes. There are 12 all the same, in groups of 5 layers, and each sees 333 images, which is
    1.6e13 / (4e9 * 12).

    Args:
        names: Names of the layers.
        network: The network whose cost is counted.
        count: Images at hand.
    """
    work = 2.0 * max(cost_of(network).macs, 1)
    number = min(len(names), max(_FEWEST_PASSES, int(_WORK / (work * count))))
    size = math.ceil(len(names) / max(number, 1))
    images = int(max(_FEWEST_IMAGES, _WORK / (work * max(number, 1))))
    return [names[start : start + size] for start in range(0, len(names), size)], min(count, images)
