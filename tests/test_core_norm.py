"""Batch norm in the C core, through `norm.normalize`, against the definition in float64."""

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from groupwise.core import epilogues, library, norm
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.core.norm import GRADIENT, GRADIENT_SUMS, MOMENTS, NORMALIZE
from tests.activations import TRUTH
from tests.normalizations import EPSILON, random_arrays, truth

pytestmark = pytest.mark.once
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

GUARD = 16  # floats before and behind each array
SHAPES = [(1, 1, 1, 1), (2, 1, 1, 8), (3, 5, 7, 3), (2, 9, 4, 16), (5, 7, 7, 24), (3, 5, 5, 58), (1, 7, 7, 1553)]
LARGE = [(1 << 16, 20), (700, 1000), (40000, 3)]  # several blocks and tasks; streaming stores
CASES = list(itertools.product(ACTIVATIONS, (False, True)))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = library.instruction_set()
    yield
    library.use_instruction_set(before)
    library.load().gw_set_threads(0)


def sets() -> list[str]:
    return [name for name in library.instruction_sets() if library.use_instruction_set(name)]


def guarded(shape: tuple[int, ...], offset: int, values: Any = np.nan) -> np.ndarray:
    """Return an array `offset` floats past an aligned address, with guards around it."""
    count = int(np.prod(shape))
    memory = np.full(count + 2 * GUARD, 7, "float32")
    array = memory[GUARD + offset :][:count].reshape(shape)
    array[...] = values
    return array


def untouched(array: np.ndarray) -> bool:
    """Return whether nothing but the array was written."""
    memory: Any = array
    while memory.base is not None:
        memory = memory.base
    return int(np.count_nonzero(memory == 7)) >= 2 * GUARD


def every_pass(arrays: dict[str, Any], activation: str, residual: bool, offset: int = 0, **extra: Any) -> dict:
    """Return what all passes wrote over poisoned memory."""
    shape = arrays["inputs"].shape
    given = {name: guarded(array.shape, offset, array) for name, array in arrays.items()}
    if not residual:
        del given["residual"]
    written = {name: guarded(shape, offset) for name in ("outputs", "inputs_gradient")}
    written |= {name: guarded(shape[-1:], offset) for name in ("mean", "variance")}
    written["sums"] = guarded((2, shape[-1]), offset)
    if residual:
        written["residual_gradient"] = guarded(shape, offset)
    options: dict[str, Any] = {"activation": activation, "epsilon": EPSILON, **extra}
    norm.normalize(MOMENTS | NORMALIZE, **given, **written, **options)
    if not residual:
        # Nothing but the inputs tells then what passed the activation.
        backward = {name: array for name, array in {**given, **written}.items() if name != "outputs"}
    else:
        backward = {**given, **written}
    norm.normalize(GRADIENT_SUMS | GRADIENT, **backward, **options)
    assert all(map(untouched, written.values()))
    return written


def check(results: dict[str, Any], exact: dict[str, Any], arrays: dict[str, Any], activation: str = "relu") -> None:
    """Compare every result with the truth, up to what float32 loses; sums by the size of what they sum."""
    near_edge = np.minimum(abs(exact["outputs"]), abs(exact["outputs"] - 6)) < 1e-4
    gradient_size = abs(arrays["gradient"].astype("float64"))
    scale = abs(arrays["gamma"]) / np.sqrt(exact["variance"] + EPSILON)
    sizes = {
        "mean": 1e-6 * abs(arrays["inputs"]).max(initial=0) + 0 * exact["mean"],
        "variance": 1e-5 * exact["variance"] + 1e-9,
        "outputs": 1e-5 * (abs(exact["outputs"]) + scale * abs(arrays["inputs"]) + 10),
        "sums": 1e-5 * gradient_size.sum(tuple(range(gradient_size.ndim - 1))) * 5 + 1e-4,
        "residual_gradient": (0 if activation in ("linear", "relu", "relu6") else 1e-5) * gradient_size,
        "inputs_gradient": 2e-5 * (scale * (gradient_size + 10)),
    }
    for name, result in results.items():
        error = abs(result.astype("float64") - exact[name])
        if name in ("residual_gradient", "inputs_gradient") and len(near_edge):
            error = np.where(near_edge, 0, error)
        assert result.shape == exact[name].shape
        assert (error <= sizes[name]).all(), f"{name}: off by {error.max()}"


@pytest.mark.parametrize(("activation", "residual"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pass_agrees_with_the_definition(shape: tuple[int, ...], activation: str, residual: bool) -> None:
    arrays = random_arrays(shape)
    exact = truth(arrays, activation, residual)
    for name in sets():
        library.use_instruction_set(name)
        for offset in (0, 1):
            check(every_pass(arrays, activation, residual, offset), exact, arrays, activation)


@pytest.mark.parametrize(("activation", "residual"), [("relu", True), ("relu6", False)])
@pytest.mark.parametrize("shape", LARGE)
def test_threads_change_no_bit(shape: tuple[int, ...], activation: str, residual: bool) -> None:
    arrays = random_arrays(shape)
    exact = truth(arrays, activation, residual)
    for name in sets():
        library.use_instruction_set(name)
        results = []
        for threads in range(1, 6):
            library.load().gw_set_threads(threads)
            results.append(every_pass(arrays, activation, residual))
        check(results[0], exact, arrays, activation)
        for other in results[1:]:
            assert all(np.array_equal(results[0][key], other[key]) for key in other)


@pytest.mark.parametrize("shape", [(1000, 3), (1 << 15, 20), (1, 7, 7, 1553)])
def test_a_large_mean_leaves_a_small_deviation(shape: tuple[int, ...]) -> None:
    arrays = random_arrays(shape, mean=1000.0, deviation=0.1)
    wide = arrays["inputs"].astype("float64").reshape(-1, shape[-1])
    for name in sets():
        library.use_instruction_set(name)
        results = norm.normalize(MOMENTS, inputs=arrays["inputs"])
        np.testing.assert_allclose(results["mean"], wide.mean(0), rtol=1e-7)
        np.testing.assert_allclose(results["variance"], wide.var(0), rtol=2e-5)


def test_an_outlier_at_the_front_spoils_nothing() -> None:
    inputs = np.random.default_rng(0).normal(size=(100000, 8)).astype("float32")
    inputs[0] = 1e4
    results = norm.normalize(MOMENTS, inputs=inputs)
    np.testing.assert_allclose(results["variance"], inputs.astype("float64").var(0), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_constant_statistics_take_no_share_of_the_gradient(activation: str) -> None:
    arrays = random_arrays((3, 5, 7, 19))
    random = np.random.default_rng(1)
    mean, variance = (random.uniform(0.5, 2, 19).astype("float32") for _ in range(2))
    exact = truth(arrays, activation, True, (mean, variance))
    given = {**arrays, "mean": mean, "variance": variance}
    given["residual_gradient"] = np.full_like(arrays["inputs"], np.nan)
    results = norm.normalize(
        NORMALIZE | GRADIENT_SUMS | GRADIENT, activation=activation, epsilon=EPSILON, count=0, **given
    )
    check({name: results[name] for name in exact}, exact, arrays, activation)


def test_parts_of_a_batch_reduced_between_the_passes_are_the_whole_batch() -> None:
    arrays = random_arrays((8, 5, 5, 6))
    exact = truth(arrays, "relu", False)
    statistics = {name: exact[name].astype("float32") for name in ("mean", "variance")}
    options: dict[str, Any] = {"activation": "relu", "epsilon": EPSILON, "count": 8 * 5 * 5, **statistics}
    options |= {name: arrays[name] for name in ("gamma", "beta")}
    halves = [{name: arrays[name][part] for name in ("inputs", "gradient")} for part in (slice(0, 3), slice(3, 8))]
    sums = sum(norm.normalize(GRADIENT_SUMS, **half, **options)["sums"] for half in halves)
    parts = [norm.normalize(GRADIENT, sums=sums, **half, **options)["inputs_gradient"] for half in halves]
    check({"inputs_gradient": np.concatenate(parts)}, exact, arrays)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_empty_batch(activation: str) -> None:
    results = every_pass(random_arrays((0, 4, 4, 5)), activation, True)
    for name in ("mean", "variance", "sums"):
        assert not results[name].any()
    assert results["inputs_gradient"].shape == (0, 4, 4, 5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(activation: str) -> None:
    arrays = random_arrays((40, 21))
    arrays["inputs"][3, 4] = np.nan
    results = every_pass(arrays, activation, False)
    for name in ("outputs", "inputs_gradient"):
        assert np.isnan(results[name][:, 4]).all()
        assert np.isfinite(np.delete(results[name], 4, 1)).all()


def test_the_edges_of_an_activation_pass_no_gradient() -> None:
    inputs = np.array([[-1.0], [0.0], [3.0], [6.0], [7.0]], "float32")
    one, zero = np.ones(1, "float32"), np.zeros(1, "float32")
    given = {"inputs": inputs, "gamma": one, "beta": zero, "mean": zero, "variance": one, "gradient": inputs * 0 + 1}
    for activation, passes in (("relu", [0, 0, 1, 1, 1]), ("relu6", [0, 0, 1, 0, 0])):
        results = norm.normalize(GRADIENT_SUMS | GRADIENT, activation=activation, epsilon=0.0, count=0, **given)
        assert results["inputs_gradient"].ravel().tolist() == passes


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_the_activation_saw_is_computed_anew_with_a_residual(activation: str) -> None:
    arrays = random_arrays((3, 5, 7, 19))
    exact = truth(arrays, activation, True)
    statistics = {name: exact[name].astype("float32") for name in ("mean", "variance")}
    given = {**arrays, **statistics, "residual_gradient": np.full_like(arrays["inputs"], np.nan)}
    results = norm.normalize(GRADIENT_SUMS | GRADIENT, activation=activation, epsilon=EPSILON, **given)
    names = "sums", "residual_gradient", "inputs_gradient"
    check({name: results[name] for name in names}, exact, arrays, activation)


def test_silu_is_exact_wherever_floats_are() -> None:
    """So is the exponential function that it is made of: where silu is nearly 0, it is x / exp(-x)."""
    x = np.concatenate(
        [np.linspace(-87, 110, 1 << 19), np.geomspace(1e-30, 1e30, 4001), -np.geomspace(1e-30, 80, 4001)]
    )
    inputs = x.astype("float32").reshape(-1, 1)
    one, zero = np.ones(1, "float32"), np.zeros(1, "float32")
    given = {"gamma": one, "beta": zero, "mean": zero, "variance": one, "activation": "silu", "epsilon": 0.0}
    wanted = TRUTH["silu"].value(inputs.astype("float64"))
    for name in sets():
        library.use_instruction_set(name)
        outputs = norm.normalize(NORMALIZE, inputs=inputs, **given)["outputs"]
        assert (abs(outputs - wanted) <= 4 * np.spacing(abs(wanted).astype("float32"))).all()
        limits = np.array([[-3e38], [-200], [np.inf], [-np.inf], [np.nan]], "float32")
        outputs = norm.normalize(NORMALIZE, inputs=limits, **given)["outputs"]
        np.testing.assert_array_equal(outputs, np.array([[0], [0], [np.inf], [np.nan], [np.nan]], "float32"))


def test_the_core_and_python_agree_on_what_a_gradient_reads() -> None:
    for name, row in ACTIVATIONS.items():
        assert library.load().gw_gradient_reads_outputs(epilogues.number(name)) == row.reads_outputs


def test_wrong_arguments_are_named() -> None:
    arrays = random_arrays((3, 4))
    read_only = np.zeros(4, "float32")
    read_only.flags.writeable = False
    for passes, given, message in (
        (MOMENTS, {}, "inputs=None: must be an array"),
        (MOMENTS, {"inputs": arrays["inputs"], "activation": "tanh"}, "activation='tanh': must be one of linear"),
        (NORMALIZE, {"inputs": arrays["inputs"]}, "passes=2: gamma, beta, mean, variance must be given"),
        (MOMENTS, {"inputs": arrays["inputs"], "mean": np.zeros(3, "float32")}, r"mean of shape \(3,\)"),
        (MOMENTS, {"inputs": arrays["inputs"].astype("float64")}, "type float64"),
        (MOMENTS, {"inputs": arrays["inputs"], "delta": arrays["beta"]}, "delta: must be one of inputs"),
        (16, {"inputs": arrays["inputs"]}, "the core refuses"),
        (0, {"inputs": arrays["inputs"]}, "passes=0: the core refuses what is not a sum of 1, 2, 4, 8"),
        (MOMENTS, {"inputs": arrays["inputs"], "mean": read_only}, "mean: must be writeable"),
        (MOMENTS, {"inputs": arrays["inputs"], "epsilon": -1e-3}, "epsilon=-0.001: must be at least 0"),
        (MOMENTS, {"inputs": arrays["inputs"], "count": -3}, "count=-3: must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            norm.normalize(passes, **given)


@pytest.mark.parametrize("sizes", [(-1, 4, 0), (4, 0, 0), (4, -1, 0), (1 << 61, 4, 0), (4, 1 << 41, 0), (4, 4, 3)])
def test_the_core_refuses_what_would_touch_foreign_memory(sizes: tuple[int, int, int]) -> None:
    """Straight to the C function, without any memory, so that believing the sizes crashes."""
    normalization = norm._Normalization(*sizes)
    assert library.load().gw_normalize(15, ctypes.byref(normalization), None) == 1


@pytest.mark.parametrize("passes", [-1, 0, *norm.PASSES, 16])
def test_the_core_refuses_arrays_that_lack(passes: int) -> None:
    normalization = norm._Normalization(4, 4, 0, 4, 1e-3)
    assert library.load().gw_normalize(passes, ctypes.byref(normalization), None) == 1
