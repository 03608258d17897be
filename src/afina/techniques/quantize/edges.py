"""The modules that PT2E puts on the edges of a graph: they watch, then simulate, then become nodes.

One `ActivationEdge` sits on each tensor that is quantized (shared by tensors that share a scale), one `WeightEdge`
on each weight. While `watching` they only look; with `on` they give back what the grid would; else they hand on what
they get. `convert` writes them into the graph, and leaves nothing where they are off.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase

from afina.graph.stored import attribute, put
from afina.techniques.quantize.grids import Granularity, Grid, fake_quantize, quantize
from afina.techniques.quantize.ranges import Histogram, Method, range_of

_TENSOR = torch.ops.quantized_decomposed


class Edge(ObserverBase):
    """What both kinds share.

    Attributes:
        name: Of the weight, or of the node whose output it is.
        grid: Which integers.
        on: Whether to simulate.
        scale, zero: Of the grid; `scale` is a parameter, trained only where asked to.
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
        symmetric: Whether values of both signs get the same range on both sides of zero.
        watching: Whether to count what passes.
        images: Of which that is, at a time.
        seen: What passed.
    """

    def __init__(self, name: str, grid: Grid, power_of_two: bool = False, symmetric: bool = False, **_: Any) -> None:
        super().__init__(name, grid)
        self.power_of_two, self.symmetric, self.watching, self.images = power_of_two, symmetric, False, 0
        self.seen = Histogram()

    def choose(self, method: Method) -> None:
        """Take the range that `method` finds in what was seen."""
        grid = replace(self.grid, scheme="absmax") if self.symmetric and self.seen.low < 0 else self.grid
        low, high = range_of(self.seen, grid, method)
        self.set(*grid.scales(torch.tensor([low]), torch.tensor([high]), self.power_of_two))

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            try:
                self.seen.add(x, self.images)
            except FloatingPointError as error:
                raise FloatingPointError(f"{self.name} gives a value that is not finite") from error
        return fake_quantize(x, self.scale, self.zero, self.grid) if self.on else x

    def convert(self, module: GraphModule, node: Node) -> None:
        """A quantize and a dequantize node in the place of this one."""
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
        holding: Whether the weight and its scales stay as they are for now, so that it is rounded once.
    """

    def __init__(
        self, name: str, grid: Grid, granularity: Granularity, half: torch.dtype | None = None, **_: Any
    ) -> None:
        super().__init__(name, grid)
        self.granularity, self.half = granularity, half
        self.holding = False
        self._held: Tensor | None = None

    def hold(self, hold: bool) -> None:
        """Round once for all runs from now on, or again in each."""
        self.holding, self._held = hold, None

    def spread(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point in a shape that broadcasts against the weight taken as `[outputs, inputs]`."""
        inputs = weight[0].numel()
        return self.granularity.spread(self.scale, inputs), self.granularity.spread(self.zero, inputs)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        if not self.holding:
            return self.rounded(x)
        if self._held is None:
            self._held = self.rounded(x)
        return self._held

    def rounded(self, x: Tensor) -> Tensor:
        """What the codes of a weight stand for."""
        if self.half is not None:
            return x.to(self.half).to(x.dtype)
        return fake_quantize(x.flatten(1), *self.spread(x), self.grid).reshape(x.shape)

    def codes(self, weight: Tensor) -> Tensor:
        """The weight's codes, in their storage type and the weight's shape."""
        return quantize(weight.flatten(1), *self.spread(weight), self.grid).reshape(weight.shape).to(self.grid.dtype)

    def convert(self, module: GraphModule, node: Node) -> None:
        """Codes in the place of the weight, and the node that undoes them in the place of this one."""
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
        graph, grid, kind = node.graph, self.grid, self.granularity.kind
        codes = self.codes(weight)
        if kind != "block":
            stored = _hold(module, node, self.name, codes)
            scale = _hold(module, node, f"{self.name}_scale", self.scale.detach().flatten().expand(len(weight)))
            zeros = _hold(module, node, f"{self.name}_zero_point", self.zero.flatten().expand(len(weight)))
            rest = (0, grid.low, grid.high, grid.dtype)
            return graph.call_function(_TENSOR.dequantize_per_channel.default, (stored, scale, zeros, *rest))
        return self._blocks(module, node, codes)

    def _blocks(self, module: GraphModule, node: Node, codes: Tensor) -> Node:
        """Each block is a row with a scale of its own; rows are joined and cut to the weight's own shape behind that.

        The operator is the one of scales per channel, which every runtime knows.
        """
        graph, grid, block = node.graph, self.grid, self.granularity.block
        flat = codes.flatten(1)
        inputs, missing = flat.shape[1], self.scale.shape[1] * block - flat.shape[1]
        # What fills the last block stands for zero.
        fill = self.zero[:, -1:].expand(-1, missing).to(flat.dtype)
        stored = _hold(module, node, self.name, torch.cat([flat, fill], 1).reshape(-1, block))
        scale = _hold(module, node, f"{self.name}_scale", self.scale.detach().flatten())
        zeros = _hold(module, node, f"{self.name}_zero_point", self.zero.flatten())
        rest = (0, grid.low, grid.high, grid.dtype)
        whole = graph.call_function(_TENSOR.dequantize_per_channel.default, (stored, scale, zeros, *rest))
        if missing:
            whole = graph.call_function(torch.ops.aten.view.default, (whole, [len(flat), inputs + missing]))
            whole = graph.call_function(torch.ops.aten.slice.Tensor, (whole, 1, 0, inputs))
        return graph.call_function(torch.ops.aten.reshape.default, (whole, list(codes.shape)))


def store_half(module: GraphModule, node: Node, name: str, value: Tensor, half: torch.dtype) -> Node:
    """A float constant in 16 bits, in the place of what has that name, and the node that widens it again."""
    stored = _hold(module, node, name, value.to(half))
    return node.graph.call_function(torch.ops.aten.to.dtype, (stored, torch.float32))


def _hold(module: GraphModule, node: Node, name: str, value: Tensor) -> Node:
    """A constant under a name of the user's model, in the place of what has that name, and the node that reads it."""
    put(module, name, value.detach().clone().contiguous())
    return node.graph.get_attr(name)
