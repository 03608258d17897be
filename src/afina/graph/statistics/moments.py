"""Second moments of the inputs of layers, from one stream of images in bounded memory: no activation is stored.

For a layer with rows `x` (see `readers`), `xx = sum [x; 1] [x; 1]^T` is all that the error of its output depends on:
replacing W by V costs `tr((W - V) xx (W - V)^T)`. The constant 1 stands for the bias.
"""

import contextlib
import math
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.nn import functional as F

from afina.errors import AfinaError, InputError
from afina.graph.network import Network
from afina.graph.ops import arguments
from afina.graph.statistics.readers import Reader, channel_dimension, outputs_at, places_in, rows_of
from afina.graph.stored import attribute
from afina.progress import Progress

# Rows that a layer's moments rest on: enough of them for its width, and no more arithmetic than that is worth.
_ROWS_PER_COLUMN, _PRODUCTS = 4, 1e10
# Columns from which on products are worked out in blocks, and how many of these there are in a row.
_WIDE, _BLOCKS = 512, 4
# Rows are summed once there is one for so many columns.
_WAITING = 8
# Wider matrices are summed in single precision, which halves their memory.
_DOUBLE_UP_TO = 1024


@dataclass
class Moments:
    """Sums over the rows of one layer; the last column is the constant 1.

    Attributes:
        xx: `[stack, columns + 1, columns + 1]`.
        xy: `[stack, columns + 1, outputs]`, with the outputs of a reference; None where there is none.
        rows: How many rows were summed.

    Example:
        >>> moments = Moments(torch.zeros(1, 3, 3))
        >>> moments.add(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), None)  # the rows (1, 2) and (3, 4)
        >>> moments.xx[0].tolist()
        [[10.0, 14.0, 4.0], [14.0, 20.0, 6.0], [4.0, 6.0, 2.0]]
    """

    xx: Tensor
    xy: Tensor | None = None
    rows: int = 0

    def add(self, x: Tensor, y: Tensor | None) -> None:
        """Add rows `[stack, n, columns]` and, with a reference, its outputs `[stack, n, outputs]` for them."""
        x = F.pad(x, (0, 1), value=1.0)
        _add_products(self.xx, x)
        self.rows += x.shape[1]
        if y is not None:
            product = (x.transpose(1, 2) @ y).to(self.xx.dtype)
            self.xy = product if self.xy is None else self.xy + product


# The products of columns with each other are symmetric: of 4 x 4 blocks 10 are worked out, and 6 are their transposes.
#
#     [x0 x1 x2 x3]^T [x0 x1 x2 x3] = [[a, b, c, d],         a row of blocks at a time, from the diagonal on
#                                      [b', e, f, g], ...
def _add_products(sums: Tensor, x: Tensor) -> None:
    """Add `x^T x` of rows `[stack, n, columns]` to sums `[stack, columns, columns]`, in place."""
    columns = x.shape[2]
    step = columns if columns < _WIDE else math.ceil(columns / _BLOCKS)
    for start in range(0, columns, step):
        end = min(start + step, columns)
        product = (x[:, :, start:end].transpose(1, 2) @ x[:, :, start:]).to(sums.dtype)
        sums[:, start:end, start:] += product
        sums[:, end:, start:end] += product[:, :, end - start :].transpose(1, 2)


def gather(
    network: Network,
    readers: Mapping[str, Reader],
    images: Iterable[Tensor],
    count: int,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """The moments of `readers` over the first `count` images of a stream, in whole batches, by the weight's name.

    Of layers with many output positions some are looked at, drawn by a fixed seed.

    Args:
        network: The network.
        readers: Its layers to look at, by the weight's name, as `find_readers` gives them.
        images: Batches `[N, C, H, W]`.
        count: How many images to take.
        progress: Shows how many images are done.

    Raises:
        InputError: there are no images.
        AfinaError: an activation is not a finite number; the layer is named.
    """
    sums = LayerSums(network, readers, count)
    return _run(sums, network, None, images, count, progress or Progress())


def compare(
    reference: Network,
    network: Network,
    readers: Mapping[str, Reader],
    outputs: Mapping[str, Tensor | None],
    images: Iterable[Tensor],
    count: int,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """The moments of a changed `network`, as in `gather`, with `xy` to the outputs of the same layers in `reference`.

    Args:
        reference: The network before.
        network: The network after, with the nodes of the one before.
        readers: The layers of `network`, by the weight's name.
        outputs: For each weight, which outputs of the reference's layer the network still has (indices); None for all.
        images, count, progress: The arguments of `gather`.
    """
    sums = LayerSums(network, readers, count, reference, outputs)
    return _run(sums, network, reference, images, count, progress or Progress())


def _run(
    sums: "LayerSums",
    network: Network,
    reference: Network | None,
    images: Iterable[Tensor],
    count: int,
    progress: Progress,
) -> dict[str, Moments]:
    """Run the network, and the reference before it, on each batch until there were enough images."""
    seen = 0
    with torch.no_grad(), progress.work("Looking at activations", count) as bar:
        # Few at once: what is alive in a network between two layers grows with them.
        for batch in (part for whole in images for part in whole.split(network.batch_size or network.input.batch)):
            moved = batch.to(network.device)
            if reference is not None:
                _Watch(reference, sums.nodes, lambda node, _, y: sums.remember(node, y)).go(moved)
            _Watch(network, sums.nodes, sums.add).go(moved)
            sums.batch += 1
            seen += len(batch)
            bar.advance(len(batch))
            if seen >= max(count, 1):
                break
    if not sums.batch:
        raise InputError("There are no calibration images.", fix="Give data with training images.")
    return sums.finished()


def rows_wanted(reader: Reader) -> float:
    """Rows that a layer's moments should rest on, where it has so many: four for each column, or more if that is cheap.

    Example:
        >>> rows_wanted(Reader("fc.weight", None, (10, 4608), ("fc",)))
        18432
    """
    return max(_ROWS_PER_COLUMN * reader.inputs, _PRODUCTS / reader.inputs**2)


class LayerSums:
    """The moments of some layers, while batches of images run through a network.

    Args:
        network: The network.
        readers: Its layers, by the weight's name.
        count: How many images there will be.
        reference: The network before, whose outputs are compared with; None for none.
        outputs: For each weight, which of those outputs are (indices); None for all.

    Attributes:
        batch: The number of the batch that runs.
        nodes: The layers by the names of their nodes.
    """

    def __init__(
        self,
        network: Network,
        readers: Mapping[str, Reader],
        count: int,
        reference: Network | None = None,
        outputs: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        self._reference, self._outputs = reference, outputs or {}
        self.nodes = {node: reader for reader in readers.values() for node in reader.nodes}
        self._count, self.batch = max(count, 1), 0
        # By the name of the node, from the run of the reference to that of the network on the same batch.
        self._reference_outputs: dict[str, Tensor] = {}
        self._moments: dict[str, Moments] = {}
        # By the weight's name, rows that are not summed yet, and the outputs of the reference for them.
        self._waiting: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def finished(self) -> dict[str, Moments]:
        """The moments by the weight's name. Raises `AfinaError` where a layer read what is not a finite number."""
        for weight in list(self._waiting):
            self._sum(weight)
        for reader in self.nodes.values():
            if not bool(self._moments[reader.weight].xx.isfinite().all()):
                raise AfinaError(
                    f"What {reader.name} reads is not a finite number on some calibration images.",
                    fix="Check the weights and the data.",
                )
        return self._moments

    def remember(self, node: Node, y: Tensor) -> None:
        """Keep what a node of the reference gives until the network reads the same batch there."""
        reader = self.nodes[node.name]
        bias = arguments(node)["bias"]
        if reader.bias is None and bias is not None:  # one of several that nodes of one weight add: no part of its fit
            assert self._reference is not None
            constant = attribute(self._reference.module, str(bias.target))
            y = y - (constant if channel_dimension(node) == -1 else constant.reshape(-1, *[1] * (y.ndim - 2)))
        indices = self._outputs.get(reader.weight)
        if indices is not None:
            y = y.index_select(channel_dimension(node), indices.to(y.device))
        self._reference_outputs[node.name] = outputs_at(reader, node, y, self._places(reader, node, y))

    def add(self, node: Node, x: Tensor, y: Tensor) -> None:
        """Add what a node of the network reads, `x`; of `y`, what it gives, the number of positions counts alone."""
        reader = self.nodes[node.name]
        rows = rows_of(reader, node, x, self._places(reader, node, y)).float()
        waiting = self._waiting.setdefault(reader.weight, [])
        waiting.append((rows, self._reference_outputs.pop(node.name, None)))
        if _WAITING * sum(some.shape[1] for some, _ in waiting) >= rows.shape[2]:
            self._sum(reader.weight)

    def _sum(self, weight: str) -> None:
        """Add the rows that wait. A product of few rows takes about as long as adding it to the sums."""
        waiting = self._waiting.pop(weight)
        rows = torch.cat([some for some, _ in waiting], dim=1)
        outputs = [y for _, y in waiting if y is not None]
        if weight not in self._moments:
            size = rows.shape[2] + 1
            dtype = torch.float64 if size <= _DOUBLE_UP_TO + 1 else torch.float32
            self._moments[weight] = Moments(torch.zeros(len(rows), size, size, dtype=dtype, device=rows.device))
        self._moments[weight].add(rows, torch.cat(outputs, dim=1) if outputs else None)

    def _places(self, reader: Reader, node: Node, y: Tensor) -> Tensor:
        """Output positions to look at in this batch, the same for the same layer and batch in both networks.

        A layer of 144 inputs needs 4 * 144 = 576 rows, or as many as `_PRODUCTS` allows, whichever is more:
        1e10 / 144^2, about 482,000. Over 256 images that is 1,884 positions of each, of the 3,136 of a 56 x 56 map.
        """
        total = places_in(node, y)
        sample_size = min(total, math.ceil(rows_wanted(reader) / self._count))
        if sample_size == total:
            return torch.arange(total, device=y.device)
        seed = zlib.crc32(f"{reader.weight} {self.batch}".encode())
        return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:sample_size].to(y.device)


class _Watch(Interpreter):
    """Runs a graph up to the last of some nodes, and reports the input and output of each of them."""

    def __init__(self, network: Network, nodes: Container[str], report: Callable[[Node, Tensor, Tensor], None]) -> None:
        super().__init__(network.module)
        self._nodes, self._report = nodes, report
        self._last = [node for node in network.graph.nodes if node.name in nodes][-1]

    def go(self, images: Tensor) -> None:
        with contextlib.suppress(_Enough):
            self.run(images)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self._nodes:
            self._report(n, self.env[n.all_input_nodes[0]], result)
            if n is self._last:
                raise _Enough
        return result


class _Enough(Exception):
    """The rest of the graph need not be run."""
