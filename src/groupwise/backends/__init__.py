"""The frameworks: one package each, the only files that import it; `active` is the one that Keras runs on.

Every module offers the same names (see `Backend`); all arrays are NHWC, all kernels HWIO.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import keras

from groupwise.backends.plain_links import Reading
from groupwise.backends.steps import Step
from groupwise.frameworks import ANY_OF_THEM, FRAMEWORKS
from groupwise.launchers import Place
from groupwise.routing import Runtime
from groupwise.spec import ConvSpec


class Core(Protocol):
    """The C core as one framework sees it."""

    def is_available(self) -> bool:
        """Return whether the core is there, loads and is wanted; where it does not load, one warning says why."""

    def convolve(
        self,
        inputs: Any,
        kernel: Any,
        spec: ConvSpec,
        bias: Any = None,
        residual: Any = None,
        activation: str = "linear",
        scale: Any = None,
    ) -> Any:
        """Return activation(convolution * scale + bias + residual) in one call; the gradients are the core's too.

        Args:
            inputs: (batch, height, width, in_channels).
            kernel: (kernel height, kernel width, in_channels // groups, out_channels).
            spec: the convolution.
            bias, scale: (out_channels,) or None. residual: of the outputs' shape, or None.
            activation: one of `epilogues.ACTIVATIONS`.

        Returns:
            (batch, out height, out width, out_channels), of the spec's type, computed in float32.
        """

    def separable(
        self, inputs: Any, grouped: Step, pointwise: Step, residual: Any = None, expansion: Step | None = None
    ) -> Any:
        """Return what `pointwise`, a 1x1, makes of what `grouped` makes of the inputs, in one pass; then the residual.

        Args:
            inputs: (batch, height, width, in_channels).
            grouped, pointwise: float32, and such as `core.separable.computes` in one pass.
            residual: of the outputs' shape, added before the last activation, or None.
            expansion: a 1x1 whose outputs `grouped` reads instead of the inputs, or None.
        """

    def link(
        self, inputs: Any, kernel: Any, spec: ConvSpec, reading: Reading | None = None, counts: bool = False
    ) -> tuple[Any, Any, Any]:
        """Return the convolution of inputs as they are read, and its statistics; the gradients are the core's too.

        Args:
            inputs, kernel, spec: as for `convolve`; float32.
            reading: how the inputs are read; the convolution's padding is zero after it. None: as they are.
            counts: whether statistics are wanted; gradients go through them.

        Returns:
            (batch, out height, out width, out_channels); the mean and the biased variance of each of its channels, or
            None.
        """


class CoreNorm(Protocol):
    """The C core's batch norm as one framework sees it."""

    def normalise(
        self,
        inputs: Any,
        gamma: Any,
        beta: Any,
        statistics: tuple[Any, Any] | None,
        epsilon: float,
        residual: Any = None,
        activation: str = "linear",
    ) -> tuple[Any, Any, Any]:
        """Return activation(normalised inputs + residual), and the mean and biased variance that normalised them.

        Args:
            inputs: (..., channels), float32.
            gamma, beta: (channels,).
            statistics: constant mean and variance, (channels,); None are the batch's, through which the gradient goes.
            epsilon: added to the variance.
            residual: of the inputs' shape, or None. activation: one of `epilogues.ACTIVATIONS`.
        """


class Distribution(Protocol):
    """Several processes or devices as one framework sees them."""

    def is_joined(self) -> bool:
        """Return whether the process is one of several already."""

    def join(self, place: Place) -> None:
        """Make this process one of several; return when all are there."""

    def leave(self) -> None:
        """End what `join` began, as all processes do."""

    def place(self) -> tuple[int, int]:
        """Return the index of this process and the number of processes."""

    def devices(self) -> tuple[int, int]:
        """Return how many devices this process computes on, and all processes."""

    def processes_wanted(self) -> int:
        """Return how many processes it takes to compute on all of this machine's devices."""

    def gather(self, value: Any) -> list[Any]:
        """Return what each process gave, by index; a call of all of them."""

    def scope(self) -> AbstractContextManager[Any]:
        """Return a scope in which networks are made, compiled and trained on all devices of all processes."""

    def prepare(self, model: keras.Model, synchronizes: bool) -> None:
        """Let a compiled model train with those of the other processes.

        Args:
            synchronizes: whether batch norms see the batches of all processes.
        """

    def predictor(self, model: keras.Model) -> Callable[[Any, int], Any] | None:
        """Return a function (images, how many at most) -> outputs of the weights as they are, on this process's devices
        alone; None where the model's own `predict_on_batch` is one.
        """


class Backend(Protocol):
    """What a framework's module offers."""

    core: Core

    version: str
    """The framework's."""

    core_norm: CoreNorm | None
    """The C core's batch norm; None where the framework's own runs."""

    batch_normalise: Callable[[Any, Any, Any, tuple[Any, Any] | None, float], tuple[Any, Any, Any]] | None
    """(NHWC inputs, gamma, beta, constant mean and variance or None for the batch's, epsilon) -> outputs, mean and
    biased variance; None where the framework has no fused form."""

    pool: Callable[[Any, str, tuple[int, int], tuple[int, int]], Any] | None
    """(NHWC inputs, "max" or "average", size, strides) -> unpadded pooling; None where Keras's own is good."""

    pool_same: Callable[[Any, str, tuple[int, int], tuple[int, int]], Any] | None
    """`pool` with "same" padding, which does not count; None where Keras's own is good."""

    max_pool: Callable[[Any, ConvSpec], Any] | None
    """(NHWC inputs, `pooling.window`) -> the core's max pooling; None where the framework's own is as fast."""

    average_pool: Callable[[Any, ConvSpec], Any] | None
    """(NHWC float32 inputs, `pooling.window`) -> the core's averages, padding counted; None where the framework's own
    are as fast."""

    shuffle: Callable[[Any, int, bool], Any] | None
    """(float32 inputs of (..., channels), groups, whether to undo it) -> the core's channel shuffle; None where the
    framework's own is as fast."""

    step: type[Any] | None
    """(model, "train", "test" or "predict", what Keras calls with [batch], whether batch norms are folded) -> the same
    without Python between the operations, as far as that can be had, and in `objection` why not; None where the
    framework traces a step itself."""

    prediction: Callable[[keras.Model], Callable[[Any], Any]] | None
    """(model) -> its `predict_on_batch` with less of Keras's Python; None where `step` or the framework sees to it."""

    distribution: Distribution | None
    """Several processes or devices; None where the framework trains on one."""

    over_processes: Callable[[Callable[..., Any]], Callable[..., Any]] | None
    """(one of the functions that normalise by a batch's statistics) -> the same by those of all processes' batches, in
    a training that wants it; None where nothing is to be done for it."""

    random_state: Callable[[], Mapping[str, Any]] | None
    """() -> arrays by name, from which random layers go on; None where what their variables hold is all of it."""

    set_random_state: Callable[[Mapping[str, Any]], None] | None
    """(what `random_state` returned) -> the framework's random numbers go on from there."""

    tensors: Callable[[Sequence[Any]], list[Any]]
    """See `conversions.tensors`."""

    reshape: Callable[[Any, Sequence[int]], Any]
    """(a tensor, its new shape) -> the same numbers. Keras's looks for symbols in the shape, which takes longer."""

    def runtime(self, inputs: Any = None) -> Runtime:
        """Return where `inputs` (or, without any, the next array) will be computed."""

    def convolve(self, inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
        """Return the framework's own convolution of NHWC `inputs` with an HWIO `kernel`."""

    def training_step(
        self, convolve: Callable[[Any, Any], Any], inputs: Any, kernel: Any, gradient: Any
    ) -> Callable[[], tuple[Any, Any, Any]]:
        """Return a function, compiled as in training, that waits for convolve(inputs, kernel) and its two gradients.

        `gradient` is the one to the outputs.
        """


def _load(name: str) -> Backend:
    if name not in FRAMEWORKS:
        raise ValueError(f"Keras backend {name!r}: must be {ANY_OF_THEM}; set KERAS_BACKEND")
    module: Any = importlib.import_module(f"groupwise.backends.{name}.native")
    return module


active: Backend = _load(keras.backend.backend())
"""The module of the framework that Keras runs on; a constant, so that torch.compile can trace through it."""


def xla_compiles() -> bool:
    """Return whether XLA can compile our layers: on TensorFlow it cannot compile the core's operations."""
    runtime = active.runtime()
    return runtime.framework != "tensorflow" or not runtime.core
