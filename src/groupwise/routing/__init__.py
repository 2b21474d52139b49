"""Which algorithm computes a convolution: the ordered lists, what was measured on this machine, and how."""

from groupwise.routing.lists import KINDS, Routing, Runtime, candidates, exact_name, explain, kind

__all__ = ["KINDS", "Routing", "Runtime", "candidates", "exact_name", "explain", "kind"]
