"""How a page was made: its last line."""

import keras

REPRODUCED = "Every number and line here was computed when the page was made, by {backend}"


def source_line(topic: str, name: str | None) -> str:
    """Return the line that names the framework and the command."""
    backend = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[keras.backend.backend()]
    command = f"groupwise explain {topic}{f' {name}' if name else ''}"
    return f"{REPRODUCED.format(backend=backend)}: `{command} --output FOLDER`."
