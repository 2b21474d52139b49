"""TensorFlow: `tf.nn.conv2d` itself, never through a forced XLA compilation."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import tensorflow as tf

from groupwise.backends import conversions
from groupwise.backends.tensorflow import core, norm
from groupwise.backends.tensorflow.devices import accelerator
from groupwise.backends.tensorflow.prediction import Prediction
from groupwise.backends.tensorflow.shuffle import shuffle as shuffle
from groupwise.routing import Runtime, tuning
from groupwise.spec import DTYPES, ConvSpec

version = tf.__version__
core_norm = norm
pool = pool_same = max_pool = average_pool = step = None
prediction = Prediction
random_state = set_random_state = distribution = over_processes = None
tensors, reshape = conversions.tensors, tf.reshape


@cache
def _complete_types() -> frozenset[str]:
    """Return the types in which TensorFlow has both gradients of a grouped convolution on this CPU.

    Only oneDNN's kernels have, which TensorFlow uses by default where a CPU has AVX-512, and not in every type; those
    that remain lack dilation too.
    """
    return frozenset(filter(_is_complete, DTYPES))


def _is_complete(dtype: str) -> bool:
    # Of the operations themselves: tf.init_scope, which leaves a graph that is being traced, records no gradient.
    with tf.init_scope(), tf.device("CPU"):
        inputs, kernel, outputs = (tf.ones(shape, dtype) for shape in ((1, 4, 4, 4), (3, 3, 2, 4), (1, 4, 4, 4)))
        options = {"out_backprop": outputs, "strides": [1, 1, 1, 1], "padding": "SAME"}
        try:
            tf.raw_ops.Conv2DBackpropInput(input_sizes=inputs.shape, filter=kernel, **options)
            tf.raw_ops.Conv2DBackpropFilter(input=inputs, filter_sizes=kernel.shape, **options)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.NotFoundError):
            return False
        return True


def _grouped_gradients() -> frozenset[str]:
    """Return the types in which `convolve` has grouped gradients: half precision it can compute in float32."""
    complete = _complete_types()
    return complete | {"float16", "bfloat16"} if "float32" in complete else complete


def runtime(inputs: Any = None) -> Runtime:
    """Return the accelerator's runtime where TensorFlow sees one, else the CPU's."""
    card = accelerator()
    if card is not None:
        return Runtime("tensorflow", "gpu", accelerator=card)
    return Runtime(
        "tensorflow", "cpu", _grouped_gradients(), core.is_available(), tuning.current("tensorflow", version)
    )


def training_step(
    convolve: Callable[[Any, Any], Any], inputs: Any, kernel: Any, gradient: Any
) -> Callable[[], tuple[Any, Any, Any]]:
    """Return a compiled function that runs `convolve` and both of its gradients."""

    @tf.function
    def step(inputs: Any, kernel: Any, gradient: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolve(inputs, kernel)
        return outputs, *tape.gradient(outputs, [inputs, kernel], output_gradients=gradient)

    # Traced here and now: TensorFlow would warn of a function that is made and traced again for each convolution.
    return partial(step.get_concrete_function(inputs, kernel, gradient), inputs, kernel, gradient)


def convolve(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return `tf.nn.conv2d` of NHWC `inputs` and an HWIO `kernel`; a size unknown while tracing is allowed."""
    if spec.dtype in ("float16", "bfloat16") and accelerator() is None and spec.dtype not in _complete_types():
        outputs = convolve(tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32), replace(spec, dtype="float32"))
        return tf.cast(outputs, spec.dtype)
    mode, padding = "VALID", spec.explicit_padding
    if padding is None or padding == replace(spec, padding="same").explicit_padding:
        mode = "SAME"
    elif padding != ((0, 0), (0, 0)):
        # tf.nn.conv2d's own explicit padding has no gradient in oneDNN, hence none for groups.
        inputs = tf.pad(inputs, ((0, 0), *padding, (0, 0)))
    if spec.kernel_shape[:2] == (1, 1) and spec.strides != (1, 1):
        # TensorFlow 2.21's gradient of a small strided 1x1 convolution crashes the process: stride first.
        strided = inputs[:, :: spec.strides[0], :: spec.strides[1]]
        return tf.nn.conv2d(strided, kernel, 1, "VALID")
    return tf.nn.conv2d(inputs, kernel, spec.strides, mode, dilations=spec.dilation_rate)


def batch_normalise(
    inputs: Any, gamma: Any, beta: Any, statistics: tuple[Any, Any] | None, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return TensorFlow's fused batch norm of NHWC `inputs`, and the statistics: constants, or the batch's."""
    mean, variance = statistics or ([], [])
    outputs, batch_mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=statistics is None,
    )
    if statistics is not None:
        return outputs, *statistics
    count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), unbiased.dtype)
    return outputs, batch_mean, unbiased * (tf.maximum(count, 2.0) - 1.0) / tf.maximum(count, 2.0)
