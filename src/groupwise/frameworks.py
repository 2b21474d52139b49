"""The frameworks that Keras runs on, by Keras's names for them. Nothing is imported here: `backends` does that."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Framework:
    """How a framework is called, and what sets it apart where nothing of it is imported.

    Attributes:
        title: as its authors write it.
        packages: what it is installed as; the first is what `pip install "groupwise[NAME]"` takes on Linux.
        environment: variables that the command sets before it starts, where they are not set.
        compiles_training: whether a training is compiled where nobody says whether.
        emulates_bfloat16: whether it does on CPUs that multiply bfloat16 themselves.
        compiles_draws: whether it compiles for every size in which random numbers are drawn; each of them is one of its
            place and the seed alone, whatever the size.
        has_one_generator: whether Keras's random layers draw from one generator of its, not from states of their own.
    """

    title: str
    packages: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    compiles_training: bool = False
    emulates_bfloat16: bool = False
    compiles_draws: bool = False
    has_one_generator: bool = False


# TensorFlow leaves oneDNN out on a CPU without AVX-512, and with it the gradients of grouped convolutions.
_FOR_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
# PyTorch's threads wait for each other by spinning; beside any other busy program a step took 4 times as long.
_FOR_TORCH = {"OMP_WAIT_POLICY": "passive"}


FRAMEWORKS = {
    "tensorflow": Framework("TensorFlow", ("tensorflow-cpu", "tensorflow"), _FOR_TENSORFLOW),
    "jax": Framework("JAX", ("jax", "jaxlib"), compiles_training=True, emulates_bfloat16=True, compiles_draws=True),
    "torch": Framework("PyTorch", ("torch",), _FOR_TORCH, has_one_generator=True),
}
"""All of them; where several are installed and nothing says which, the first one is taken."""

ANY_OF_THEM = " or ".join(", ".join(FRAMEWORKS).rsplit(", ", 1))
"""Their names in a sentence."""
