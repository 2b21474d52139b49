"""How algorithms are measured: by a clock that the rivals move themselves, and on convolutions of a moment."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends
from groupwise.core import convolution
from groupwise.errors import UserError
from groupwise.ops.algorithms import ALGORITHMS, training_step
from groupwise.routing import KINDS, Runtime, candidates, explain, kind, measuring
from groupwise.spec import ConvSpec
from tests.frameworks import BACKEND, on_cpu
from tests.passes import PASS_NAMES, SPECS, expected, near, random_arrays


class Clock:
    """Seconds that pass only while a rival runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def rival(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a rival whose calls take `seconds`, then the last of these for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.calls.append(name)

        return run


@pytest.mark.once
def test_a_race_is_the_median_of_rounds_in_turns_without_the_compilation() -> None:
    clock = Clock()
    rivals = {
        "first": clock.rival("first", 9, 0.1),
        "fast": clock.rival("fast", 30, 0.05, 0.05, 5, 0.05),  # disturbed once
        "slow": clock.rival("slow", 0.19, 0.19, 0.15),
    }
    assert measuring.race(rivals, clock) == pytest.approx({"first": 1, "fast": 0.5, "slow": 1.5})
    assert clock.calls[6:] == ["first", "fast", "slow"] * measuring.ROUNDS[0]


@pytest.mark.once
def test_the_hopeless_are_left_out_but_never_the_first() -> None:
    clock = Clock()
    times = {"first": 1.0, "fast": 0.01, "bearable": 0.039, "hopeless": 0.05}
    ratios = measuring.race({name: clock.rival(name, seconds) for name, seconds in times.items()}, clock)
    assert ratios == pytest.approx({"first": 1, "fast": 0.01, "bearable": 0.039})
    assert clock.calls.count("hopeless") == 2
    quick = Clock()
    measuring.race({"first": quick.rival("first", 1e-4)}, quick)
    assert len(quick.calls) == 2 + measuring.ROUNDS[1]


@on_cpu
def test_every_kind_is_measured_and_is_what_it_is_called() -> None:
    subjects = measuring.subjects(3)
    assert tuple(subjects) == KINDS
    for name, specs in subjects.items():
        assert {kind(spec) for spec in specs} == {name}
        assert {spec.input_shape[0] for spec in specs} == {3}
        for runtime in (Runtime("jax", "cpu"), Runtime("torch", "cpu", core=True), backends.active.runtime()):
            # The built-in list has one choice for a kind, and it takes part.
            built_in = {explain(spec, runtime).algorithm for spec in specs}
            assert len(built_in) == 1
            assert all(built_in <= set(candidates(spec, runtime)) for spec in specs)


def test_xla_s_grouped_gradient_is_not_waited_for() -> None:
    spec = SPECS["narrow"][0]
    assert candidates(spec, Runtime("jax", "cpu", core=True)) == ["core", "blocks"]
    assert candidates(spec, Runtime("torch", "cpu", core=True)) == ["core", "native", "blocks"]
    assert candidates(spec, Runtime("tensorflow", "cpu", grouped_gradients=frozenset())) == ["blocks"]
    assert candidates(replace(spec, dtype="float64"), Runtime("torch", "cpu", core=True)) == ["native", "blocks"]


@pytest.mark.parametrize("family", SPECS)
def test_what_is_measured_is_a_training_step(family: str) -> None:
    spec = SPECS[family][1]
    arrays = random_arrays(spec)
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    for name in candidates(spec, backends.active.runtime()):
        convolve: Any = partial(ALGORITHMS[name], spec=spec)  # type: ignore[call-arg]
        step = backends.active.training_step(convolve, *tensors)
        for pass_, result in zip(convolution.PASSES, step(), strict=True):
            what = f"{name}, {PASS_NAMES[pass_]}"
            near(np.asarray(keras.ops.convert_to_numpy(result)), *expected(pass_, spec, arrays), what)


@pytest.mark.once
@on_cpu
@pytest.mark.parametrize(
    "spec", [ConvSpec.of((1, 5, 5, 8), (3, 3, 2, 8), 4), ConvSpec.of((1, 5, 5, 4), (1, 1, 4, 6), 1)], ids=kind
)
def test_choose(spec: ConvSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "HOPELESS", float("inf"))
    choice = measuring.choose([spec, spec], backends.active.runtime, training_step)
    runtime = backends.active.runtime()
    assert sorted(name for name, _ in choice.times) == sorted(candidates(spec, runtime))
    assert choice.built_in == explain(spec, runtime).algorithm
    assert min(time for _, time in choice.times) == 1


@pytest.mark.once
def test_nothing_is_no_choice() -> None:
    with pytest.raises(ValueError, match="there is nothing to measure"):
        measuring.choose([], backends.active.runtime, training_step)


@pytest.mark.once
def test_an_accelerator_has_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.active, "runtime", lambda inputs=None: Runtime(BACKEND, "gpu"))
    with pytest.raises(UserError, match="only CPUs have something to choose from"):
        measuring.choose([SPECS["narrow"][0]], backends.active.runtime, training_step)
