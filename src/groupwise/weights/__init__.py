"""Weights that others have trained: read as data, never as a program."""
