"""The core's batch norm as PyTorch's operations: values, gradients of any order, compilation."""

from typing import Any

import numpy as np
import pytest

from groupwise.backends.activations import FUNCTIONS
from groupwise.core import library
from groupwise.core.epilogues import ACTIVATIONS
from tests.frameworks import BACKEND
from tests.normalizations import EPSILON, random_arrays, truth

if BACKEND != "torch":
    pytest.skip("the operations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch

from groupwise.backends import plain_norm
from groupwise.backends.torch import norm

CASES = [(activation, residual) for activation in ACTIVATIONS for residual in (False, True)]
cases = pytest.mark.parametrize(("activation", "residual"), CASES)
training = pytest.mark.parametrize("training", [True, False])
LEAVES = ("inputs", "gamma", "beta", "residual")


def leaves(residual: bool, dtype: Any = torch.float32, shape: tuple[int, ...] = (2, 3, 4, 5)) -> dict[str, Any]:
    arrays = random_arrays(shape)
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    names = LEAVES if residual else LEAVES[:-1]
    return {name: tensors[name].requires_grad_() for name in names} | {"gradient": tensors["gradient"]}


def statistics(channels: int) -> tuple[Any, Any]:
    return torch.linspace(-0.5, 1, channels), torch.linspace(0.5, 1.5, channels)


def run(tensors: dict[str, Any], activation: str, training: bool) -> Any:
    constant = None if training else statistics(tensors["gamma"].shape[0])
    inputs, gamma, beta = (tensors[name] for name in ("inputs", "gamma", "beta"))
    return norm.normalise(inputs, gamma, beta, constant, EPSILON, tensors.get("residual"), activation)[0]


def plain(tensors: dict[str, Any], activation: str, training: bool) -> Any:
    """Return the same by PyTorch's elementary operations, in the tensors' type."""
    x, constant = tensors["inputs"], statistics(tensors["gamma"].shape[0])
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)) if training else constant
    y = (x - mean) / torch.sqrt(variance + EPSILON) * tensors["gamma"] + tensors["beta"] + tensors.get("residual", 0)
    return FUNCTIONS[activation](y)


@training
@cases
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 7, 7, 24), (4, 80, 80, 40)])
def test_values_and_gradients_agree_with_the_definition(
    shape: tuple[int, ...], activation: str, residual: bool, training: bool
) -> None:
    tensors = leaves(residual, shape=shape)
    constant = None if training else tuple(s.numpy() for s in statistics(shape[-1]))
    exact = truth(random_arrays(shape), activation, residual, constant)
    outputs = run(tensors, activation, training)
    outputs.backward(tensors["gradient"])
    wanted = dict(
        zip(LEAVES, (exact["inputs_gradient"], *exact["sums"][::-1], exact["residual_gradient"]), strict=True)
    )
    np.testing.assert_allclose(outputs.detach().numpy(), exact["outputs"], rtol=1e-4, atol=1e-4)
    for name in LEAVES[: 4 if residual else 3]:
        size = abs(wanted[name]).max()
        actual = tensors[name].grad.numpy()
        np.testing.assert_allclose(actual, wanted[name], rtol=1e-4, atol=1e-4 * size, err_msg=name)


def second_order(function: Any, tensors: dict[str, Any], *options: Any) -> list[Any]:
    """Return the derivatives of a sum of the gradients' squares, by everything."""
    wanted = [tensors[name] for name in LEAVES if name in tensors]
    upstream = tensors["gradient"].requires_grad_()
    first = torch.autograd.grad(torch.sin(function(tensors, *options)), wanted, upstream, create_graph=True)
    total = sum((part**2).sum() for part in first)
    return list(torch.autograd.grad(total, [*wanted, upstream], materialize_grads=True))


@training
@cases
def test_second_order_agrees_with_pytorch_in_float64(activation: str, residual: bool, training: bool) -> None:
    results = second_order(run, leaves(residual), activation, training)
    exact = second_order(plain, leaves(residual, torch.float64), activation, training)
    for actual, value in zip(results, exact, strict=True):
        size = float(value.abs().max())
        torch.testing.assert_close(actual.double(), value, rtol=1e-3, atol=1e-4 * size + 1e-6)


@training
@cases
def test_opcheck(activation: str, residual: bool, training: bool) -> None:
    tensors = leaves(residual)
    constant = (None, None) if training else statistics(5)
    arguments = [*(tensors[name] for name in ("inputs", "gamma", "beta")), *constant, tensors.get("residual")]
    results = torch.library.opcheck(torch.ops.groupwise.normalize.default, (*arguments, activation, EPSILON))
    assert set(results.values()) == {"SUCCESS"}
    given = [tensors[name].detach() for name in ("inputs", "gradient", "gamma", "beta")]
    outputs = run(tensors, activation, training).detach() if residual else None
    options = (activation, EPSILON, training)
    gradient = torch.ops.groupwise.normalize_gradient.default
    results = torch.library.opcheck(gradient, (*given, *statistics(5), outputs, *options))
    assert set(results.values()) == {"SUCCESS"}


@training
def test_compiles_as_a_whole_graph(training: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        tensors = leaves(True)
        function(tensors, "relu", training).backward(tensors["gradient"])
        results.append([tensors[name].grad for name in LEAVES])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_any_strides_are_read() -> None:
    tensors = leaves(True)
    expected = run(tensors, "relu", True)
    moved = {name: t.detach().permute(*range(t.ndim)[::-1]).contiguous() for name, t in tensors.items()}
    moved = {name: t.permute(*range(t.ndim)[::-1]) for name, t in moved.items()}
    assert not moved["inputs"].is_contiguous()
    assert torch.equal(run(moved, "relu", True), expected)


def test_the_plain_gradient_is_the_cores() -> None:
    tensors = leaves(False)
    given = [tensors[name].detach() for name in ("inputs", "gradient", "gamma", "beta")]
    options: dict[str, Any] = {"activation": "relu6", "epsilon": EPSILON, "training": False}
    inputs, gradient, gamma, beta = given
    results = plain_norm.Normalization(**options).gradient(inputs, gradient, gamma, beta, *statistics(5))
    core = torch.ops.groupwise.normalize_gradient(*given, *statistics(5), None, *options.values())
    for actual, value in zip(core[:2], results, strict=False):
        torch.testing.assert_close(actual, value, rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named() -> None:
    tensors = {name: tensor.detach() for name, tensor in leaves(True).items()}
    for change, message in (
        ({"residual": tensors["residual"][:1]}, r"residual of shape \(1, 3, 4, 5\)"),
        ({"gamma": tensors["gamma"].double()}, "gamma of shape .* type torch.float64"),
        ({"beta": tensors["beta"][:2]}, r"beta of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run({**tensors, **change}, "relu", True)
