"""Links as PyTorch's operations: as it registers its own, compiled, and what they keep for the gradients."""

from typing import Any

import pytest

from groupwise.backends.plain_links import Reading
from groupwise.core import convolution, library
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND
from tests.links import READING, UPSTREAM, arrays_of
from tests.passes import SPECS

if BACKEND != "torch":
    pytest.skip("the operations are PyTorch's; the backend is another", allow_module_level=True)
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

import torch

from groupwise.backends.torch import core

SPEC = SPECS["narrow"][1]
forms = pytest.mark.parametrize(("reads", "counts"), [(True, True), (True, False), (False, True)])


def tensors_of(reads: bool, counts: bool) -> dict[str, Any]:
    """Return the arguments, which want gradients, and the gradients to the results."""
    arrays = arrays_of(SPEC, "relu" if reads else None, counts)
    return {name: torch.from_numpy(a).requires_grad_(name not in UPSTREAM) for name, a in arrays.items()}


def run(tensors: dict[str, Any], spec: ConvSpec = SPEC) -> list[Any]:
    reads, counts = "mean" in tensors, "to_mean" in tensors
    reading = Reading(*(tensors[name] for name in READING), "relu") if reads else None  # type: ignore[call-arg]
    results = core.link(tensors["inputs"], tensors["kernel"], spec, reading, counts)
    return [result for result in results if result is not None]


def gradients(function: Any, tensors: dict[str, Any]) -> list[Any]:
    wanted = [tensor for name, tensor in tensors.items() if name not in UPSTREAM]
    return list(torch.autograd.grad(function(tensors), wanted, [t for n, t in tensors.items() if n in UPSTREAM]))


@forms
def test_opcheck(reads: bool, counts: bool) -> None:
    tensors, sizes = tensors_of(reads, counts), list(convolution.sizes(SPEC))
    arguments = [tensors.get(name) for name in ("inputs", "kernel", *READING)]
    results = torch.library.opcheck(torch.ops.groupwise.link.default, (*arguments, "relu", counts, sizes))
    assert set(results.values()) == {"SUCCESS"}
    given = [tensors["to_outputs"], *arguments]
    given += [t.detach() for t in (*run(tensors)[:2], *run(tensors)[1:])] if counts else [None] * 4
    for operation in (torch.ops.groupwise.link_input_gradient, torch.ops.groupwise.link_kernel_gradient):
        results = torch.library.opcheck(operation.default, (*given, "relu", sizes))
        assert set(results.values()) == {"SUCCESS"}


@forms
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_a_whole_graph(reads: bool, counts: bool, dynamic: bool) -> None:
    def traced(tensors: dict[str, Any]) -> list[Any]:
        options = SPEC.groups, SPEC.strides, SPEC.padding, SPEC.dilation_rate
        return run(tensors, ConvSpec.of(tensors["inputs"].shape, SPEC.kernel_shape, *options))

    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    pairs = [gradients(function, tensors_of(reads, counts)) for function in (run, compiled)]
    assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))


@forms
def test_no_image_is_kept_but_inputs_and_what_was_counted(reads: bool, counts: bool) -> None:
    kept: list[Any] = []
    tensors = tensors_of(reads, counts)

    def keep(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs, *_ = run(tensors)
    images = {tensor.data_ptr() for tensor in kept if tensor.ndim == 4}
    assert images == {tensors["inputs"].data_ptr(), tensors["kernel"].data_ptr(), *([outputs.data_ptr()] * counts)}


@pytest.mark.parametrize("wanted", ["inputs", "kernel", "shift"])
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_only_what_is_wanted_is_computed_of_what_there_is(wanted: str, upstream: str) -> None:
    tensors = tensors_of(True, True)
    both = [run(tensors)[UPSTREAM.index(upstream)], tensors[upstream]]
    (every,) = torch.autograd.grad(both[0], tensors[wanted], both[1], retain_graph=True)
    alone = {name: tensor.detach().requires_grad_(name == wanted) for name, tensor in tensors.items()}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (one,) = torch.autograd.grad(run(alone)[UPSTREAM.index(upstream)], alone[wanted], both[1])
    assert torch.equal(one, every)
    ran = {event.key for event in profile.key_averages() if event.key.startswith("groupwise::link_")}
    assert ran == {f"groupwise::link_{'kernel' if wanted == 'kernel' else 'input'}_gradient"}


def test_wrong_arguments_are_named() -> None:
    tensors = {name: tensor.detach() for name, tensor in tensors_of(True, True).items()}
    for change, message in (
        ({"kernel": tensors["kernel"].double()}, "kernel of shape .* type torch.float64"),
        ({"shift": tensors["shift"][:2]}, r"shift of shape \(2,\)"),
        ({"inputs": tensors["inputs"][:1]}, r"inputs of shape \(1, 11, 8, 15\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run({**tensors, **change})
