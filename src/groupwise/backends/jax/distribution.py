"""JAX: a training on several devices and processes, by Keras's `DataParallel` and JAX's distributed runtime."""

import ctypes
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from groupwise.launchers import Place

_MINUTES = 5
_COMPILED = "_compiled_prediction"
"""The attribute in which a model keeps its compiled prediction for the next time."""


def is_joined() -> bool:
    """Return whether the process is one of several already."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def join(place: Place) -> None:
    """Make this process one of several; return when all are there."""
    # Its own handler would keep SIGTERM from ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # torchrun's own store listens at the port that it names.
    port = place.port + (place.launcher == "torchrun")
    # SLURM may show each process its own card alone.
    shares = place.local_count > 1 and "," in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    jax.distributed.initialize(
        f"{place.host}:{port}",
        place.count,
        place.index,
        local_device_ids=[place.local_index] if shares else None,
        initialization_timeout=60 * _MINUTES,
    )
    with _without_output():
        gather(None)


@contextmanager
def _without_output() -> Iterator[None]:
    """Lead standard output nowhere: Gloo says there, past Python, that its processes are connected."""
    output, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(output, 1)
        os.close(output)
        os.close(nowhere)


def leave() -> None:
    """End what `join` began, as all processes do."""
    jax.distributed.shutdown()


def place() -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    return jax.process_index(), jax.process_count()


def devices() -> tuple[int, int]:
    """Return how many devices this process computes on, and all processes."""
    return jax.local_device_count(), jax.device_count()


def processes_wanted() -> int:
    """Return how many processes it takes to compute on all of this machine's devices."""
    return 1


def gather(value: Any) -> list[Any]:
    """Return what each process gave, by index; a call of all of them."""
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([content.size], np.int32)).ravel()
    # A new size is compiled anew.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def scope() -> AbstractContextManager[Any]:
    """Return a scope in which networks are made, compiled and trained on all devices of all processes."""
    every = keras.distribution.list_devices()
    return keras.distribution.DataParallel(devices=every, auto_shard_dataset=False).scope()


def prepare(model: keras.Model, synchronizes: bool) -> None:
    """Let a model that is compiled train with the others: nothing is to be done, XLA divides what it computes."""


def predictor(model: keras.Model) -> Callable[[Any, int], Any]:
    """Return a function of the model's weights as they are: (images, how many at most) -> logits, on own devices."""
    model.jax_state_sync()  # in an epoch its variables lie in JAX's hands
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    whole, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    trainable, others = (
        [jax.device_put(np.asarray(variable.value), whole) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    run = vars(model).get(_COMPILED)
    if run is None:
        run = jax.jit(lambda *given: model.stateless_call(*given, training=False)[0])
        object.__setattr__(model, _COMPILED, run)

    def predict(images: Any, batch_size: int) -> Any:
        # A new shape is compiled anew; and each device takes equally many.
        missing = batch_size + -batch_size % jax.local_device_count() - len(images)
        padded = np.pad(images, ((0, missing), *((0, 0) for _ in images.shape[1:])))
        return np.asarray(run(trainable, others, jax.device_put(padded, parts)))[: len(images)]

    return predict
