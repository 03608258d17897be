"""The outputs of single nodes of a graph, while it runs."""

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
    """Run images through a network, in inference, and report the outputs of some nodes, in the order of the graph.

    Args:
        network: The network.
        images: `[N, C, H, W]`.
        is_watched: Whether a node's output is reported.
        report: Called with each such node and its output.
    """
    with network.inference():
        _Watch(network, is_watched, report).run(images.to(network.device))


def output_errors(
    network: Network, changed: Network, nodes: Container[str], images: Iterable[Tensor]
) -> dict[str, float]:
    """How far some layers' outputs moved, as a share of the variance that they had, by the node's name.

    Squares are taken around the mean of each channel: a constant is what the bias or the norm behind a layer is for.

    Args:
        network: The network before the change.
        changed: The network after it, with nodes of the same names.
        nodes: Names of nodes, those of convolutions and linear layers.
        images: Batches `[N, C, H, W]`.
    """
    outputs_before: dict[str, Tensor] = {}
    # For each node, over all rows and for each channel: the sums of after - before and of its square, the sums of
    # before and of its square; and the number of rows. Squares around the mean add up to `squares - total^2 / count`.
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
        # The outputs of all these layers are in memory at once.
        for few in batch.split(network.few):
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
