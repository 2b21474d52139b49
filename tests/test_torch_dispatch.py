"""On PyTorch the core is called past the dispatcher where nothing watches: the same bits, and nobody is passed over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from groupwise.backends.plain_links import Reading
from groupwise.core import library, pooling
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND

if BACKEND != "torch":
    pytest.skip("the operations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from groupwise.backends.torch import core, norm
from groupwise.backends.torch import native as backend

SPEC = ConvSpec.of((2, 5, 6, 8), (3, 3, 4, 8), 2, (1, 2))
OUTPUTS, CHANNELS = (2, 5, 3, 8), (8,)


def fused(activation: str) -> Callable[..., Any]:
    return lambda x, w, bias, residual: core.convolve(x, w, SPEC, bias, residual, activation)


def link(activation: str) -> Callable[..., Any]:
    def run(x: Any, w: Any, *reading: Any) -> Any:
        results = core.link(x, w, SPEC, Reading(*reading, activation), counts=True)  # type: ignore[call-arg]
        return torch.cat([result.flatten() for result in results])

    return run


def normalised(activation: str, training: bool) -> Callable[..., Any]:
    def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        statistics = None if training else (torch.linspace(-1, 1, 8), torch.linspace(0.5, 1, 8))
        return norm.normalise(x, gamma, beta, statistics, 1e-3, residual, activation)[0]

    return run


CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "convolution": (lambda x, w: core.convolve(x, w, SPEC), (SPEC.input_shape, SPEC.kernel_shape)),  # type: ignore[dict-item]
    "maxima": (lambda x: backend.max_pool(x, pooling.window((2, 5, 6, 8), (3, 3), (2, 2))), ((2, 5, 6, 8),)),
}
for name in ACTIVATIONS:
    CASES[f"fused, {name}"] = fused(name), ((2, 5, 6, 8), (3, 3, 4, 8), CHANNELS, OUTPUTS)
    CASES[f"link, {name}"] = link(name), ((2, 5, 6, 8), (3, 3, 4, 8), *[CHANNELS] * 3)
    for training in (True, False):
        shapes = (OUTPUTS, CHANNELS, CHANNELS, OUTPUTS)
        CASES[f"normalised, {name}, {'training' if training else 'inference'}"] = normalised(name, training), shapes
every_case = pytest.mark.parametrize("case", CASES)


class Watching(TorchDispatchMode):
    """Keeps the names of our operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "groupwise":
            self.names.append(function.__name__.removesuffix(".default"))
        return function(*args, **(kwargs or {}))


def leaves(case: str) -> list[Any]:
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.normal(size=s).astype("float32")).requires_grad_() for s in CASES[case][1]]


def orders(case: str) -> list[Any]:
    """Return the outputs without gradients and with, the gradients, and those of a function of the gradients."""
    function, arguments = CASES[case][0], leaves(case)
    with torch.no_grad():
        alone = function(*arguments)
    outputs = function(*arguments)
    first = torch.autograd.grad(torch.sin(outputs).sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum((part**2).sum() for part in first), arguments, materialize_grads=True)
    return [alone, outputs.detach(), *(part.detach() for part in first), *second]


@every_case
def test_both_ways_give_the_same_bits(case: str) -> None:
    direct = orders(case)
    with Watching() as watching:
        registered = orders(case)
    assert watching.names
    assert len(direct) == len(registered)
    assert all(torch.equal(one, other) for one, other in zip(direct, registered, strict=True))


@every_case
def test_gradients_may_be_recorded_one_way_and_asked_for_the_other(case: str) -> None:
    function, arguments = CASES[case][0], leaves(case)
    wanted = torch.autograd.grad(function(*arguments).sum(), arguments)
    outputs = function(*arguments).sum()
    with Watching() as backward:
        watched = torch.autograd.grad(outputs, arguments)
    assert all("gradient" in name for name in backward.names)
    assert backward.names
    with Watching():
        outputs = function(*arguments).sum()
    for gradients in (watched, torch.autograd.grad(outputs, arguments)):
        assert all(torch.equal(one, other) for one, other in zip(gradients, wanted, strict=True))


def test_a_dispatch_mode_sees_every_operation() -> None:
    seen = {}
    for case in ("convolution", "fused, relu", "link, relu", "normalised, relu, training", "maxima"):
        function, arguments = CASES[case][0], leaves(case)
        with Watching() as watching:
            function(*arguments).sum().backward()
        seen[case] = sorted(watching.names)
    assert seen == {
        "convolution": ["convolve", "input_gradient", "kernel_gradient"],
        "fused, relu": ["fused_convolve", "input_gradient", "kernel_gradient"],
        "link, relu": ["link", "link_input_gradient", "link_kernel_gradient"],
        "normalised, relu, training": ["normalize", "normalize_gradient"],
        "maxima": ["max_pool", "max_pool_gradient"],
    }


def test_a_graph_of_forward_and_backward_holds_the_operations() -> None:
    function, arguments = CASES["fused, relu"][0], leaves("fused, relu")

    def step(*arguments: Any) -> Any:
        return torch.autograd.grad(function(*arguments).sum(), arguments)

    graph = make_fx(step)(*arguments)
    names = [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("groupwise")]
    assert sorted(names) == [
        "groupwise.fused_convolve.default",
        "groupwise.input_gradient.default",
        "groupwise.kernel_gradient.default",
    ]
    for actual, value in zip(graph(*arguments), step(*arguments), strict=True):
        assert torch.equal(actual, value)


def test_function_modes_subclasses_and_profilers_see_the_operations() -> None:
    function, arguments = CASES["convolution"][0], [leaf.detach() for leaf in leaves("convolution")]

    class Mode(TorchFunctionMode):
        seen: tuple[Any, ...] = ()

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen = (*self.seen, function)
            return function(*args, **(kwargs or {}))

    with Mode() as mode:
        function(*arguments)
    assert torch.ops.groupwise.convolve.default in mode.seen

    class Own(torch.Tensor):
        pass

    assert type(function(arguments[0].as_subclass(Own), arguments[1])) is Own
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*arguments)
    assert "groupwise::convolve" in {event.key for event in profile.key_averages()}


def test_a_tensor_that_is_not_its_memory_is_read_as_what_it_is() -> None:
    """The imaginary part of a conjugate is a view of numbers whose signs are turned as they are read."""
    function, (x, w) = CASES["convolution"][0], [leaf.detach() for leaf in leaves("convolution")]
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    assert torch.equal(function(negative, w), function(-x, w))


@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_nothing_is_dispatched_where_nothing_watches(guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.groupwise.convolve.default.__class__, "__call__", refuse)
    function, (x, w) = CASES["convolution"][0], leaves("convolution")
    with guard():
        function(x, w)
        function(x.clone(), w.clone())  # of inference mode itself
    function(x, w).sum().backward()
    assert x.grad is not None


def refuse(operation: Any, *arguments: Any, **options: Any) -> Any:
    if operation.namespace == "groupwise":
        raise AssertionError(f"{operation} was dispatched")
    return operation._op(*arguments, **options)
