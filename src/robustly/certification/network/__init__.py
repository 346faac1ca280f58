"""The network that is verified, as a small graph of named operations; readers are in `readers`."""

from robustly.certification.network.graph import Graph, Node, UnsupportedOperationError

__all__ = ["Graph", "Node", "UnsupportedOperationError"]
