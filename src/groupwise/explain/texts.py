"""Texts that the pages share: how one was made, and how small a difference is."""

import re

import keras

from groupwise.texts import printable


def rounding(difference: float) -> str:
    """Return a tiny difference as text.

    Examples:
        >>> rounding(0.0), rounding(2.4e-07)
        ('0', '2.4e-07')
    """
    return f"{difference:.1e}" if difference else "0"


def literal(text: str) -> str:
    r"""Return somebody's text for a page: what would be `code` or a link in it is none.

    Examples:
        >>> print(literal("net[1].keras"))
        net\[1\].keras
    """
    return re.sub(r"([\\`\[\]])", r"\\\1", printable(text))


def source_line(topic: str, name: str | None) -> str:
    """Return the line that names the framework and the command."""
    backend = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[keras.backend.backend()]
    command = f"groupwise explain {topic}{f' {literal(name)}' if name else ''}"
    return f"Every number and line here was computed when the page was made, by {backend}: `{command} --output FOLDER`."
