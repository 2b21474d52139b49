"""Which algorithm runs what, and why: the lists for every framework, whichever one is active."""

from dataclasses import replace

import pytest

import groupwise
from groupwise.ops.algorithms import ALGORITHMS
from groupwise.routing import Runtime, explain
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND

STAGE = ConvSpec.of((16, 56, 56, 128), (3, 3, 4, 128), groups=32)
POINTWISE = ConvSpec.of((16, 56, 56, 64), (1, 1, 64, 256), groups=1)
WIDE = ConvSpec.of((16, 14, 14, 512), (3, 3, 16, 512), groups=32)
DEPTHWISE = ConvSpec.of((16, 14, 14, 512), (3, 3, 1, 512), groups=512)
DENSE = ConvSpec.of((16, 56, 56, 64), (3, 3, 64, 64), groups=1)
WITHOUT_ONEDNN = Runtime("tensorflow", "cpu", grouped_gradients=frozenset())


@pytest.mark.once
@pytest.mark.parametrize(
    ("runtime", "spec", "algorithm"),
    [
        (Runtime("tensorflow", "cpu"), STAGE, "native"),
        (WITHOUT_ONEDNN, STAGE, "blocks"),
        (WITHOUT_ONEDNN, DENSE, "native"),
        (replace(WITHOUT_ONEDNN, core=True), replace(STAGE, dtype="bfloat16"), "core"),
        (replace(WITHOUT_ONEDNN, core=True), replace(STAGE, dtype="float64"), "blocks"),
        (Runtime("tensorflow", "cpu", frozenset({"float32"}), core=True), replace(STAGE, dtype="float16"), "core"),
        (Runtime("tensorflow", "cpu", core=True), replace(STAGE, dtype="float16"), "native"),
        (Runtime("tensorflow", "gpu"), STAGE, "native"),
        (Runtime("jax", "cpu"), STAGE, "blocks"),
        (Runtime("jax", "cpu"), POINTWISE, "matmul"),
        (Runtime("jax", "cpu"), DEPTHWISE, "shifted_sum"),
        (Runtime("jax", "cpu"), DENSE, "native"),
        (Runtime("jax", "gpu"), STAGE, "native"),
        (Runtime("torch", "cpu"), STAGE, "native"),
        *((Runtime(framework, "cpu", core=True), STAGE, "core") for framework in ("tensorflow", "jax", "torch")),
        *(
            (Runtime(framework, "cpu", core=True), spec, "core")
            for framework in ("tensorflow", "jax", "torch")
            for spec in (DEPTHWISE, WIDE, DENSE)
        ),
        (Runtime("torch", "cpu", core=True), replace(STAGE, dtype="bfloat16"), "native"),
        (Runtime("jax", "cpu", core=True), replace(STAGE, dtype="bfloat16"), "core"),
        (Runtime("jax", "cpu", core=True), replace(STAGE, dtype="float64"), "blocks"),
    ],
)
def test_the_first_row_without_objection_runs(runtime: Runtime, spec: ConvSpec, algorithm: str) -> None:
    routing = explain(spec, runtime)
    assert routing.algorithm == algorithm
    assert algorithm in ALGORITHMS
    assert routing.reason in str(routing)
    for name, objection in routing.passed_over:
        assert name in ALGORITHMS
        assert objection in str(routing)


@pytest.mark.once
def test_a_depthwise_convolution_of_unknown_size_still_runs_on_jax() -> None:
    spec = ConvSpec.of((None, None, None, 8), (3, 3, 1, 8), groups=8, strides=2)
    routing = explain(spec, Runtime("jax", "cpu"))
    assert routing.algorithm == "blocks"
    assert ("shifted_sum", "the image's size is not known") in routing.passed_over


def test_explain_routing_names_this_framework() -> None:
    routing = groupwise.explain_routing((16, 56, 56, 128), (3, 3, 4, 128), groups=32)
    assert routing.runtime.framework == BACKEND
    assert "32 groups of 4" in str(routing)
    with pytest.raises(ValueError, match="groups=5"):
        groupwise.explain_routing((16, 56, 56, 128), (3, 3, 4, 128), groups=5)


@pytest.mark.once
def test_macs_and_shapes_by_hand() -> None:
    assert STAGE.macs == 56 * 56 * 128 * 9 * 4
    assert STAGE.output_shape == (16, 56, 56, 128)
    strided = ConvSpec.of((1, 224, 224, 3), (7, 7, 3, 64), 1, 2, ((3, 3), (3, 3)))
    assert strided.output_shape == (1, 112, 112, 64)
    assert ConvSpec.of((1, 224, 224, 3), (7, 7, 3, 64), 1, 2).explicit_padding == ((2, 3), (2, 3))
    assert ConvSpec.of((1, None, 8, 3), (3, 3, 3, 4), 1, 2).output_shape == (1, None, 4, 4)
    with pytest.raises(ValueError, match="must be known"):
        ConvSpec.of((1, None, 8, 3), (3, 3, 3, 4), 1).macs  # noqa: B018
