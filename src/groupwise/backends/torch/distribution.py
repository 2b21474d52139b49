"""PyTorch: a training on several processes, a device each, by `DistributedDataParallel`.

Keras's `fit` before 3.16 knows nothing of other processes: each would train a network of its own, without a word.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import keras
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from groupwise.backends.torch import process_norm
from groupwise.launchers import Place

_MINUTES, _HOURS = 5, 1
"""How long processes wait for one another to begin; and for one that writes files, say: who ends is noticed at once."""


def is_joined() -> bool:
    """Return whether the process is one of several already."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def join(place: Place) -> None:
    """Make this process one of several; return when all are there."""
    means = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_index % torch.cuda.device_count())
        means = "cpu:gloo,cuda:nccl"
    # torchrun's own store listens at that address.
    store = None if place.launcher == "torchrun" else _store(place)
    options: Any = {} if store is None else {"store": store, "rank": place.index, "world_size": place.count}
    distributed.init_process_group(means, timeout=timedelta(hours=_HOURS), **options)


def _store(place: Place) -> Any:
    """Return what process 0 holds, when all have found it."""
    patience = timedelta(minutes=_MINUTES)
    return distributed.TCPStore(place.host, place.port, place.count, place.index == 0, timeout=patience)


def leave() -> None:
    """End what `join` began, as all processes do."""
    distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    return distributed.get_rank(), distributed.get_world_size()


def devices() -> tuple[int, int]:
    """Return how many devices this process computes on, and all processes."""
    return 1, distributed.get_world_size() if distributed.is_initialized() else 1


def processes_wanted() -> int:
    """Return how many processes it takes to compute on all of this machine's devices: one for each card."""
    return max(1, torch.cuda.device_count())


def gather(value: Any) -> list[Any]:
    """Return what each process gave, by index; a call of all of them."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def scope() -> AbstractContextManager[Any]:
    """Return a scope in which networks are made, compiled and trained: none is needed."""
    return nullcontext()


def prepare(model: keras.Model, synchronizes: bool) -> None:
    """Let a model that is compiled train with the others, from process 0's weights.

    Args:
        synchronizes: whether batch norms see the batches of all processes.
    """
    if is_joined():
        object.__setattr__(model, "train_step", _TrainStep(model, synchronizes))


def predictor(model: keras.Model) -> Callable[[Any, int], Any] | None:
    """Return None: a model predicts on this process alone as it is."""
    return None


class _TrainStep:
    """Keras's training step of a model, its gradients, losses and metrics those of all processes' batches together."""

    def __init__(self, model: keras.Model, synchronizes: bool) -> None:
        self._model, self._synchronizes = model, synchronizes
        self._parallel = DistributedDataParallel(model)
        self._loss = next(metric for metric in model.metrics if metric.name == "loss")

    def __call__(self, data: Any) -> Any:
        model: Any = self._model
        images, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
        with process_norm.synchronized(self._synchronizes):
            outputs = self._parallel(images, training=True)
            model.zero_grad()
            loss = model.compute_loss(images, targets, outputs, weights, training=True)
            model.optimizer.scale_loss(loss).backward()
        variables = model.trainable_weights[:]
        with torch.no_grad():
            model.optimizer.apply([variable.value.grad for variable in variables], variables)
            if not self._synchronizes:
                _follow_first([variable.value for variable in model.non_trainable_variables])
            targets, outputs, weights = map(_of_all, (targets, outputs, weights))
            self._loss.update_state(_of_all(loss[None]).mean(), sample_weight=len(outputs))
            return model.compute_metrics(None, targets, outputs, sample_weight=weights)


def _follow_first(values: list[Any]) -> None:
    """Give moving statistics what process 0's are: otherwise each process would judge another network."""
    moving = [value for value in values if value.is_floating_point()]
    if moving:
        whole = torch.cat([value.flatten() for value in moving])
        distributed.broadcast(whole, 0)
        for value, part in zip(moving, whole.split([value.numel() for value in moving]), strict=True):
            value.copy_(part.view_as(value))


def _of_all(value: Any) -> Any:
    """Return the rows of all processes, one after the other: losses and metrics of them are what they are of one."""
    if value is None:
        return None
    value = value.detach().contiguous()
    parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, value)
    return torch.cat(parts)
