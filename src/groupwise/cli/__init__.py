"""The command `groupwise`. Importing this package imports neither Keras nor a framework."""

from groupwise.cli.application import app, main

__all__ = ["app", "main"]
