"""How a functional model runs on arrays: its calls as a graph, and which of them run as one or in a chain."""
