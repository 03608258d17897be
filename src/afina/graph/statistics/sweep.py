"""The moments of one layer after the other, each with what the layer reads once those before it are solved.

To run the network from the start for each layer would take as many passes over the images as there are layers. Here the
reference and the network stop in front of a layer, with what is still to be read kept for each batch of images; when
the layer is solved, both go on from there. So each layer runs once for each image in either network.

What is kept has to fit into memory. Where it does not, several layers share a pass (`passes`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from afina.graph.cost import cost_of
from afina.graph.network import Network
from afina.graph.statistics.moments import LayerSums, Moments, compare, gather
from afina.graph.statistics.readers import Reader, rows_of_image
from afina.graph.statistics.running import Run, Steps, most_kept

# Multiply-accumulates that all passes over the images may take together; a pass stops at the last layer to solve.
_WORK = 1.6e13
_FEWEST_PASSES, _FEWEST_IMAGES = 12, 64
# Bytes that may be kept of both networks' values between two layers, and of the images themselves.
_KEPT_BYTES, _IMAGE_BYTES = 3e8, 5e8
# Multiply-accumulates of a sweep. In a large network fewer images take part than there are, but so many, and as many as
# give a layer so many rows for each column. Where memory leaves fewer than the last number, there is no sweep.
_SWEEP_WORK, _FEWEST_IN_ALL, _ROWS_PER_COLUMN, _FEWEST_IN_SWEEP = 5e11, 128, 4, 16

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
    sweep = Sweep.of(reference, network, images, count, list(readers.values()))
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

    Where much has to be kept, as in front of the first layers of a network, few batches take part; these layers see
    many positions of each image. Where less has to be kept, and layers of many inputs need more rows, others join them:
    they run through layers that are solved by then. So each layer runs once for each image.

    Args:
        reference: The network before.
        network: The network after.
        batches: Images `[N, C, H, W]`, kept as long as this is.
        wanted: How many images each layer should see, by the weight's name.

    Attributes:
        batches: The images.
        count: How many they are.
    """

    def __init__(
        self, reference: Network, network: Network, batches: Sequence[Tensor], wanted: Mapping[str, int]
    ) -> None:
        self._wanted = wanted
        self.batches, self.count = batches, sum(map(len, batches))
        self._networks = reference, network
        self._steps = Steps(reference), Steps(network)
        self._runs: list[tuple[Run, Run]] = []  # of the batches that take part so far
        self._kept = [most_kept(steps, batches[0]) for steps in self._steps]

    @classmethod
    def of(
        cls,
        reference: Network,
        network: Network,
        images: Callable[[], Iterable[Tensor]],
        count: int,
        readers: Sequence[Reader],
    ) -> "Sweep | None":
        """A sweep over the layers `readers` with about `count` images, or as many as they need and memory allows.

        None where too few would fit, or a network writes into what it makes of its weights: that is not made anew for
        each reader alone.
        """
        if not readers or any(Steps(each).writes_into_weights for each in (reference, network)):
            return None
        few = images_in_sweep(reference)
        rows = rows_of_image(network, readers)
        # Of 512 x 3 x 3 columns a map of 7 x 7 gives 49 rows.
        wanted = {
            reader.weight: max(few, math.ceil(_ROWS_PER_COLUMN * reader.width / rows[reader.weight]))
            for reader in readers
        }
        size = network.batch_size or network.input.batch
        allowed = min(count, max(wanted.values()), int(_IMAGE_BYTES / (4 * math.prod(network.input.shape))))
        batches = list[Tensor]()
        for batch in (part for whole in images() for part in whole.split(size)):
            batches.append(batch)
            if sum(map(len, batches)) >= allowed:
                break
        if not batches:
            return None
        sweep = cls(reference, network, batches, wanted)
        possible = sweep._allowed(readers[0].nodes[0]) * len(batches[0])
        return sweep if possible >= min(sweep.count, _FEWEST_IN_SWEEP) else None

    def moments(self, reader: Reader, outputs: Outputs) -> Moments | None:
        """The moments of a layer; None where it runs several times, on weights, or where the networks are past it."""
        place = self._steps[1].places[reader.nodes[0]]
        if len(reader.nodes) > 1 or self._steps[1].nodes[place] in self._steps[1].of_weights:
            return None
        if any(run.reached > place for _, run in self._runs):
            return None
        self._join(reader)
        reference = None if reader.blocks > 1 else self._networks[0]
        count = sum(map(len, self.batches[: len(self._runs)]))
        sums = LayerSums(self._networks[1], {reader.weight: reader}, count, reference, outputs)
        with torch.no_grad():
            for number, (before, after) in enumerate(self._runs):
                sums.batch = number
                y = None
                if reference is not None:
                    node = before.at(reader.nodes[0])
                    before.go(self._steps[0].places[node.name] + 1)
                    y = before.values[node.name]
                    sums.remember(node, y)
                node = after.at(reader.nodes[0])
                sums.add(node, after.values[node.all_input_nodes[0].name], after.would_give(node) if y is None else y)
        return sums.finished()[reader.weight]

    def _join(self, reader: Reader) -> None:
        """Let more batches take part, as many as a layer should see and as fit into memory from it on."""
        wanted = math.ceil(self._wanted[reader.weight] / len(self.batches[0]))
        for batch in self.batches[len(self._runs) : min(wanted, max(self._allowed(reader.nodes[0]), 1))]:
            self._runs.append((Run(self._steps[0], batch), Run(self._steps[1], batch)))

    def _allowed(self, name: str) -> int:
        """How many batches may take part from a node on: what is kept of them there, and later, has to fit."""
        kept = sum(kept[steps.places[name]] for steps, kept in zip(self._steps, self._kept, strict=True))
        return int(_KEPT_BYTES / max(kept, 1))


def images_in_sweep(network: Network) -> int:
    """Images that take part in a sweep, where there are so many and no layer needs more."""
    return max(_FEWEST_IN_ALL, int(_SWEEP_WORK / max(2 * cost_of(network).macs, 1)))


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
