"""PyTorch: links of chains: convolutions that normalise what they read and count what they write, as operations.

Neither the normalised inputs nor the gradient to the outputs that comes through their statistics is ever in memory. The
gradients are operations of the core too; their own gradients are those of the plain expressions in `plain_links`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.backends import plain_links
from groupwise.backends.plain_links import Reading
from groupwise.backends.torch.operations import Rules, checked, define, tangents_of
from groupwise.backends.torch.passes import OPERATIONS, activated, executor
from groupwise.core import convolution, epilogues
from groupwise.spec import ConvSpec


def link(
    inputs: Any, kernel: Any, spec: ConvSpec, reading: Reading | None = None, counts: bool = False
) -> tuple[Any, Any, Any]:
    """Return the convolution of inputs as they are read, and its statistics or None.

    Arguments and results are those of `backends.Core.link`: float32 on the CPU.

    Raises:
        ValueError: where a type or shape does not fit, the image's size is not known, or there is no such activation.
    """
    *arrays, activation = (None, None, None, "linear") if reading is None else reading
    epilogues.number(activation)
    # What is contiguous is saved for the gradients, and copied no second time.
    inputs, kernel = inputs.contiguous(), kernel.contiguous()
    outputs, mean, variance = _LINK(inputs, kernel, *arrays, activation, counts, convolution.sizes(spec))
    return (outputs, mean, variance) if counts else (outputs, None, None)


_FORWARD = ("inputs", "kernel", "mean", "scale", "shift")
_GRADIENT = ("gradient", *_FORWARD, "outputs", "center", "slope", "offset")
"""The tensors of the operations' schemas, below: the gradient to outputs is gradient + (outputs - center) * slope +
offset, or gradient alone."""


def _checked(names: tuple[str, ...], tensors: Sequence[Tensor | None], sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return tensors by name."""
    before, filters, after = convolution.known_shapes(sizes)
    shapes = {"inputs": before, "kernel": filters, "gradient": after, "outputs": after}
    shapes |= dict.fromkeys(_FORWARD[2:], before[3:]) | dict.fromkeys(_GRADIENT[-3:], after[3:])
    return {n: checked(f"groupwise::link: {n}", t, shapes[n]) for n, t in zip(names, tensors, strict=True)}


def _inputs_reading(tensors: dict[str, Any], activation: str) -> Any:
    if tensors["mean"] is None:
        return None
    mean, scale, shift = (tensors[name].data_ptr() for name in _FORWARD[2:])
    return convolution.reading(mean, scale, shift, None, activation)


def _link(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, activation, counts, sizes = arguments
    known = tuple(sizes)
    tensors = _checked(_FORWARD, given, known)
    outputs, mean, variance = _shapes(*given, activation, counts, known)
    statistics = {"mean": mean.data_ptr(), "variance": variance.data_ptr()} if counts else {}
    fusion = convolution.fusion(inputs=_inputs_reading(tensors, activation), **statistics)
    arrays = (tensors["inputs"].data_ptr(), tensors["kernel"].data_ptr(), outputs.data_ptr())
    convolution.run(convolution.FORWARD, known, arrays, fusion, executor())
    return outputs, mean, variance


def _shapes(inputs: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, counts, sizes = arguments
    outputs = inputs.new_empty(convolution.shapes(tuple(sizes))[convolution.OUTPUTS])
    mean, variance = (inputs.new_empty(outputs.shape[3] if counts else 0) for _ in range(2))
    return outputs, mean, variance


def _save(context: Any, arguments: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, context.activation, context.counts, context.sizes = arguments
    context.save_for_backward(*tensors, *(results[:2] if context.counts else (None, None)))


def _backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient, to_mean, to_variance = gradients if context.counts else (gradients[0], None, None)
    *tensors, outputs, center = context.saved_tensors
    none = [None] * 8
    statistics = none[:4]
    if to_mean is not None or to_variance is not None:
        pixels = outputs.shape[0] * outputs.shape[1] * outputs.shape[2]
        slope = torch.zeros_like(center) if to_variance is None else 2 * to_variance / pixels
        offset = torch.zeros_like(center) if to_mean is None else to_mean / pixels
        statistics = [outputs, center, slope, offset]
        gradient = torch.zeros_like(outputs) if gradient is None else gradient
    if gradient is None:
        return tuple(none)
    given = gradient.contiguous(), *tensors, *statistics, context.activation, context.sizes
    _, to_inputs, to_kernel, *to_reading, _, _, _ = context.needs_input_grad
    found = none[:]
    if to_inputs or any(to_reading):
        found[0], sums = _INPUT_GRADIENT(*given)
        if any(to_reading):
            found[2:5] = -tensors[3] * sums[0], sums[1], sums[0]
    if to_kernel:
        found[1] = _KERNEL_GRADIENT(*given)
    return tuple(found)


def _tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], *_: Tensor) -> Any:
    return tangents_of(_plain_link, arguments, tangents)


def _plain_link(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_link` does by operations of PyTorch's own and the convolution."""
    inputs, kernel, *reading, activation, counts, sizes = arguments
    outputs = OPERATIONS[convolution.FORWARD](_read(inputs, reading, activation), kernel, sizes)
    return outputs, *(plain_links.statistics(outputs) if counts else (inputs.new_empty(0), inputs.new_empty(0)))


def _read(inputs: Tensor, reading: Sequence[Any], activation: str) -> Tensor:
    if reading[0] is None:
        return inputs
    return activated(plain_links.before_activation(inputs, Reading(*reading)), activation)


# The gradients: operations of the same arguments.


def _operands(tensors: dict[str, Any]) -> tuple[int, Any]:
    """Return the address of the image that is read for the outputs' gradient, and how it is read."""
    gradient, outputs = tensors["gradient"].data_ptr(), tensors["outputs"]
    if outputs is None:
        return gradient, None
    mean, scale, shift = (tensors[name].data_ptr() for name in _GRADIENT[-3:])
    return outputs.data_ptr(), convolution.reading(mean, scale, shift, gradient)


def _input_gradient(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, activation, sizes = arguments
    known = tuple(sizes)
    tensors = _checked(_GRADIENT, given, known)
    to_inputs, sums = _input_gradient_shapes(*given, activation, known)
    upstream, outputs = _operands(tensors)
    inputs = _inputs_reading(tensors, activation)
    through = {} if inputs is None else {"raw_inputs": tensors["inputs"].data_ptr(), "sums": sums.data_ptr()}
    arrays = (upstream, tensors["kernel"].data_ptr(), to_inputs.data_ptr())
    fusion = convolution.fusion(inputs=inputs, outputs=outputs, **through)
    convolution.run(convolution.INPUT_GRADIENT, known, arrays, fusion, executor())
    return to_inputs, sums


def _input_gradient_shapes(gradient: Tensor, inputs: Tensor, kernel: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    has_reading = others[0] is not None
    return inputs.new_empty(inputs.shape), inputs.new_empty((2, inputs.shape[3]) if has_reading else 0)


def _plain_input_gradient(*arguments: Any) -> tuple[Tensor, Tensor]:
    gradient, inputs, kernel, mean, scale, shift, *outputs, activation, sizes = arguments
    gradient = OPERATIONS[convolution.INPUT_GRADIENT](_whole(gradient, *outputs), kernel, sizes)
    if mean is None:
        return gradient, inputs.new_empty(0)
    to_inputs, *sums = plain_links.through_reading(gradient, inputs, Reading(mean, scale, shift, activation))
    return to_inputs, torch.stack(sums)


def _kernel_gradient(*arguments: Any) -> Tensor:
    *given, activation, sizes = arguments
    known = tuple(sizes)
    tensors = _checked(_GRADIENT, given, known)
    to_kernel = tensors["kernel"].new_empty(tensors["kernel"].shape)
    upstream, outputs = _operands(tensors)
    arrays = (tensors["inputs"].data_ptr(), upstream, to_kernel.data_ptr())
    fusion = convolution.fusion(inputs=_inputs_reading(tensors, activation), outputs=outputs)
    convolution.run(convolution.KERNEL_GRADIENT, known, arrays, fusion, executor())
    return to_kernel


def _plain_kernel_gradient(*arguments: Any) -> tuple[Tensor]:
    gradient, inputs, _, *others, activation, sizes = arguments
    read = _read(inputs, others[:3], activation)
    return (OPERATIONS[convolution.KERNEL_GRADIENT](read, _whole(gradient, *others[3:]), sizes),)


def _whole(gradient: Tensor, outputs: Tensor | None, center: Any, slope: Any, offset: Any) -> Tensor:
    """Return the gradient to outputs, which comes through their statistics too."""
    return gradient if outputs is None else gradient + (outputs - center) * slope + offset


def _gradient(name: str, results: str, compute: Any, shapes: Any, plain: Any) -> Callable[..., Any]:
    """Register `torch.ops.groupwise.<name>`, whose derivatives are those of the plain expression."""

    def save(context: Any, arguments: tuple[Any, ...], _: Any) -> None:
        *tensors, context.activation, context.sizes = arguments
        context.save_for_backward(*tensors)

    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, options = context.saved_tensors, (context.activation, context.sizes)
        places = [place for place, tensor in enumerate(tensors) if tensor is not None]

        def spread(values: Sequence[Tensor]) -> list[Tensor | None]:
            by_place = dict(zip(places, values, strict=True))
            return [by_place.get(place) for place in range(len(tensors))]

        values, pull = torch.func.vjp(lambda *given: plain(*spread(given), *options), *(tensors[p] for p in places))
        pairs = zip(gradients, values, strict=True)
        return *spread(pull(tuple(torch.zeros_like(v) if g is None else g for g, v in pairs))), None, None

    def tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], *_: Tensor) -> Any:
        return tangents_of(plain, arguments, tangents)

    schema = (
        "(Tensor gradient, Tensor inputs, Tensor kernel, Tensor? mean, Tensor? scale, Tensor? shift, Tensor? outputs, "
        f"Tensor? center, Tensor? slope, Tensor? offset, str activation, SymInt[] sizes) -> {results}"
    )
    return define(name, schema, Rules(compute, shapes, save, backward, tangent))


_INPUT_GRADIENT = _gradient(
    "link_input_gradient", "(Tensor, Tensor)", _input_gradient, _input_gradient_shapes, _plain_input_gradient
)
_KERNEL_GRADIENT = _gradient(
    "link_kernel_gradient",
    "Tensor",
    _kernel_gradient,
    lambda gradient, inputs, kernel, *_: kernel.new_empty(kernel.shape),
    _plain_kernel_gradient,
)
_LINK = define(
    "link",
    "(Tensor inputs, Tensor kernel, Tensor? mean, Tensor? scale, Tensor? shift, str activation, bool counts, "
    "SymInt[] sizes) -> (Tensor, Tensor, Tensor)",
    Rules(compute=_link, shapes=_shapes, save=_save, backward=_backward, tangent=_tangent),
)
