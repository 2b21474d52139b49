"""Using a network without training it."""
