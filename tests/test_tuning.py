"""What `groupwise tune` stores: written, read, distrusted, and what routing makes of it."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras import ops

import groupwise
from groupwise import backends
from groupwise.core import convolution, library
from groupwise.errors import UserError
from groupwise.machine import cache_folder
from groupwise.ops import grouped_conv2d
from groupwise.routing import Runtime, exact_name, explain, kind, tuning
from groupwise.routing.tuning import Choice, Tuning
from groupwise.spec import ConvSpec
from groupwise.writing import replace_file
from tests.frameworks import BACKEND, on_cpu
from tests.passes import expected, near, random_arrays

VERSION = backends.active.version
NARROW = ConvSpec.of((2, 9, 10, 32), (3, 3, 4, 32), 8)
POINTWISE = ConvSpec.of((2, 9, 10, 32), (1, 1, 32, 16), 1)
BLOCKS = Choice((("blocks", 1.0), ("core", 2.0), ("native", 3.0)), "core", "2026-01-31")
MATMUL = Choice((("matmul", 1.0), ("native", 1.5)), "native", "2026-02-28")


def routed(spec: ConvSpec = NARROW) -> Any:
    """Return the routing of `spec` on the active framework."""
    return explain(spec, backends.active.runtime())


@pytest.mark.once
def test_what_is_stored_is_read_again_and_added_to(cache_folder: Path) -> None:
    assert tuning.current(BACKEND, VERSION) is None
    file = tuning.store(BACKEND, VERSION, {"narrow groups": BLOCKS, "dense": MATMUL})
    assert file.parent == cache_folder
    assert tuning.read(BACKEND, VERSION) == {"narrow groups": BLOCKS, "dense": MATMUL}
    newer = replace(MATMUL, date="2026-03-31")
    tuning.store(BACKEND, VERSION, {"dense": newer})
    assert tuning.read(BACKEND, VERSION) == {"narrow groups": BLOCKS, "dense": newer}
    assert [path.name for path in cache_folder.iterdir()] == [file.name]
    assert tuning.clear(("torch", "jax", "tensorflow")) == [file]
    assert tuning.current(BACKEND, VERSION) is None
    assert tuning.clear((BACKEND,)) == []


@on_cpu
def test_what_is_stored_runs(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = routed()
    tuning.store(BACKEND, VERSION, {"narrow groups": BLOCKS})
    routing = groupwise.explain_routing(NARROW.input_shape, NARROW.kernel_shape, NARROW.groups)
    assert routing.algorithm == "blocks"
    assert "blocks: measured here on 2026-01-31: 2.00 times as fast as core" in str(routing)
    inputs, kernel, _ = arrays = random_arrays(NARROW)
    outputs = ops.convert_to_numpy(grouped_conv2d(inputs, kernel, NARROW.groups))
    near(outputs, *expected(convolution.FORWARD, NARROW, arrays), "outputs")
    with tuning.ignored():
        assert routed().algorithm == built_in.algorithm
    assert routed().algorithm == "blocks"
    monkeypatch.setenv("GROUPWISE_TUNING", "0")
    tuning.current.cache_clear()
    assert routed() == built_in


@pytest.mark.once
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_the_convolution_comes_before_its_kind_and_what_cannot_run_is_passed_over(framework: str) -> None:
    choices = {"narrow groups": BLOCKS, exact_name(NARROW): replace(BLOCKS, times=BLOCKS.times[1:])}
    runtime = Runtime(framework, "cpu", core=True, tuning=Tuning(choices))
    assert explain(NARROW, runtime).algorithm == "core"
    assert explain(replace(NARROW, input_shape=(None, *NARROW.input_shape[1:])), runtime).algorithm == "core"
    larger = ConvSpec.of((2, 18, 10, 32), NARROW.kernel_shape, 8)
    assert explain(larger, runtime).algorithm == "blocks"

    without = explain(NARROW, replace(runtime, core=False))
    assert without.passed_over[0] == ("core", "it was not built, does not load here, or GROUPWISE_CORE is 0")
    assert without.algorithm == ("blocks" if framework == "jax" else "native")
    for dtype in ("float64", "bfloat16"):
        spec = replace(NARROW, dtype=dtype)
        assert explain(spec, runtime).reason == explain(spec, replace(runtime, tuning=None)).reason

    tuned = replace(
        runtime, tuning=Tuning({"dense 1x1": MATMUL, "narrow groups": replace(BLOCKS, times=(("?", 1.0),))})
    )
    assert explain(POINTWISE, tuned).algorithm == "matmul"
    padded = replace(POINTWISE, padding=((1, 1), (1, 1)))
    assert explain(padded, tuned).passed_over[0] == ("matmul", "the kernel is not 1x1, or the input is padded")
    assert explain(padded, tuned).algorithm == "native"
    assert explain(NARROW, tuned).reason == explain(NARROW, replace(runtime, tuning=None)).reason


def stored(**changes: Any) -> str:
    """Return the text of a good file, with changes."""
    circumstances = tuning._circumstances(BACKEND, VERSION)
    one = {"times": {"blocks": 1.0}, "built_in": "core", "date": "2026-01-31"}
    content = {"measured_with": circumstances, "choices": {"narrow groups": one}}
    for place, value in changes.items():
        {**content, "one": one}[place].update(value)  # type: ignore[attr-defined]
    return json.dumps(content)


@pytest.mark.once
@on_cpu
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is damaged"),
        ("[" * 100_000, "the file is damaged"),
        ("[1]", "the file is damaged"),
        ('{"measured_with": {}, "choices": []}', "the file is damaged"),
        (b"\xff\xfe", "codec can't decode"),
        (stored(one={"times": {}}), "the file is damaged"),
        (stored(one={"times": {"core": 0}}), "the file is damaged"),
        (stored(one={"times": {"core": float("nan")}}), "the file is damaged"),
        (stored(one={"times": ["core"]}), "the file is damaged"),
        (stored(measured_with={"processor": "Z80"}), "it was measured with processor Z80, and this is "),
        (stored(measured_with={"framework": "jax 0.0"}), f"framework jax 0.0, and this is {BACKEND} {VERSION}"),
        (stored(measured_with={"threads": "99"}), "threads 99, and this is"),
        (stored(measured_with={"groupwise": "0.0"}), "groupwise 0.0, and this is"),
        (None, "directory"),
    ],
)
def test_a_file_that_does_not_hold_here_is_ignored_with_one_warning(
    cache_folder: Path, text: str | bytes | None, reason: str
) -> None:
    file = tuning.path(BACKEND)
    if text is None:
        file.mkdir(parents=True)
    else:
        cache_folder.mkdir()
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(RuntimeWarning) as caught:
        first = routed()
    (warning,) = (str(one.message) for one in caught)
    assert str(file) in warning
    assert reason in warning
    assert f"Measure {BACKEND} again with `groupwise tune`, or remove it" in warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert routed() == first
        with tuning.ignored():
            assert routed() == first


@pytest.mark.once
@on_cpu
def test_without_the_core_the_other_measurements_hold(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = stored(measured_with={"instruction set": "of another machine"})
    cache_folder.mkdir()
    tuning.path(BACKEND).write_text(text)
    if library.is_available():
        with pytest.raises(ValueError, match="instruction set of another machine, and this is"):
            tuning.read(BACKEND, VERSION)
    monkeypatch.setenv("GROUPWISE_CORE", "0")
    assert routed().algorithm == "blocks"


@pytest.mark.once
def test_the_cache_folder_is_where_the_system_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("GROUPWISE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for platform, parts in (
        ("linux", (".cache", "groupwise")),
        ("darwin", ("Library", "Caches", "groupwise")),
        ("win32", ("AppData", "Local", "groupwise", "Cache")),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == tmp_path.joinpath(*parts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "groupwise"
    monkeypatch.setenv("GROUPWISE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.once
def test_a_folder_that_cannot_be_written_to_is_a_sentence(cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    with pytest.raises(UserError, match="cannot be written to: set GROUPWISE_CACHE to a folder that can"):
        tuning.store(BACKEND, VERSION, {"dense": MATMUL})


@pytest.mark.once
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise KeyboardInterrupt

    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.json", "old")]


@pytest.mark.once
def test_the_built_in_one_stays_unless_another_is_clearly_faster() -> None:
    assert Choice.of({"native": 1.04, "core": 1.0, "blocks": 2.0}, "native").times == (
        ("native", 1.04),
        ("core", 1.0),
        ("blocks", 2.0),
    )
    assert Choice.of({"native": 1.06, "core": 1.0}, "native").algorithm == "core"
    with pytest.raises(ValueError, match="positive"):
        Choice((("core", -1.0),), "core", "2026-01-31")


@pytest.mark.once
def test_names() -> None:
    assert kind(NARROW) == "narrow groups"
    assert kind(replace(NARROW, dtype="bfloat16")) == "narrow groups, bfloat16"
    assert kind(ConvSpec.of((None, None, None, 8), (3, 3, 1, 16), 8, 2)) == "strided depthwise"
    assert kind(ConvSpec.of((1, 8, 8, 32), (1, 1, 16, 32), 2)) == "grouped 1x1"
    assert kind(ConvSpec.of((1, 8, 8, 32), (3, 3, 16, 32), 2)) == "wide groups"
    # The same convolution has one name, however its padding was said.
    symmetric = replace(NARROW, padding=((1, 1), (1, 1)))
    assert exact_name(symmetric) == exact_name(NARROW) == "9x10x32 -> 32, 3x3, 8 groups, padding 1 1 1 1"
    changes: list[dict[str, Any]] = [
        {"strides": (2, 1)},
        {"dilation_rate": (1, 2)},
        {"padding": "valid"},
        {"groups": 4, "kernel_shape": (3, 3, 8, 32)},
        {"kernel_shape": (3, 3, 4, 64)},
        {"input_shape": (2, 10, 10, 32)},
        {"dtype": "float16"},
    ]
    assert len({exact_name(replace(NARROW, **change)) for change in changes} - {exact_name(NARROW)}) == len(changes)


@on_cpu
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is PyTorch's")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["narrow groups", exact_name(NARROW)])
def test_torch_compiles_a_tuned_convolution_as_a_whole_graph(cache_folder: Path, name: str, dynamic: bool) -> None:
    import torch

    tuning.store(BACKEND, VERSION, {name: BLOCKS})
    inputs, kernel, _ = (torch.from_numpy(array) for array in random_arrays(NARROW))

    def run(inputs: Any, kernel: Any) -> Any:
        spec = ConvSpec.of(tuple(inputs.shape), tuple(kernel.shape), NARROW.groups)
        algorithm = explain(spec, backends.active.runtime(inputs)).algorithm
        return inputs + 1 if algorithm == "blocks" else inputs

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (inputs, torch.cat([inputs, inputs])):
        np.testing.assert_array_equal(compiled(batch, kernel).numpy(), batch.numpy() + 1)
