"""The C core's max pooling as PyTorch's operations: values, gradients of any order, compilation."""

from typing import Any

import numpy as np
import pytest

from groupwise.core import convolution, library, pooling
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND
from tests.poolings import ROUNDING, SPECS, images, truth

if BACKEND != "torch":
    pytest.skip("the operations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch
from torch.nn import functional

from groupwise.backends.torch import native as backend

STOCK = SPECS[1]  # one that functional.max_pool2d computes too


def tensors(spec: ConvSpec, with_nan: bool = False) -> tuple[Any, Any]:
    """Return inputs that want a gradient, and the outputs' gradient."""
    dtype = getattr(torch, spec.dtype)
    inputs, gradient = (torch.from_numpy(a.astype("float32")).to(dtype) for a in images(spec, 0, with_nan))
    return inputs.requires_grad_(), gradient


def stock(inputs: Any) -> Any:
    return functional.max_pool2d(inputs.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", pooling.ELEMENTS)
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_agree_with_the_reference(spec: ConvSpec, dtype: str) -> None:
    spec = pooling.window(spec.input_shape, spec.kernel_shape[:2], spec.strides, spec.padding, dtype)
    inputs, gradient = tensors(spec, True)
    outputs = backend.max_pool(inputs, spec)
    (actual,) = torch.autograd.grad(outputs, inputs, gradient)
    expected = truth(spec, *(tensor.detach().float().numpy() for tensor in (inputs, gradient)))
    assert outputs.dtype == actual.dtype == inputs.dtype
    np.testing.assert_array_equal(outputs.detach().float().numpy(), expected.outputs)
    assert np.all(np.abs(actual.float().numpy() - expected.gradient) <= ROUNDING[dtype] * expected.bound)


def test_ties_and_what_is_no_number_are_pytorchs_own() -> None:
    inputs, gradient = tensors(STOCK, True)
    results = []
    for pool in (stock, lambda x: backend.max_pool(x, STOCK)):
        outputs = pool(inputs)
        results.append([outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient)])
    for actual, value in zip(*results, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_any_strides_are_read() -> None:
    inputs, gradient = (tensor.detach() for tensor in tensors(STOCK))
    other = inputs.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    plain = backend.max_pool(inputs.requires_grad_(), STOCK)
    outputs = backend.max_pool(other, STOCK)
    assert torch.equal(outputs, plain)
    one = torch.ones(()).expand_as(gradient)
    (actual,), (expected,) = (torch.autograd.grad(y, x, one) for y, x in ((outputs, other), (plain, inputs)))
    assert torch.equal(actual, expected)


def test_places_are_kept_only_for_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, gradient = tensors(STOCK)
    run, kept = pooling.run, []

    def record(*arguments: Any) -> None:
        kept.append(arguments[4] is not None)
        run(*arguments)

    monkeypatch.setattr(pooling, "run", record)
    backend.max_pool(inputs, STOCK).backward(gradient)
    backend.max_pool(inputs.detach(), STOCK)
    with torch.no_grad():
        backend.max_pool(inputs, STOCK)
    assert kept == [True, False, False]


def test_second_order_is_pytorchs_own() -> None:
    """The gradient, squared, differentiated by the outputs' gradient, twice."""
    results = []
    for pool in (stock, lambda x: backend.max_pool(x, STOCK)):
        inputs, gradient = tensors(STOCK)
        gradient.requires_grad_()
        (first,) = torch.autograd.grad(pool(inputs), inputs, gradient, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), gradient, create_graph=True)
        (third,) = torch.autograd.grad(second.square().sum(), gradient)
        results.append((second.detach(), third))
    for actual, value in zip(*results, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-5)


def test_second_order_of_windows_that_see_only_padding() -> None:
    spec = pooling.window((1, 2, 2, 3), (2, 2), (1, 1), ((4, 0), (0, 0)))
    inputs, gradient = tensors(spec)
    gradient.requires_grad_()
    outputs = backend.max_pool(inputs, spec)
    (first,) = torch.autograd.grad(outputs, inputs, gradient, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), gradient)
    # A window's gradient arrives once, unless there was no pixel.
    assert torch.equal(second, torch.isfinite(outputs).float())


@pytest.mark.parametrize("spec", SPECS)
def test_opcheck(spec: ConvSpec) -> None:
    inputs, gradient = tensors(spec)
    sizes = list(convolution.sizes(spec))
    _, places = torch.ops.groupwise.max_pool(inputs, sizes, True)
    operations = torch.ops.groupwise.max_pool.default, torch.ops.groupwise.max_pool_gradient.default
    for operation, arguments in zip(operations, ((inputs, sizes, True), (gradient, places, sizes)), strict=True):
        tracked = (arguments[0].detach().requires_grad_(), *arguments[1:])
        assert set(torch.library.opcheck(operation, tracked).values()) == {"SUCCESS"}


def test_compiles_as_one_graph() -> None:
    inputs, gradient = tensors(STOCK)
    compiled = torch.compile(lambda x: backend.max_pool(x * 2, STOCK) + 1, fullgraph=True, backend="aot_eager")
    outputs = compiled(inputs)
    (actual,) = torch.autograd.grad(outputs, inputs, gradient)
    expected = truth(STOCK, inputs.detach().numpy(), 2 * gradient.numpy())
    np.testing.assert_array_equal(outputs.detach().numpy(), 2 * expected.outputs + 1)
    np.testing.assert_allclose(actual.numpy(), expected.gradient, rtol=1e-5, atol=1e-5)


def test_operations_refuse_tensors_that_are_not_of_the_sizes() -> None:
    inputs, gradient = (tensor.detach() for tensor in tensors(STOCK))
    sizes = convolution.sizes(STOCK)
    _, places = torch.ops.groupwise.max_pool(inputs, sizes, True)
    for operation, arguments, message in (
        ("max_pool", (inputs[1:], sizes, True), "max_pool: inputs of shape"),
        ("max_pool", (inputs.double(), sizes, True), "max_pool: inputs of .* type torch.float64"),
        ("max_pool_gradient", (gradient[1:], places, sizes), "max_pool_gradient: gradient of shape"),
        ("max_pool_gradient", (gradient, places.int(), sizes), "max_pool_gradient: places of .* type torch.int32"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(torch.ops.groupwise, operation)(*arguments)


def test_empty_batch() -> None:
    spec = pooling.window((0, 9, 8, 35), (3, 3), (2, 2))
    inputs, gradient = tensors(spec)
    outputs = backend.max_pool(inputs, spec)
    outputs.backward(gradient)
    assert (outputs.shape, inputs.grad.shape) == ((0, 4, 3, 35), (0, 9, 8, 35))
