"""The modules that PT2E puts on the edges of a graph: they watch, then simulate, then become nodes.

One `ActivationEdge` sits on each tensor that is quantized (shared by tensors that share a scale), one `WeightEdge`
on each weight. A convolution with both, before and after `convert`:

    x       -> ActivationEdge -> conv2d          x       -> quantize -> dequantize -> conv2d
    weight  -> WeightEdge     ->                 codes   -> dequantize             ->

An edge passes on what it gets, until it is `on`: then it passes on what the grid makes of it. `watching`, an
`ActivationEdge` counts the values besides. `convert` writes an edge into the graph, and leaves nothing where it is off.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase

from afina.graph.stored import attribute, set_tensor
from afina.techniques.quantize.grids import Granularity, Grid, fake_quantize, quantize
from afina.techniques.quantize.ranges import Histogram, Method, range_of

_TENSOR = torch.ops.quantized_decomposed


class Edge(ObserverBase):
    """What edges of activations and of weights share.

    Attributes:
        name: Name of the weight, or of the node whose output is quantized.
        grid: The integers that there are.
        on: Whether to simulate.
        scale: The real size of one step; a parameter, which is trained only after `Prepared.learn`.
        zero: The zero points (int32), in the shape of `scale`.
    """

    zero: Tensor

    def __init__(self, name: str, grid: Grid) -> None:
        super().__init__(dtype=grid.dtype, is_dynamic=False)
        self.name, self.grid, self.on = name, grid, False
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def set(self, scale: Tensor, zero: Tensor) -> None:
        """Take a scale and zero point, in place of those that it has."""
        self.scale = nn.Parameter(scale.detach().clone().float(), requires_grad=False)
        self.zero = zero.detach().clone().to(torch.int32)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.scale.detach(), self.zero

    def extra_repr(self) -> str:
        return f"{self.name}, {self.grid}, on={self.on}"


class ActivationEdge(Edge):
    """One scale and zero point for a whole activation.

    Attributes:
        power_of_two: Whether the scale is a power of two.
        symmetric: Whether values of both signs get the same range on both sides of zero.
        watching: Whether to count the values that pass.
        images: How many images the batch that passes holds.
        histogram: The values that passed while it was watching.
    """

    def __init__(self, name: str, grid: Grid, power_of_two: bool = False, symmetric: bool = False, **_: Any) -> None:
        super().__init__(name, grid)
        self.power_of_two, self.symmetric, self.watching, self.images = power_of_two, symmetric, False, 0
        self.histogram = Histogram()

    def choose(self, method: Method) -> None:
        """Take the scale and zero point of the range that `method` finds in the histogram."""
        grid = replace(self.grid, scheme="absmax") if self.symmetric and self.histogram.low < 0 else self.grid
        low, high = range_of(self.histogram, grid, method)
        self.set(*grid.scales(torch.tensor([low]), torch.tensor([high]), self.power_of_two))

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            try:
                self.histogram.add(x, self.images)
            except FloatingPointError as error:
                raise FloatingPointError(f"{self.name} gives a value that is not finite") from error
        return fake_quantize(x, self.scale, self.zero, self.grid) if self.on else x

    def convert(self, module: GraphModule, node: Node) -> None:
        """Put a quantize and a dequantize node in the place of `node`, which calls this edge."""
        source = node.args[0]
        assert isinstance(source, Node)
        if self.on:
            grid = self.grid
            rest = (float(self.scale), int(self.zero), grid.low, grid.high, grid.dtype)
            with node.graph.inserting_before(node):
                codes = node.graph.call_function(_TENSOR.quantize_per_tensor.default, (source, *rest))
                source = node.graph.call_function(_TENSOR.dequantize_per_tensor.default, (codes, *rest))
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


class WeightEdge(Edge):
    """Scales of one weight `[outputs, ...]`: `[outputs, blocks]`, with one block for tensor and channel.

    Attributes:
        granularity: Which weights share a scale.
        half: A 16-bit float type to store the weight in, instead of codes; None for codes.
        caching: Whether the weight and its scales stay as they are for now, so that it is rounded once for all runs.
    """

    def __init__(
        self, name: str, grid: Grid, granularity: Granularity, half: torch.dtype | None = None, **_: Any
    ) -> None:
        super().__init__(name, grid)
        self.granularity, self.half = granularity, half
        self.caching = False
        self._cached: Tensor | None = None

    def cache(self, caching: bool) -> None:
        """Round once for all runs from now on, or again in each."""
        self.caching, self._cached = caching, None

    def spread(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point in a shape that broadcasts against the weight taken as `[outputs, inputs]`."""
        inputs = weight[0].numel()
        return self.granularity.spread(self.scale, inputs), self.granularity.spread(self.zero, inputs)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        if not self.caching:
            return self.rounded(x)
        if self._cached is None:
            self._cached = self.rounded(x)
        return self._cached

    def rounded(self, x: Tensor) -> Tensor:
        """The values that a weight's codes (or its 16-bit numbers) stand for, in the weight's shape and type."""
        if self.half is not None:
            return x.to(self.half).to(x.dtype)
        return fake_quantize(x.flatten(1), *self.spread(x), self.grid).reshape(x.shape)

    def codes(self, weight: Tensor) -> Tensor:
        """The weight's codes, in their storage type and the weight's shape."""
        return quantize(weight.flatten(1), *self.spread(weight), self.grid).reshape(weight.shape).to(self.grid.dtype)

    def convert(self, module: GraphModule, node: Node) -> None:
        """Put codes in the place of the weight, and a dequantize node in the place of `node`, which calls this edge."""
        source = node.args[0]
        assert isinstance(source, Node)
        result: Any = source
        if self.on:
            weight = attribute(module, self.name).detach()
            with node.graph.inserting_before(node):
                if self.half:
                    result = store_half(module, node, self.name, weight, self.half)
                else:
                    result = self._coded(module, node, weight)
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)
        if result is not source and not source.users:
            node.graph.erase_node(source)

    def _coded(self, module: GraphModule, node: Node, weight: Tensor) -> Node:
        """Store a weight's codes, scales and zero points, and give the node that makes the weight of them."""
        graph, grid, kind = node.graph, self.grid, self.granularity.kind
        codes = self.codes(weight)
        if kind != "block":
            stored = _store(module, node, self.name, codes)
            scale = _store(module, node, f"{self.name}_scale", self.scale.detach().flatten().expand(len(weight)))
            zeros = _store(module, node, f"{self.name}_zero_point", self.zero.flatten().expand(len(weight)))
            rest = (0, grid.low, grid.high, grid.dtype)
            return graph.call_function(_TENSOR.dequantize_per_channel.default, (stored, scale, zeros, *rest))
        return self._blocks(module, node, codes)

    def _blocks(self, module: GraphModule, node: Node, codes: Tensor) -> Node:
        """The same for blocks: each is stored as a row with its scale, and rows are joined behind the dequantize node.

        The operator is the one of scales per channel, which every runtime knows. A weight of 2 outputs and 5 inputs, in
        blocks of 2 (`0` fills the last block of each output, and is cut off again):

            codes [a b c d e]    stored [a b]   x its scale:  view as [a b c d e 0]    slice [a b c d e]
                  [f g h i j]           [c d]                         [f g h i j 0]          [f g h i j]
                                        [e 0]
                                        [f g]
                                        [h i]
                                        [j 0]
        """
        graph, grid, block = node.graph, self.grid, self.granularity.block
        flat = codes.flatten(1)
        inputs, missing = flat.shape[1], self.scale.shape[1] * block - flat.shape[1]
        # What fills the last block stands for zero.
        fill = self.zero[:, -1:].expand(-1, missing).to(flat.dtype)
        stored = _store(module, node, self.name, torch.cat([flat, fill], 1).reshape(-1, block))
        scale = _store(module, node, f"{self.name}_scale", self.scale.detach().flatten())
        zeros = _store(module, node, f"{self.name}_zero_point", self.zero.flatten())
        rest = (0, grid.low, grid.high, grid.dtype)
        whole = graph.call_function(_TENSOR.dequantize_per_channel.default, (stored, scale, zeros, *rest))
        if missing:
            whole = graph.call_function(torch.ops.aten.view.default, (whole, [len(flat), inputs + missing]))
            whole = graph.call_function(torch.ops.aten.slice.Tensor, (whole, 1, 0, inputs))
        return graph.call_function(torch.ops.aten.reshape.default, (whole, list(codes.shape)))


def store_half(module: GraphModule, node: Node, name: str, value: Tensor, half: torch.dtype) -> Node:
    """Store a float constant in 16 bits in the place of what has that name, and give the node that widens it again."""
    stored = _store(module, node, name, value.to(half))
    return node.graph.call_function(torch.ops.aten.to.dtype, (stored, torch.float32))


def _store(module: GraphModule, node: Node, name: str, value: Tensor) -> Node:
    """Store a constant in the place of what has that name, and give the node that reads it."""
    set_tensor(module, name, value.detach().clone().contiguous())
    return node.graph.get_attr(name)
