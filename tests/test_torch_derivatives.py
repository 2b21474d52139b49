"""Every kind of derivative that PyTorch has, through the core's operations: those of PyTorch's own in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from groupwise.backends.plain_links import Reading
from groupwise.core import library, pooling
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND

if BACKEND != "torch":
    pytest.skip("the transformations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from groupwise.backends.torch import core, norm
from groupwise.backends.torch import native as backend

# PyTorch's own, of some of its tangents.
EPSILON = 1e-3


def strided(x: Any, w: Any) -> ConvSpec:
    return ConvSpec.of(x.shape, w.shape, 2, (1, 2))


def convolution(x: Any, w: Any) -> Any:
    return core.convolve(x, w, strided(x, w))


def plain_convolution(x: Any, w: Any) -> Any:
    return backend.convolve(x, w, strided(x, w))


def fused(x: Any, w: Any, bias: Any, residual: Any, activation: str = "relu6") -> Any:
    return core.convolve(x, w, strided(x, w), bias, residual, activation)


def plain_fused(x: Any, w: Any, bias: Any, residual: Any, activation: Any = functional.relu6) -> Any:
    return activation(plain_convolution(x, w) + bias + residual)


def link(x: Any, w: Any, mean: Any, scale: Any, shift: Any) -> Any:
    """Return a link's outputs and statistics, flat."""
    reading = Reading(mean, scale, shift, "silu")
    return torch.cat([part.flatten() for part in core.link(x, w, strided(x, w), reading, counts=True)])


def plain_link(x: Any, w: Any, mean: Any, scale: Any, shift: Any) -> Any:
    seen = (x - mean) * scale + shift
    y = plain_convolution(seen * torch.sigmoid(seen), w)
    return torch.cat([y.flatten(), y.mean((0, 1, 2)), y.var((0, 1, 2), correction=0)])


def counted(x: Any, w: Any) -> Any:
    """Return the statistics of a link that reads its inputs as they are."""
    return torch.cat(core.link(x, w, strided(x, w), counts=True)[1:])


def plain_counted(x: Any, w: Any) -> Any:
    y = plain_convolution(x, w)
    return torch.cat([y.mean((0, 1, 2)), y.var((0, 1, 2), correction=0)])


def maxima(x: Any) -> Any:
    return backend.max_pool(x, pooling.window(x.shape, (3, 3), (2, 2), ((1, 1), (1, 1))))


def plain_maxima(x: Any) -> Any:
    return functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)


def trained(x: Any, gamma: Any, beta: Any, residual: Any = None, activation: str = "relu") -> Any:
    return norm.normalise(x, gamma, beta, None, EPSILON, residual, activation)[0]


def plain_trained(x: Any, gamma: Any, beta: Any, residual: Any = 0, activation: Any = torch.relu) -> Any:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    return activation((x - mean) / torch.sqrt(variance + EPSILON) * gamma + beta + residual)


def inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any) -> Any:
    return norm.normalise(x, gamma, beta, (mean, deviation**2), EPSILON, None, "relu6")[0]


def plain_inferred(x: Any, gamma: Any, beta: Any, mean: Any, deviation: Any) -> Any:
    return functional.relu6((x - mean) / torch.sqrt(deviation**2 + EPSILON) * gamma + beta)


def uncored(x: Any, gamma: Any, beta: Any) -> Any:
    """What normalises where there is no core."""
    return torch.relu(backend.batch_normalise(x, gamma, beta, None, EPSILON)[0])


IMAGE, KERNEL, CHANNELS = (2, 3, 4, 4), (3, 2, 2, 6), (4,)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "convolution": (convolution, plain_convolution, (IMAGE, KERNEL)),
    "fused": (fused, plain_fused, (IMAGE, KERNEL, (6,), (2, 3, 2, 6))),
    "link": (link, plain_link, (IMAGE, KERNEL, *[CHANNELS] * 3)),
    "link, counted": (counted, plain_counted, (IMAGE, KERNEL)),
    "maxima": (maxima, plain_maxima, (IMAGE,)),
    "trained": (trained, plain_trained, (IMAGE, CHANNELS, CHANNELS)),
    "trained with residual": (trained, plain_trained, (IMAGE, CHANNELS, CHANNELS, IMAGE)),
    "without core": (uncored, plain_trained, (IMAGE, CHANNELS, CHANNELS)),
    "inferred": (inferred, plain_inferred, (IMAGE, *[CHANNELS] * 4)),
}
for name, function in (("silu", lambda y: y * torch.sigmoid(y)), ("hard_swish", functional.hardswish)):
    for case in ("fused", "trained", "trained with residual"):
        ours, plain, shapes = CASES[case]
        CASES[f"{case}, {name}"] = partial(ours, activation=name), partial(plain, activation=function), shapes
every_case = pytest.mark.parametrize("case", CASES)


def arrays(case: str, seed: int = 0, dtype: Any = torch.float32) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    return tuple(torch.from_numpy(random.normal(size=shape)).to(dtype) for shape in CASES[case][2])


def total(function: Any) -> Any:
    """Return a function whose gradient differs at every output."""
    return lambda *arguments: torch.sin(function(*arguments)).sum()


def every(function: Any) -> Any:
    """Return the gradient of `total` to every argument."""
    return lambda *arguments: grad(total(function), tuple(range(len(arguments))))(*arguments)


def duals(function: Any, arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
    with torch.no_grad(), forward_ad.dual_level():
        given = [forward_ad.make_dual(*pair) for pair in zip(arguments, tangents, strict=True)]
        return forward_ad.unpack_dual(function(*given)).tangent


def differentiated_duals(function: Any, arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the gradient of the tangents, and the tangents of the gradient."""
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(*pair) for pair in zip(leaves, tangents, strict=True)]
        outputs = torch.sin(function(*given))
        first = torch.autograd.grad(outputs.sum(), leaves, create_graph=True)
        tangent = forward_ad.unpack_dual(outputs).tangent
        return torch.autograd.grad(tangent.sum(), leaves), [forward_ad.unpack_dual(part).tangent for part in first]


def batched_gradients(function: Any, arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    outputs = function(*leaves)
    many = torch.stack([outputs.detach(), torch.ones_like(outputs)])
    return torch.autograd.grad(outputs, leaves, many, is_grads_batched=True)


def mapped(function: Any, axes: Any, **options: Any) -> Any:
    """Return a transformation: `function` mapped over several of the arguments that have an axis."""

    def run(transformed: Any, arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
        dims = tuple(axes(position) for position in range(len(arguments)))
        pairs = zip(arguments, tangents, dims, strict=True)
        given = [a if dim is None else torch.stack([a, t, a - t], dim) for a, t, dim in pairs]
        return vmap(function(transformed), dims, **options)(*given)

    return run


def one(transformed: Any) -> Any:
    return transformed


TRANSFORMATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "grad": lambda f, x, t: every(f)(*x),
    "jvp": lambda f, x, t: jvp(f, x, t),
    "jvp of the last": lambda f, x, t: jvp(lambda last: f(*x[:-1], last), x[-1:], t[-1:]),
    "duals": duals,
    "forward over reverse": lambda f, x, t: jvp(every(f), x, t),
    "reverse over forward": lambda f, x, t: every(lambda *x: jvp(f, x, t)[1])(*x),
    "reverse over reverse": lambda f, x, t: every(lambda *x: sum(part.sum() ** 2 for part in every(f)(*x)))(*x),
    "forward over forward": lambda f, x, t: jvp(lambda *x: jvp(f, x, t)[1], x, t),
    "forward over forward over reverse": lambda f, x, t: jvp(lambda *x: jvp(every(f), x, t)[1], x, t),
    "duals, differentiated": differentiated_duals,
    "jacfwd": lambda f, x, t: jacfwd(f, tuple(range(len(x))))(*x),
    "jacrev": lambda f, x, t: jacrev(f, tuple(range(len(x))), chunk_size=5)(*x),
    "hessian": lambda f, x, t: hessian(total(f), len(x) - 1)(*x),
    "hvp": lambda f, x, t: torch.autograd.functional.hvp(total(f), x, t),
    "batched gradients": batched_gradients,
    "vmap of the first": mapped(one, lambda position: None if position else 0),
    "vmap of the others": mapped(one, lambda position: None if position == 1 else 0),
    "vmap of all": mapped(one, lambda position: -1, out_dims=1),
    "vmap of vmap": mapped(lambda f: lambda *x: mapped(every, lambda _: 0)(f, x, x), lambda _: 0),
    "gradients of each": mapped(every, lambda position: None if position else 0, chunk_size=2),
    "gradient of vmap": lambda f, x, t: every(lambda *x: mapped(one, lambda _: 0)(f, x, t))(*x),
    "jvp of vmap": lambda f, x, t: jvp(lambda *x: mapped(one, lambda _: 0)(f, x, t), x, t)[1],
    "vmap of jvp": mapped(lambda f: lambda *x: jvp(f, x, x)[1], lambda _: 0),
}


def close(actual: Any, wanted: Any) -> None:
    pairs = [[leaf.detach().double() for leaf in tree_leaves(tree)] for tree in (actual, wanted)]
    size = max(float(value.abs().max()) for value in pairs[1])
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * size)


@every_case
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name: str, case: str) -> None:
    function, plain, _ = CASES[case]
    run = TRANSFORMATIONS[name]
    wanted = run(plain, arrays(case, 0, torch.float64), arrays(case, 1, torch.float64))
    close(run(function, arrays(case), arrays(case, 1)), wanted)


@pytest.mark.parametrize("case", ["fused", "link", "maxima", "trained"])
@pytest.mark.parametrize("name", ["hessian", "gradients of each"])
def test_transformations_compile_as_a_whole_graph(name: str, case: str) -> None:
    function, plain, _ = CASES[case]
    run = TRANSFORMATIONS[name]
    torch.compiler.reset()
    compiled = torch.compile(lambda x, t: run(function, x, t), fullgraph=True, backend="aot_eager")
    wanted = run(plain, arrays(case, 0, torch.float64), arrays(case, 1, torch.float64))
    close(compiled(arrays(case), arrays(case, 1)), wanted)


def test_tangents_of_half_precision_are_of_its_type() -> None:
    x, gamma, beta = arrays("without core")
    normalise = lambda x: backend.batch_normalise(x, gamma, beta, None, EPSILON)[0]  # noqa: E731
    outputs, tangent = jvp(normalise, (x.bfloat16(),), (beta.bfloat16().expand_as(x),))
    assert outputs.dtype == tangent.dtype == torch.bfloat16
