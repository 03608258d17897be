"""The one representation: the captured graph, what it costs, and how it is rewritten."""

from afina.graph.network import Network, capture

__all__ = ["Network", "capture"]
