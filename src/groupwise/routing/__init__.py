"""Which algorithm computes a convolution: the ordered lists, what was measured on this machine, and how."""

from groupwise.routing.lists import KINDS, Accelerator, Routing, Runtime, candidates, exact_name, explain, kind

__all__ = ["KINDS", "Accelerator", "Routing", "Runtime", "candidates", "exact_name", "explain", "kind"]
