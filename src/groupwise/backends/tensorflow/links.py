"""TensorFlow: links of a chain as operations (`csrc/bindings/tensorflow_link.cc`), with gradients of any order.

The gradients to inputs and kernel are operations of the core too, which read raw images; their own gradients are those
of the plain expression, in `plain_links` and the core's convolutions.
"""

from typing import Any

import tensorflow as tf

from groupwise.backends import plain_links
from groupwise.backends.plain_links import Reading
from groupwise.backends.tensorflow.operations import (
    PASSES,
    attributes_of,
    float32_tensors,
    gradients_of,
    operations,
    run,
    same_attributes,
    set_shapes,
    unneeded,
)
from groupwise.core import convolution, epilogues
from groupwise.spec import ConvSpec

_READING = ("mean", "scale", "shift")


def link(
    inputs: Any, kernel: Any, spec: ConvSpec, reading: Reading | None = None, counts: bool = False
) -> tuple[Any, Any, Any]:
    """Return the convolution of inputs as they are read, and its statistics, computed by the core in one call.

    Batch, height and width may be unknown while tracing. XLA cannot compile it: `tf.function(jit_compile=True)` raises
    `InvalidArgumentError`.

    Arguments and results are those of `backends.Core.link`.

    Raises:
        ValueError: where a type is not float32, there is no such activation, or TensorFlow computes on an accelerator.
        tf.errors.InvalidArgumentError: where the arrays' shapes are not those of one convolution and its reading.
    """
    number = epilogues.number("linear" if reading is None else reading.activation)
    given = {"inputs": inputs, "kernel": kernel}
    if reading is not None:
        given |= {name: getattr(reading, name) for name in _READING}
    inputs, kernel, *read = float32_tensors(given).values()
    outputs, mean, variance = operations()["GroupwiseLink"](
        inputs, kernel, *_listed(read, 3), counts=int(counts), activation=number, **attributes_of(spec)
    )
    set_shapes((outputs, spec.output_shape), *((array, (spec.out_channels,)) for array in (*mean, *variance)))
    return (outputs, mean[0], variance[0]) if counts else (outputs, None, None)


def _listed(arrays: list[Any], most: int) -> list[list[Any]]:
    """Return the arrays, all of them or none, as the operations take them: a list of one or of none for each."""
    return [[array] for array in arrays] or [[]] * most


@tf.RegisterGradient("GroupwiseLink")
def _gradient(operation: Any, upstream: Any, *to_statistics: Any) -> list[Any]:
    inputs, kernel, *reading = operation.inputs
    needed = set(range(len(operation.inputs))).difference(unneeded(operation))
    attributes = _attributes(operation)
    through_statistics = _listed(_through_statistics(operation, to_statistics), 4)
    to_kernel = to_inputs = None
    if 1 in needed:
        arguments = [inputs, upstream, tf.shape(kernel), *_listed(reading, 3), *through_statistics]
        to_kernel = run("GroupwiseLinkKernelGradient", arguments, kernel.shape, **attributes)
    if not needed - {1}:
        return [None, to_kernel, *[None] * len(reading)]
    raw = [*reading, inputs] if reading else []
    to_inputs, sums = operations()["GroupwiseLinkInputGradient"](
        upstream, kernel, tf.shape(inputs), *_listed(raw, 4), *through_statistics, **attributes
    )
    set_shapes((to_inputs, inputs.shape))
    if not reading:
        return [to_inputs, to_kernel]
    to_shift, to_scale = tf.unstack(sums[0], 2)
    set_shapes((to_shift, inputs.shape[-1:]), (to_scale, inputs.shape[-1:]))
    return [to_inputs, to_kernel, -reading[1] * to_shift, to_scale, to_shift]


def _attributes(operation: Any) -> dict[str, Any]:
    return {**same_attributes(operation), "activation": operation.get_attr("activation")}


def _through_statistics(operation: Any, to_statistics: tuple[Any, ...]) -> list[Any]:
    """Return outputs, mean, scale and shift of what the outputs' gradient gets through their statistics, if any."""
    if not to_statistics:
        return []
    outputs, mean, _ = operation.outputs
    to_mean, to_variance = to_statistics
    count = tf.cast(tf.reduce_prod(tf.shape(outputs, tf.int64)[:3]), tf.float32)
    share = 1 / tf.maximum(count, 1)  # an empty batch has no pixel
    return [outputs, mean, 2 * share * to_variance, share * to_mean]


@tf.RegisterGradient("GroupwiseLinkInputGradient")
def _gradient_of_input_gradient(operation: Any, *upstream: Any) -> list[Any]:
    def expression(gradient: Any, kernel: Any, shape: Any, *more: Any) -> list[Any]:
        reading, seen = _parted(operation, more, 4)
        arguments = [_total(gradient, seen), kernel, shape]
        to_image = _convolved(convolution.INPUT_GRADIENT, arguments, operation)
        if not reading:
            return [to_image]
        *arrays, inputs = reading
        to_inputs, *to_reading = plain_links.through_reading(to_image, inputs, _reading(operation, arrays))
        return [to_inputs, tf.stack(to_reading)]

    return gradients_of(expression, operation, list(upstream))


@tf.RegisterGradient("GroupwiseLinkKernelGradient")
def _gradient_of_kernel_gradient(operation: Any, *upstream: Any) -> list[Any]:
    def expression(inputs: Any, gradient: Any, shape: Any, *more: Any) -> list[Any]:
        reading, seen = _parted(operation, more, 3)
        image = plain_links.read(inputs, _reading(operation, reading)) if reading else inputs
        return [_convolved(convolution.KERNEL_GRADIENT, [image, _total(gradient, seen), shape], operation)]

    return gradients_of(expression, operation, list(upstream))


def _convolved(pass_: int, arguments: list[Any], operation: Any) -> Any:
    """Return what a convolution's pass makes, in the place of an operation."""
    return run(PASSES[pass_], arguments, operation.outputs[0].shape, **same_attributes(operation))


def _parted(operation: Any, more: tuple[Any, ...], size: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the `size` arrays of the reading, if there is one, and those of what goes through statistics."""
    size *= operation.get_attr("readings")
    return more[:size], more[size:]


def _reading(operation: Any, arrays: Any) -> Reading:
    mean, scale, shift = arrays
    return Reading(mean, scale, shift, epilogues.NAMES[operation.get_attr("activation")])


def _total(gradient: Any, seen: tuple[Any, ...]) -> Any:
    """Return the outputs' gradient with what of it goes through their statistics."""
    return gradient + plain_links.before_activation(seen[0], Reading(*seen[1:])) if seen else gradient
