"""What single nodes of a graph give, while it runs."""

from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afina.graph.network import Network
from afina.graph.statistics.readers import channel_dimension


def watch(
    network: Network, images: Tensor, is_watched: Callable[[Node], bool], report: Callable[[Node, Tensor], None]
) -> None:
    """Run images through a network, in inference, and report what watched nodes give, in the order of the graph."""
    with network.inference():
        _Watch(network, is_watched, report).run(images.to(network.device))


def output_errors(
    network: Network, changed: Network, nodes: Container[str], images: Iterable[Tensor]
) -> dict[str, float]:
    """How far some layers' outputs are from what they were, as a share of what those vary, by the node's name.

    Squares are taken around the mean of each channel: a constant is what the bias or the norm behind a layer is for.

    Args:
        network: As it was.
        changed: As it is, with nodes of the same names.
        nodes: Of convolutions and linear layers.
        images: Batches `[N, C, H, W]`.
    """
    outputs_before: dict[str, Tensor] = {}
    sums: dict[str, list[Tensor]] = {}

    def remember(node: Node, value: Tensor) -> None:
        outputs_before[node.name] = value

    def compare(node: Node, value: Tensor) -> None:
        before = outputs_before.pop(node.name)
        totals = sums.setdefault(node.name, [torch.zeros((), dtype=torch.float64)] * 5)
        for place, part in enumerate((value - before, before)):
            rows = part.movedim(channel_dimension(node), 0).flatten(1).double()
            totals[2 * place] = totals[2 * place] + rows.sum(1)
            totals[2 * place + 1] = totals[2 * place + 1] + rows.square().sum(1)
        totals[4] = totals[4] + rows.shape[1]

    for batch in images:
        # What the layers give is all kept at once.
        for few in batch.split(network.input.few):
            watch(network, few, lambda node: node.name in nodes, remember)
            watch(changed, few, lambda node: node.name in nodes, compare)
    errors = {}
    for name, (gap, gaps, total, squares, count) in sums.items():
        error, varies = (gaps - gap.square() / count).sum(), (squares - total.square() / count).sum()
        errors[name] = float(error / varies.clamp_min(1e-30))
    return errors


class _Watch(Interpreter):
    def __init__(
        self, network: Network, is_watched: Callable[[Node], bool], report: Callable[[Node, Tensor], None]
    ) -> None:
        super().__init__(network.module)
        self._is_watched, self._report = is_watched, report

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if self._is_watched(n):
            self._report(n, value)
        return value
