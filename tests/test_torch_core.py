"""The C core as PyTorch's operations: values, gradients of any order, compilation, export, threads and forks."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.backends.activations import FUNCTIONS
from groupwise.core import convolution, library
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND
from tests.passes import PASS_NAMES, SPECS, expected, near, random_arrays

if BACKEND != "torch":
    pytest.skip("the operations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch

from groupwise.backends.torch import core
from groupwise.backends.torch import native as stock
from groupwise.backends.torch import passes as operations

EVERY_SPEC = [spec for specs in SPECS.values() for spec in specs]
ONE_EACH = [specs[1] for specs in SPECS.values()]


def leaves(spec: ConvSpec, dtype: Any = torch.float32) -> list[Any]:
    """Return inputs and kernel that want a gradient, and the outputs' gradient."""
    inputs, kernel, gradient = (torch.from_numpy(array).to(dtype) for array in random_arrays(spec))
    return [inputs.requires_grad_(), kernel.requires_grad_(), gradient]


def passes(convolve: Any, spec: ConvSpec, inputs: Any, kernel: Any, gradient: Any) -> list[Any]:
    """Return the outputs and the gradients to inputs and kernel."""
    outputs = convolve(inputs, kernel, spec)
    return [outputs.detach(), *torch.autograd.grad(outputs, (inputs, kernel), gradient)]


@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_values_and_gradients_agree_with_the_reference(spec: ConvSpec) -> None:
    results = passes(core.convolve, spec, *leaves(spec))
    for pass_, result in zip(convolution.PASSES, results, strict=True):
        assert result.is_contiguous()
        near(result.numpy(), *expected(pass_, spec, random_arrays(spec)), PASS_NAMES[pass_])


@pytest.mark.parametrize("spec", ONE_EACH)
def test_any_strides_are_read(spec: ConvSpec) -> None:
    """Channels-first memory seen as NHWC, a kernel of PyTorch's layout seen as HWIO, an expanded gradient."""
    inputs, kernel, gradient = (tensor.detach() for tensor in leaves(spec))
    other_inputs = inputs.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    other_kernel = kernel.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0).requires_grad_()
    one = torch.ones(()).expand_as(gradient)
    plain = passes(core.convolve, spec, inputs.requires_grad_(), kernel.requires_grad_(), one.contiguous())
    for actual, value in zip(passes(core.convolve, spec, other_inputs, other_kernel, one), plain, strict=True):
        assert torch.equal(actual, value)


def test_contiguous_arguments_are_not_copied() -> None:
    """The operation saves the very memory that it was given."""
    inputs, kernel, _ = leaves(EVERY_SPEC[0])
    outputs = core.convolve(inputs, kernel, EVERY_SPEC[0])
    saved = [tensor.data_ptr() for tensor in outputs.grad_fn.saved_tensors]
    assert saved == [inputs.data_ptr(), kernel.data_ptr()]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The passes that the core has run in this test."""
    passes: list[int] = []
    run = convolution.run

    def record(pass_: int, *arguments: Any, **options: Any) -> None:
        passes.append(pass_)
        run(pass_, *arguments, **options)

    monkeypatch.setattr(convolution, "run", record)
    return passes


def test_only_wanted_gradients_are_computed(ran: list[int]) -> None:
    spec = EVERY_SPEC[0]
    for frozen, pass_ in ((0, convolution.KERNEL_GRADIENT), (1, convolution.INPUT_GRADIENT)):
        inputs, kernel, gradient = leaves(spec)
        (inputs, kernel)[frozen].requires_grad_(False)
        core.convolve(inputs, kernel, spec).backward(gradient)
        assert ran == [convolution.FORWARD, pass_]
        ran.clear()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype: str) -> None:
    spec = ConvSpec.of((2, 9, 10, 32), (3, 3, 4, 32), 8, dtype=dtype)
    arguments = leaves(spec, getattr(torch, dtype))
    wide = [tensor.detach().float() for tensor in arguments]
    exact = passes(core.convolve, EVERY_SPEC[3], wide[0].requires_grad_(), wide[1].requires_grad_(), wide[2])
    for actual, value in zip(passes(core.convolve, spec, *arguments), exact, strict=True):
        assert torch.equal(actual, value.to(getattr(torch, dtype)))


def test_double_precision_is_not_lost_silently() -> None:
    inputs, kernel, _ = leaves(EVERY_SPEC[0], torch.float64)
    with pytest.raises(ValueError, match=r"inputs of type torch.float64: must be one of"):
        core.convolve(inputs, kernel, EVERY_SPEC[0])


def test_empty_batch() -> None:
    spec = ConvSpec.of((0, 9, 10, 32), (3, 3, 4, 32), 8)
    outputs, to_inputs, to_kernel = passes(core.convolve, spec, *leaves(spec))
    assert (outputs.shape, to_inputs.shape) == ((0, 9, 10, 32), (0, 9, 10, 32))
    assert not to_kernel.any()


@pytest.mark.parametrize("pass_", convolution.PASSES)
@pytest.mark.parametrize("spec", ONE_EACH)
def test_opcheck(spec: ConvSpec, pass_: int) -> None:
    tensors = leaves(spec)
    arguments = [tensors[role].detach().requires_grad_() for role in convolution.ROLES[pass_][:2]]
    operation = (
        torch.ops.groupwise.convolve,
        torch.ops.groupwise.input_gradient,
        torch.ops.groupwise.kernel_gradient,
    )[pass_]
    results = torch.library.opcheck(operation.default, (*arguments, list(convolution.sizes(spec))))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("spec", ONE_EACH)
def test_operations_refuse_tensors_that_are_not_of_the_sizes(spec: ConvSpec) -> None:
    inputs, kernel, gradient = (tensor.detach() for tensor in leaves(spec))
    sizes = convolution.sizes(spec)
    for operation, arguments, message in (
        (torch.ops.groupwise.convolve, (inputs[:, 1:], kernel), "groupwise::convolve: a of shape"),
        (torch.ops.groupwise.convolve, (inputs, kernel.double()), "groupwise::convolve: b of .* type torch.float64"),
        (torch.ops.groupwise.input_gradient, (gradient[:1], kernel), "groupwise::input_gradient: a of shape"),
        (torch.ops.groupwise.kernel_gradient, (inputs, gradient[..., 1:]), "groupwise::kernel_gradient: b of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            operation(*arguments, sizes)


def second_order(convolve: Any, spec: ConvSpec, inputs: Any, kernel: Any, gradient: Any) -> list[Any]:
    """Return what differentiates both gradients: the derivatives of a sum of their squares, by all three tensors."""
    gradient.requires_grad_()
    outputs = convolve(inputs, kernel, spec)
    first = torch.autograd.grad(torch.sin(outputs), (inputs, kernel), gradient, create_graph=True)
    return list(torch.autograd.grad(sum((part**2).sum() for part in first), (inputs, kernel, gradient)))


@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_second_order_agrees_with_pytorch_in_float64(spec: ConvSpec) -> None:
    results = second_order(core.convolve, spec, *leaves(spec))
    exact = second_order(stock.convolve, spec, *leaves(spec, torch.float64))
    for actual, value in zip(results, exact, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


@pytest.mark.parametrize("spec", ONE_EACH)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_a_whole_graph(spec: ConvSpec, dynamic: bool) -> None:
    """Forward and backward, as routing would call it: the spec is made, and the core asked for, while it is traced."""
    options = (spec.groups, spec.strides, spec.padding, spec.dilation_rate)

    def run(inputs: Any, kernel: Any, _: ConvSpec) -> Any:
        traced = ConvSpec.of(tuple(inputs.shape), tuple(kernel.shape), *options)
        convolve = core.convolve if core.is_available() else stock.convolve
        return torch.relu(convolve(inputs, kernel, traced))

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 4):
        other = ConvSpec.of((batch, *spec.input_shape[1:]), spec.kernel_shape, *options)
        eager = passes(run, other, *leaves(other))
        for actual, value in zip(passes(compiled, other, *leaves(other)), eager, strict=True):
            assert torch.equal(actual, value)


@pytest.mark.parametrize("spec", ONE_EACH)
def test_exports(spec: ConvSpec) -> None:
    class Model(torch.nn.Module):
        def forward(self, inputs: Any, kernel: Any) -> Any:
            return core.convolve(inputs, kernel, spec)

    inputs, kernel = (tensor.detach() for tensor in leaves(spec)[:2])
    exported = torch.export.export(Model(), (inputs, kernel))
    assert any(node.target is torch.ops.groupwise.convolve.default for node in exported.graph.nodes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(inputs, kernel), core.convolve(inputs, kernel, spec))


def with_epilogue(convolve: Any, activation: str) -> Any:
    """Return `convolve` with a bias, a residual and an activation after it; both extras depend on its arguments."""

    def run(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
        bias = torch.linspace(-1, 1, spec.out_channels, dtype=inputs.dtype)
        residual = kernel.mean() + inputs.mean() * torch.ones(
            convolution.shapes(convolution.sizes(spec))[2], dtype=inputs.dtype
        )
        if convolve is core.convolve:
            return core.convolve(inputs, kernel, spec, bias * kernel.mean(), residual, activation)
        outputs = convolve(inputs, kernel, spec) + bias * kernel.mean() + residual
        return FUNCTIONS[activation](outputs)

    return run


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spec", ONE_EACH)
def test_second_order_with_an_epilogue(spec: ConvSpec, activation: str) -> None:
    results = second_order(with_epilogue(core.convolve, activation), spec, *leaves(spec))
    exact = second_order(with_epilogue(stock.convolve, activation), spec, *leaves(spec, torch.float64))
    for actual, value in zip(results, exact, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spec", ONE_EACH)
def test_opcheck_of_the_epilogue(spec: ConvSpec, activation: str) -> None:
    inputs, kernel, residual = (tensor.detach() for tensor in leaves(spec))
    bias, sizes = torch.linspace(-1, 1, spec.out_channels), list(convolution.sizes(spec))
    for extras in ((bias, residual), (None, residual), (bias, None), (None, None)):
        arguments = [t if t is None else t.clone().requires_grad_() for t in (inputs, kernel, *extras)]
        results = torch.library.opcheck(torch.ops.groupwise.fused_convolve.default, (*arguments, activation, sizes))
        assert set(results.values()) == {"SUCCESS"}


def test_an_epilogue_that_does_not_fit_is_refused() -> None:
    spec = EVERY_SPEC[3]
    inputs, kernel, residual = (tensor.detach() for tensor in leaves(spec))
    bias = torch.ones(spec.out_channels)
    for options, message in (
        ({"bias": bias[1:]}, "groupwise::fused_convolve: bias of shape"),
        ({"residual": residual[:1]}, "groupwise::fused_convolve: residual of shape"),
        ({"residual": residual.double()}, "residual of type torch.float64: must be one of"),
        ({"activation": "gelu"}, "activation='gelu': must be one of linear, relu, relu6"),
    ):
        with pytest.raises(ValueError, match=message):
            core.convolve(inputs, kernel, spec, **options)


def test_only_wanted_gradients_of_an_epilogue_are_computed(ran: list[int]) -> None:
    spec = EVERY_SPEC[0]
    inputs, kernel, gradient = leaves(spec)
    bias = torch.ones(spec.out_channels, requires_grad=True)
    core.convolve(inputs.detach(), kernel.detach(), spec, bias, activation="relu").backward(gradient)
    assert ran == [convolution.FORWARD]


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_epilogue_compiles_as_a_whole_graph(dynamic: bool) -> None:
    spec = EVERY_SPEC[3]
    options = (spec.groups, spec.strides, spec.padding, spec.dilation_rate)
    run = with_epilogue(core.convolve, "relu6")
    traced = lambda x, w, _: run(x, w, ConvSpec.of(tuple(x.shape), tuple(w.shape), *options))  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 4):
        other = ConvSpec.of((batch, *spec.input_shape[1:]), spec.kernel_shape, *options)
        eager = passes(run, other, *leaves(other))
        for actual, value in zip(passes(compiled, other, *leaves(other)), eager, strict=True):
            torch.testing.assert_close(actual, value)


def test_many_python_threads_at_once() -> None:
    def run(spec: ConvSpec) -> list[Any]:
        return passes(core.convolve, spec, *leaves(spec))

    alone = [run(spec) for spec in EVERY_SPEC]
    with ThreadPoolExecutor(8) as pool:
        for results, again in zip(pool.map(run, EVERY_SPEC * 10), alone * 10, strict=True):
            assert all(torch.equal(actual, value) for actual, value in zip(results, again, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's runtime, and on the core's own threads where there is none: right, and the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for spec in EVERY_SPEC:
            results = passes(core.convolve, spec, *leaves(spec))
            for pass_, result in zip(convolution.PASSES, results, strict=True):
                near(result.numpy(), *expected(pass_, spec, random_arrays(spec)), PASS_NAMES[pass_])
            with monkeypatch.context() as patch:
                patch.setattr(operations, "_openmp_parallel", lambda: None)
                again = passes(core.convolve, spec, *leaves(spec))
            assert all(torch.equal(actual, value) for actual, value in zip(results, again, strict=True))
    finally:
        torch.set_num_threads(before)


def fresh(code: str) -> str:
    """Run `code` in a fresh process that has two threads and a convolution to `run`; return what it prints."""
    before = """
import os, signal, torch
from groupwise.backends.torch import core
from groupwise.spec import ConvSpec
torch.set_num_threads(2)
spec = ConvSpec.of((4, 20, 20, 32), (3, 3, 4, 32), 8)
x = torch.ones(spec.input_shape, requires_grad=True)
w = torch.ones(spec.kernel_shape, requires_grad=True)
def run():
    y = core.convolve(x, w, spec)
    return [y.detach(), *torch.autograd.grad(y.sum(), (x, w))]
def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second))
def used():
    pages, threads = open("/proc/self/statm").read().split()[1], len(os.listdir("/proc/self/task"))
    return int(pages) * os.sysconf("SC_PAGESIZE"), threads
"""
    command = [sys.executable, "-W", "ignore", "-c", before + code]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=180)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_forked_child_computes_too() -> None:
    """PyTorch's threads are the parent's alone: its own operations wait for them forever in the child."""
    code = """
before = run()
child = os.fork()
if child == 0:
    signal.alarm(60)
    y = core.convolve(x.detach(), w.detach(), spec)
    os._exit(0 if (y.numpy() == before[0].numpy()).all() else 1)
print(os.waitpid(child, 0)[1], equal(run(), before))
"""
    assert fresh(code) == "0 True\n"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads and memory are read from Linux's /proc")
@pytest.mark.skipif(operations._openmp_parallel() is None, reason="PyTorch runs on no OpenMP that can be called")
def test_a_thousand_calls_start_no_thread_and_keep_no_memory() -> None:
    """PyTorch's own threads run them: once it has started these, the core starts none."""
    code = """
big = torch.ones(1 << 22)
(big + big).sum()
before = used()[1]
for _ in range(50): run()
first = used()
for _ in range(334): run()
after = used()
print(before, first[1], after[1], after[0] - first[0])
"""
    before, first, after, grown = map(int, fresh(code).split())
    assert before > 1
    assert before == first == after
    # A run is three calls; its outputs are 200 kB: one kept in a hundred would be 2 MB.
    assert grown < 1 << 20


def test_the_numbers_are_numpys() -> None:
    """One core: through NumPy and through PyTorch, the same bits on as many threads."""
    spec = EVERY_SPEC[4]
    arrays = random_arrays(spec)
    library.load().gw_set_threads(torch.get_num_threads())
    try:
        through_numpy = convolution.convolve(convolution.FORWARD, spec, arrays[0], arrays[1])
    finally:
        library.load().gw_set_threads(0)
    through_torch = core.convolve(torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), spec)
    assert np.array_equal(through_numpy, through_torch.numpy())
