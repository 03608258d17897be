"""`Reader`: a convolution or linear layer written as a matrix product, `y = W x + b` on rows taken from its input.

A row is what one output position reads: the patch under a kernel, or the last dimension of a linear layer's input.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from afina.errors import Unsupported
from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.propagate import fake_values
from afina.graph.stored import attribute, is_stored

# A wider linear layer (VGG's first has 25,088 inputs) is taken in blocks: a matrix of all pairs would not fit.
WIDEST, _BLOCK = 8192, 1024
_CONVOLUTIONS = frozenset(f"conv{n}d" for n in (1, 2, 3))


@dataclass(frozen=True)
class Reader:
    """One stored weight and the nodes that multiply by it.

    Attributes:
        weight: Name of the parameter, `[outputs, inputs of a group, *kernel]`, or `[outputs, inputs]`.
        bias: Name of the bias parameter that all its nodes add; None where there is none, or where nodes that share the
            weight add different ones, which stay as they are.
        shape: Shape of the weight.
        nodes: Names of the nodes in the graph; more than one where the weight is used again.
        groups: Number of groups of a grouped convolution; else 1.
        blocks: Into how many blocks of inputs a wide linear layer is cut; else 1.
        shift: Name of the running mean of the batch norm that alone reads the layer: a constant is added to the
            layer's output by taking it from there; None where there is no such norm.
    """

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    nodes: tuple[str, ...]
    groups: int = 1
    blocks: int = 1
    shift: str | None = None

    @property
    def name(self) -> str:
        """The layer's name as in the user's model."""
        return self.weight.removesuffix(".weight")

    @property
    def inputs(self) -> int:
        """Columns of the weight: how many numbers one output is a sum over."""
        return math.prod(self.shape[1:])

    @property
    def width(self) -> int:
        """Columns of each matrix of `matrices`."""
        return _BLOCK if self.blocks > 1 else self.inputs

    @property
    def takes_constant(self) -> bool:
        """Whether a constant can be added to its output."""
        return self.bias is not None or self.shift is not None

    def matrices(self, weight: Tensor) -> Tensor:
        """The weight as a stack of matrices `[stack, outputs, inputs]`: one for each group, or for each block."""
        flat = weight.flatten(1)
        if self.blocks > 1:
            padded = F.pad(flat, (0, self.blocks * _BLOCK - flat.shape[1]))
            return padded.reshape(len(flat), self.blocks, _BLOCK).transpose(0, 1)
        return flat.reshape(self.groups, len(flat) // self.groups, -1)

    def from_matrices(self, matrices: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrices`, in the shape and type of the weight `like`."""
        if self.blocks > 1:
            matrices = matrices.transpose(0, 1).flatten(1)[:, : like[0].numel()]
        return matrices.reshape(like.shape).to(like)

    def columns(self, values: Tensor) -> Tensor:
        """A value for each input of a group, `[inputs]`, laid out as the columns of `matrices`: `[stack, columns]`.

        Columns that pad the last block get -1.
        """
        if self.blocks > 1:
            return F.pad(values, (0, self.blocks * _BLOCK - len(values)), value=-1).reshape(self.blocks, _BLOCK)
        return values.expand(self.groups, -1)


def find_readers(network: Network) -> dict[str, Reader]:
    """The convolutions and linear layers of a network whose weights are stored, by the name of the weight.

    Transposed convolutions and computed weights are left out: they are not a product of rows with one matrix.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> readers = find_readers(capture(module, spec, TaskSpec("classification", ("cat", "dog"))))
        >>> [(reader.name, reader.shape, reader.inputs) for reader in readers.values()]
        [('0', (4, 1, 3, 3), 9), ('2', (2, 144), 144)]
    """
    readers: dict[str, Reader] = {}
    for node in network.graph.nodes:
        if not _is_layer(node):
            continue
        a = arguments(node)
        weight, bias = a["weight"], a["bias"]
        if not is_stored(weight) or not (bias is None or is_stored(bias)):
            continue
        name = str(weight.target)
        shape = tuple(attribute(network.module, name).shape)
        wide = op_name(node) == "linear" and shape[1] > WIDEST
        earlier, bias_name = readers.get(name), None if bias is None else str(bias.target)
        readers[name] = Reader(
            weight=name,
            bias=bias_name if earlier is None or earlier.bias == bias_name else None,
            shape=shape,
            nodes=(*(earlier.nodes if earlier else ()), node.name),
            groups=a.get("groups", 1),
            blocks=math.ceil(shape[1] / _BLOCK) if wide else 1,
            shift=None if earlier else _following_mean(node),
        )
    return readers


def rows_of(reader: Reader, node: Node, x: Tensor, places: Tensor) -> Tensor:
    """The rows `[stack, images * places, columns]` that a layer reads at some of its output positions.

    Args:
        reader: The layer.
        node: One of its nodes.
        x: The input of that node.
        places: Numbers of output positions, int64, as in its flattened output.
    """
    if op_name(node) == "linear":
        picked = x.reshape(len(x), -1, x.shape[-1])[:, places].flatten(0, 1)
        if reader.blocks > 1:
            padded = F.pad(picked, (0, reader.blocks * _BLOCK - picked.shape[1]))
            return padded.reshape(len(padded), reader.blocks, _BLOCK).transpose(0, 1)
        return picked[None]
    patches = _patches(arguments(node), x, reader.shape[2:], places)
    count = patches.shape[0] * patches.shape[1]
    return patches.reshape(count, reader.groups, -1).transpose(0, 1)


def outputs_at(reader: Reader, node: Node, y: Tensor, places: Tensor) -> Tensor:
    """The outputs `[stack, images * places, outputs]` of a layer at some of its output positions, as in `rows_of`."""
    if op_name(node) == "linear":
        return y.reshape(len(y), -1, y.shape[-1])[:, places].flatten(0, 1)[None]
    picked = y.flatten(2)[:, :, places].transpose(1, 2)
    return picked.reshape(-1, reader.groups, y.shape[1] // reader.groups).transpose(0, 1)


def channel_dimension(node: Node) -> int:
    """Which dimension of a layer's output its channels are in."""
    return -1 if op_name(node) == "linear" else 1


def places_in(node: Node, y: Tensor) -> int:
    """How many output positions a layer has for one image."""
    return math.prod(y.shape[1:]) // y.shape[channel_dimension(node)]


def rows_of_image(network: Network, readers: Iterable[Reader]) -> dict[str, int]:
    """How many rows each layer has for one image, by the weight's name; 1 where shapes cannot be followed."""
    readers, batch = list(readers), network.traced_batch(1)
    try:
        with network.inference():
            values = fake_values(network.module, (batch, *network.input.shape))
    except Unsupported:
        return {reader.weight: 1 for reader in readers}
    shapes = {
        node.name: (values[node].shape, channel_dimension(node)) for node in network.graph.nodes if _is_layer(node)
    }
    rows = {}
    for reader in readers:
        shape, channels = shapes[reader.nodes[0]]
        rows[reader.weight] = max(1, math.prod(map(int, shape)) // int(shape[channels]) // batch)
    return rows


def _is_layer(node: Node) -> bool:
    return node.op == "call_function" and op_name(node) in (*_CONVOLUTIONS, "linear")


def _patches(a: dict[str, Any], x: Tensor, kernel: tuple[int, ...], places: Tensor) -> Tensor:
    """The patches under the kernel at some places, `[images, places, channels, *kernel]`; only these are copied.

    One channel of 3 x 3 has four places for a kernel of 2 x 2:

        0 1 2      place 0: 0 1 3 4      place 1: 1 2 4 5
        3 4 5      place 2: 3 4 6 7      place 3: 4 5 7 8
        6 7 8

    `unfold` gives all of them as a view of the image, with overlapping strides; indexing copies those of `places`.
    """
    rank = len(kernel)
    stride, dilation = (_each(a[name], rank) for name in ("stride", "dilation"))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    x = F.pad(x, _padding(a["padding"], reach, rank))
    for d in range(rank):
        x = x.unfold(2 + d, reach[d], stride[d])
    sizes = x.shape[2 : 2 + rank]
    for d in range(rank):
        x = x[(slice(None),) * (2 + rank + d) + (slice(None, None, dilation[d]),)]
    index: Any = (slice(None), slice(None), *torch.unravel_index(places, sizes))
    picked: Tensor = x[index]
    return picked.transpose(1, 2)


def _padding(padding: Any, reach: list[int], rank: int) -> list[int]:
    """The padding in the order of `F.pad`: last dimension first, for each before and after."""
    if padding == "same":
        pairs = [((size - 1) // 2, size - 1 - (size - 1) // 2) for size in reach]
    else:
        pairs = [(size, size) for size in (_each(0 if padding == "valid" else padding, rank))]
    return [amount for pair in reversed(pairs) for amount in pair]


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * rank if len(values) == 1 else values


def _following_mean(node: Node) -> str | None:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function" or op_name(users[0]) != "batch_norm":
        return None
    mean = arguments(users[0])["running_mean"]
    return str(mean.target) if is_stored(mean) and arguments(users[0])["input"] is node else None
