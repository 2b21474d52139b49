"""The benchmarks' result files are read, merged and drawn; their shapes are convolutions."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops, tree
from PIL import Image

from benchmarks import chart, dispatch, frameworks, specs, tables
from benchmarks.timing import environment, geometric_mean, repeated
from groupwise import backends
from groupwise.spec import ConvSpec

MODELS = """commit aaa, torch 1, 2 cores

| network | step | backend | rival | rival, img/s | times as fast | commit |
|---|---|---|---|---|---|---|
| small | train, batch 16 | jax | timm, PyTorch channels_last | 7.6 | 0.75 | aaa |
| small | train, batch 16 | torch | timm, PyTorch channels_last | 7.6 | 1.25 | aaa |
| small | infer, batch 16 | torch | timm, PyTorch channels_last | 20.1 | 9.00 | aaa |
| small | train, batch 16 | jax | stock Keras, jax | 0.1 | 40.0 | aaa |
| large | train, batch 16 | tensorflow | pytorchcv, PyTorch channels_last | 1.5 | 2.00 | aaa |
"""
KERNELS = """## Batch 1, forward

| family | pass | shapes | over PyTorch |
|---|---|---|---|
| narrow | forward | 6 | 7.00 |

## Batch 16, all passes, quick, avx2

| family | pass | shapes | over PyTorch |
|---|---|---|---|
| narrow | forward | 6 | 3.00 |
| narrow | all | 18 | 2.50 |
| wide | all | 3 | 0.80 |
| all | all | 21 | 1.90 |

| shape | family | pass | ratio |
|---|---|---|---|
| 7x7 | wide | all | 0.80 |
"""
needs_core = pytest.mark.skipif(not backends.active.core.is_available(), reason="the C core is not available here")
KEY = ("network", "step", "backend", "rival")


@pytest.mark.once
def test_a_table_is_read_as_it_was_written() -> None:
    rows = [{"a": "1", "b": "two words"}, {"a": "", "b": "-"}]
    text = "\n".join(["before", *tables.table(rows), "", "between", *tables.table(rows[:1]), "after"])
    assert tables.read_tables(text) == [rows, rows[:1]]


@pytest.mark.once
def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 3 cells; its table has the 2 \['a', 'b'\]"):
        tables.read_tables("| a | b |\n|---|---|\n| 1 | 2 | 3 |")


@pytest.mark.once
def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    for title, line in (("one", "1"), ("two", "2"), ("one", "3")):
        tables.write_section(path, title, [line])
    assert path.read_text() == "## one\n\n3\n\n## two\n\n2\n"
    assert tables.read_sections(path.read_text()) == {"": "", "one": "3", "two": "2"}


@pytest.mark.once
def test_rows_are_replaced_and_keep_their_commit(tmp_path: Path) -> None:
    path = tmp_path / "models.md"
    path.write_text(MODELS)
    (before,) = tables.read_tables(MODELS)
    measured = {**before[1], "times as fast": "1.50"}
    del measured["commit"]
    tables.merge_rows(path, "commit bbb, torch 2, 2 cores", [measured], KEY)
    (after,) = tables.read_tables(path.read_text())
    assert after == [before[0], {**measured, "commit": "bbb"}, *before[2:]]
    assert path.read_text().startswith("commit aaa, torch 1, 2 cores\n\ncommit bbb, torch 2, 2 cores\n\n| network")
    unnamed = [{name: cell for name, cell in row.items() if name != "commit"} for row in before]
    tables.merge_rows(path, "commit ccc, torch 3", [*unnamed, {**unnamed[0], "network": "new"}], KEY)
    (after,) = tables.read_tables(path.read_text())
    assert [row["commit"] for row in after] == ["ccc"] * 6
    assert path.read_text().startswith("commit ccc, torch 3\n\n| network"), "no row names aaa or bbb any longer"


@pytest.mark.once
def test_a_new_column_is_empty_in_older_rows(tmp_path: Path) -> None:
    path = tmp_path / "models.md"
    path.write_text(MODELS)
    (before,) = tables.read_tables(MODELS)
    measured = {"network": "small", "step": "train", "backend": "jax", "rival": "timm", "first step, s": "1.2"}
    tables.merge_rows(path, "commit bbb, torch 2, 2 cores", [measured], KEY)
    (after,) = tables.read_tables(path.read_text())
    assert after[:-1] == [{**row, "first step, s": ""} for row in before]
    assert after[-1] == {**measured, "rival, img/s": "", "times as fast": "", "commit": "bbb"}
    assert list(after[0])[-1] == "commit"


@pytest.mark.once
def test_the_chart_reads_both_tables_and_is_drawn(tmp_path: Path) -> None:
    networks, families = chart.training(MODELS), chart.kernels(KERNELS)
    assert networks == {"small\nover timm": {"jax": 0.75, "torch": 1.25}, "large\nover pytorchcv": {"tensorflow": 2.0}}
    assert families == {"narrow": 2.5, "wide": 0.8}
    chart.draw(networks, families, tmp_path / "speed.png")
    pixels = np.asarray(Image.open(tmp_path / "speed.png").convert("RGB")).reshape(-1, 3)
    for colour in chart.COLOURS.values():
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (pixels == wanted).all(axis=1).sum() > 1000, f"no bar is {colour}"


@pytest.mark.once
def test_the_charts_own_files_have_what_it_needs() -> None:
    networks = chart.training((chart.RESULTS / "models.md").read_text())
    assert all(set(ratios) == set(chart.COLOURS) for ratios in networks.values())
    assert set(chart.kernels((chart.RESULTS / "kernels.md").read_text())) == set(specs.FAMILIES)


@pytest.mark.once
@pytest.mark.parametrize("read", [chart.training, chart.kernels])
def test_a_chart_of_nothing_is_refused(read: object) -> None:
    with pytest.raises(ValueError, match="measure it with benchmarks"):
        read("## Another heading\n\n| a |\n|---|\n| 1 |")  # type: ignore[operator]


@pytest.mark.once
def test_the_geometric_mean_is_the_root_of_the_product() -> None:
    assert geometric_mean([2.0, 4.0, 1.0]) == pytest.approx(2.0)


@pytest.mark.once
def test_the_environment_tells_a_limit_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment("numpy").endswith(", OMP_NUM_THREADS=1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment("numpy", "nothing-of-that-name").endswith(")")


@pytest.mark.once
@needs_core
def test_representative_shapes_cover_every_family() -> None:
    every = specs.read_specs(specs.NETWORKS, 16)
    chosen = specs.representative(every)
    assert set(chosen) < set(every)
    assert {specs.family(spec) for spec in chosen} == set(specs.FAMILIES)
    assert specs.with_batch(chosen[0], 2).input_shape == (2, *chosen[0].input_shape[1:])


@pytest.mark.once
@needs_core
def test_the_layers_are_some_of_the_networks() -> None:
    layers = specs.read_specs([specs.LAYERS], 16)
    assert set(layers) < set(specs.read_specs(specs.NETWORKS, 16))
    assert {specs.family(spec) for spec in layers} == {"narrow", "depthwise", "wide"}


@needs_core
@pytest.mark.parametrize("channels", [(12, 12, 3), (8, 16, 8)], ids=["grouped", "depthwise"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_both_sides_compute_the_same(channels: tuple[int, int, int], stride: int, padding: object) -> None:
    inputs, outputs, groups = channels
    spec = ConvSpec.of((1, 6, 6, inputs), (3, 3, inputs // groups, outputs), groups, stride, padding)
    calls = frameworks.rivals(spec)
    frameworks.check(spec, calls)
    calls["core"][0] = lambda: calls["stock"][0]() * 1.01
    with pytest.raises(AssertionError, match="result 0: differs by"):
        frameworks.check(spec, calls)


@pytest.mark.once
@pytest.mark.parametrize(("seconds", "batch"), [(0.01, 16), (0.5, 4), (2.0, 1), (100.0, 1)])
def test_the_batch_fits_the_time_cap(seconds: float, batch: int) -> None:
    assert frameworks.TIME_CAP == 4.0
    assert frameworks.fitting_batch(seconds, 16) == batch


@pytest.mark.once
def test_a_turn_repeats_short_calls() -> None:
    calls: list[int] = []
    run = repeated(lambda: calls.append(1), once=0.002, turn=0.02)
    assert 0 < run() < 0.02
    assert len(calls) == 10


@pytest.mark.once
def test_the_means_are_by_family_and_pass() -> None:
    ratios = [("narrow", "forward", "2.0"), ("narrow", "forward", "8.0"), ("dense", "forward", "1.5")]
    rows = [dict(zip(("family", "pass", "ratio"), cells, strict=True)) for cells in ratios]
    first, second = frameworks.means(rows)
    assert first == {"family": "narrow", "pass": "forward", "shapes": "2", "over stock": "4.00", "at least": "2.00"}
    assert (second["family"], second["over stock"]) == ("dense", "1.50")


@needs_core
@pytest.mark.parametrize("gradients", [False, True])
def test_every_way_to_call_a_layer_computes_the_same(gradients: bool) -> None:
    for name in dispatch.subjects():
        works = dispatch.rivals(name, gradients)
        assert tuple(works) == dispatch.WAYS
        works["core"]()
        wanted, *others = (tree.flatten(works[way]()) for way in dispatch.WAYS[1:])
        for arrays in others:
            for actual, value in zip(arrays, wanted, strict=True):
                np.testing.assert_array_equal(*(ops.convert_to_numpy(array) for array in (actual, value)))
