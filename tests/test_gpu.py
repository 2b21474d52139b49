"""What is otherwise on a GPU, where none is at hand: the frameworks' answers are played."""

import importlib
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends, layers, ops
from groupwise.routing import Accelerator, Runtime, explain
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND

SPEC = ConvSpec.of((16, 56, 56, 128), (3, 3, 4, 128), groups=32)
CARD = Accelerator("NVIDIA H200", has_bfloat16=True)
REASON = 'algorithm="core": .*on a gpu .NVIDIA H200.; choose "auto" or "native"'


@pytest.fixture
def devices() -> Any:
    """The framework's module on its devices."""
    return importlib.import_module(f"groupwise.backends.{BACKEND}.devices")


@pytest.fixture
def _on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is computed seem to be on a card."""
    runtime = Runtime(BACKEND, "gpu", accelerator=CARD)
    monkeypatch.setattr(backends.active, "runtime", lambda inputs=None: runtime)


@pytest.mark.once
def test_the_routing_names_the_card_and_says_that_the_core_is_for_cpus() -> None:
    text = str(explain(SPEC, Runtime("torch", "gpu", accelerator=CARD)))
    assert "torch on gpu (NVIDIA H200)" in text
    assert "passed over  core: it computes on CPUs, not on a gpu (NVIDIA H200)" in text
    assert "runs         native" in text
    assert "torch on gpu\n" in str(explain(SPEC, Runtime("torch", "gpu")))


@pytest.mark.usefixtures("_on_a_card")
def test_the_core_asked_for_on_a_card_is_an_error() -> None:
    inputs, kernel = np.ones((1, 4, 4, 2), "float32"), np.ones((3, 3, 1, 2), "float32")
    with pytest.raises(ValueError, match=REASON):
        ops.grouped_conv2d(inputs, kernel, 2, algorithm="core")
    with pytest.raises(ValueError, match=REASON):
        layers.GroupedConv2D(2, 3, groups=2, algorithm="core")(inputs)
    if backends.active.max_pool is not None:
        with pytest.raises(ValueError, match=REASON):
            layers.MaxPooling2D(2, algorithm="core")(inputs)


@pytest.mark.usefixtures("_on_a_card")
def test_layers_run_without_the_core_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.active.core, "convolve", None)
    monkeypatch.setattr(backends.active, "core_norm", None)
    model = keras.Sequential(
        [
            layers.GroupedConv2D(8, 3, groups=2, use_bias=False),
            layers.BatchNormalization(activation="relu"),
            layers.MaxPooling2D(2),
            layers.DepthwiseConv2D(3),
        ]
    )
    outputs = keras.ops.convert_to_numpy(model(np.ones((2, 8, 8, 4), "float32"), training=True))
    assert outputs.shape[0] == 2
    assert np.isfinite(outputs).all()


def test_a_cpu_is_no_accelerator() -> None:
    runtime = backends.active.runtime()
    if runtime.device != "cpu":
        pytest.skip("Keras runs on a GPU here")
    assert runtime.accelerator is None
    assert runtime.place == "cpu"


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's devices")
def test_a_card_in_pytorch(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert devices.accelerator(torch.device("cuda", 1)) == Accelerator("card cuda:1", has_bfloat16=True)
    assert devices.accelerator(torch.device("mps")) == Accelerator("mps")
    devices._card.cache_clear()


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's dispatcher")
def test_the_cores_operations_refuse_pytorchs_arrays_on_a_card(devices: Any) -> None:
    torch = importlib.import_module("torch")
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("groupwise::")}
    assert names
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names)
    with pytest.raises(ValueError, match="arrays on meta: the C core computes on CPUs"):
        devices.refuse(torch.ones(2, device="meta"), [1])


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's meta device")
def test_the_core_works_out_the_shapes_of_arrays_without_memory() -> None:
    torch = importlib.import_module("torch")
    if not backends.active.core.is_available():
        pytest.skip("the C core is not built here, or GROUPWISE_CORE is 0")
    inputs, kernel = torch.ones((1, 4, 4, 2), device="meta"), torch.ones((3, 3, 1, 2), device="meta")
    for algorithm in ("auto", "core"):
        assert ops.grouped_conv2d(inputs, kernel, 2, algorithm=algorithm).shape == (1, 4, 4, 2)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's devices")
@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"platform": "cpu"}, None),
        ({"platform": "gpu", "device_kind": "NVIDIA H200", "compute_capability": "9.0"}, CARD),
        ({"platform": "gpu", "device_kind": "Tesla V100", "compute_capability": "7.0"}, Accelerator("Tesla V100")),
        ({"platform": "gpu", "device_kind": "MI300", "compute_capability": "gfx942"}, Accelerator("MI300")),
        ({"platform": "tpu", "device_kind": "TPU v5"}, Accelerator("TPU v5", has_bfloat16=True)),
    ],
)
def test_a_card_in_jax(
    device: dict[str, str], expected: Accelerator | None, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        vars().update(device)

    monkeypatch.setattr(devices, "device_of", lambda inputs=None: Device)
    assert devices.accelerator(Device) == expected
    if expected is None:
        devices.check_on_cpu(None)
    else:
        with pytest.raises(ValueError, match=f"arrays on a {expected.name}: the C core computes on CPUs"):
            backends.active.core.convolve(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), SPEC)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's devices")
def test_where_jax_computes(devices: Any) -> None:
    jax = importlib.import_module("jax")
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        assert devices.device_of() == devices.device_of(jax.numpy.ones(2)) == cpu
    with jax.default_device("cpu"):
        assert devices.device_of() == cpu


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's devices")
@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"device_name": "NVIDIA H200", "compute_capability": (9, 0)}, CARD),
        ({"device_name": "Tesla V100", "compute_capability": (7, 0)}, Accelerator("Tesla V100")),
        ({}, Accelerator("GPU")),
    ],
)
def test_a_card_in_tensorflow(
    details: dict[str, Any], expected: Accelerator, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tf = importlib.import_module("tensorflow")
    seen = [SimpleNamespace(device_type="CPU"), SimpleNamespace(device_type="GPU")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: seen)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", {"GPU": details}.get)
    devices.accelerator.cache_clear()
    try:
        assert devices.accelerator() == expected
        with pytest.raises(ValueError, match=f"arrays on a {expected.name}: the C core computes on CPUs"):
            backends.active.core.convolve(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), SPEC)
    finally:
        devices.accelerator.cache_clear()
