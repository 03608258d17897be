"""What single nodes of a graph give, while it runs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Interpreter, Node

from afina.graph.network import Network


def watch(
    network: Network, images: Tensor, wanted: Callable[[Node], bool], tell: Callable[[Node, Tensor], None]
) -> None:
    """Run images through a network, in inference, and tell what each wanted node gives, in the order of the graph."""
    with network.inference():
        _Watch(network, wanted, tell).run(images.to(network.device))


class _Watch(Interpreter):
    def __init__(self, network: Network, wanted: Callable[[Node], bool], tell: Callable[[Node, Tensor], None]) -> None:
        super().__init__(network.module)
        self._wanted, self._tell = wanted, tell

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if self._wanted(n):
            self._tell(n, value)
        return value
