"""The state of a network in training: its variables, the optimizer's, the metrics', and PyTorch's random numbers."""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from groupwise import backends
from groupwise.errors import UserError
from groupwise.models.network import Network
from groupwise.training.checkpoints import Arrays
from groupwise.training.distribution import Distribution

_RANDOM, _OTHERS, _SEED = "random/", "process-{}/", "seed_generator_state"


def build_metrics(network: Network) -> None:
    """Let a compiled network have the variables of its metrics, which Keras makes at the first step."""
    predicted = ops.zeros((1, *network.output_shape[1:]))
    network.compute_metrics(None, predicted, predicted)
    network.reset_metrics()


def copy_state(network: Network, distribution: Distribution) -> dict[str, NDArray[Any]]:
    """Return copies of all that a training changes, by names that tell places and shapes apart.

    Of several processes each calls this at the same step. Process 0 gets what the others alone have, too; they get
    no more than that.
    """
    if keras.backend.backend() == "jax":
        network.jax_state_sync()  # in an epoch its variables lie in JAX's hands
    wanted = {
        name: variable for name, variable in _variables(network).items() if not distribution.index or _SEED in name
    }
    copies = {name: np.array(ops.convert_to_numpy(variable)) for name, variable in wanted.items()}
    if backends.active.random_state is None:
        return copies
    own = {_RANDOM + name: np.array(state) for name, state in backends.active.random_state().items()}
    own |= {name: copies[name] for name in copies if _SEED in name}
    for index, others in enumerate(distribution.gather(own)[1:], 1):
        copies |= {_OTHERS.format(index) + name: array for name, array in others.items()}
    return copies | own


def restore_state(network: Network, arrays: Arrays, process: int = 0) -> None:
    """Give a network, with metrics that are built, a state that `copy_state` returned.

    Args:
        process: of which the random states are wanted. One that had none, of a training that had fewer processes, goes
            on from those that it has.

    Raises:
        UserError: it is another network's, or that of another optimizer.
    """
    variables = _variables(network)
    start = _OTHERS.format(process)
    own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    arrays = {name: array for name, array in arrays.items() if not name.startswith(_OTHERS.partition("{")[0])}
    if process:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(_RANDOM)} | own
    random = {name: array for name, array in arrays.items() if name.startswith(_RANDOM)}
    if variables.keys() != arrays.keys() - random.keys():
        raise UserError("the checkpoint is of another network, optimizer or version: begin a new run")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    if random and backends.active.set_random_state is not None:  # not where another backend wrote it
        backends.active.set_random_state({name.removeprefix(_RANDOM): array for name, array in random.items()})


def _variables(network: Network) -> dict[str, keras.Variable]:
    every = (*network.variables, *network.optimizer.variables, *network.metrics_variables)
    unique = {id(variable): variable for variable in every}
    # Not by their paths: Keras numbers the optimizers of a process.
    return {f"{place:05} {v.name} {tuple(v.shape)}": v for place, v in enumerate(unique.values())}
