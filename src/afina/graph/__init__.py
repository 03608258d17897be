"""The one representation: the captured graph, what it costs, and how it is rewritten."""

from afina.graph.capture import capture
from afina.graph.network import Network

__all__ = ["Network", "capture"]
