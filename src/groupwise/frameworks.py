"""The frameworks that Keras runs on, by Keras's names for them. Nothing is imported here: `backends` does that."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Framework:
    """How a framework is called.

    Attributes:
        title: as its authors write it.
        packages: what it is installed as; the first is what `pip install "groupwise[NAME]"` takes on Linux.
    """

    title: str
    packages: tuple[str, ...]


FRAMEWORKS = {
    "tensorflow": Framework("TensorFlow", ("tensorflow-cpu", "tensorflow")),
    "jax": Framework("JAX", ("jax", "jaxlib")),
    "torch": Framework("PyTorch", ("torch",)),
}
"""All of them; where several are installed and nothing says which, the first one is taken."""

ANY_OF_THEM = " or ".join(", ".join(FRAMEWORKS).rsplit(", ", 1))
"""Their names in a sentence."""
