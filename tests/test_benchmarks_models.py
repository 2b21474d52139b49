"""The benchmarks of whole networks run in small: every kind of rival, the plain peers, a race and its rows."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks import accelerating, models, peers, rivals, tables
from benchmarks.memory import FORGET, with_growth
from benchmarks.worker import Start, Task, build, check_gpu
from groupwise.models import create
from tests.frameworks import BACKEND

SMALL = "groupnet_cifar10"
OURS = {
    "training": Task(BACKEND, "groupwise", SMALL, batch=2),
    "training in bfloat16": Task(BACKEND, "groupwise", SMALL, batch=2, precision="bfloat16"),
    "stock": Task(BACKEND, "stock", SMALL, training=False, batch=2),
    "one image": Task(BACKEND, "groupwise", "mobilenetv1_100", training=False, batch=1, size=32),
    "one image, folded": Task(BACKEND, "folded", "mobilenetv1_100", training=False, batch=1, size=32),
}
PEERS = {
    "training": Task("torch", "timm", "mobilenetv1_100", batch=2, size=32),
    "training in bfloat16": Task("torch", "timm", "mobilenetv1_100", batch=2, size=32, precision="bfloat16"),
    "one image in bfloat16": Task(
        "torch", "pytorchcv", "shufflenet_g3_w1", training=False, batch=1, precision="bfloat16"
    ),
    "small": Task("torch", "plain", SMALL, batch=2),
}
needs_torch = pytest.mark.skipif(BACKEND != "torch", reason="the peers run in PyTorch")


@pytest.mark.parametrize("task", OURS.values(), ids=OURS)
def test_our_step_runs(task: Task) -> None:
    step, difference = build(task)
    assert np.isfinite(step()).all()
    assert difference == 0


@needs_torch
@pytest.mark.parametrize("task", PEERS.values(), ids=PEERS)
def test_a_peers_step_runs(task: Task) -> None:
    step, _ = build(task)
    assert np.isfinite(step()).all()


def test_an_accelerated_step_tells_how_far_its_outputs_are_off() -> None:
    step, difference = build(Task(BACKEND, "accelerated", "MobileNet", batch=2, size=32))
    assert np.isfinite(step()).all()
    assert 0 < difference < 1e-4


def moved(network: str) -> Any:
    """Return a network of ours whose weights and statistics are none of a fresh one's."""
    model = create(network)
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([weight + random.uniform(0, 0.1, weight.shape) for weight in layer.get_weights()])
    return model


@needs_torch
@pytest.mark.parametrize("network", models.SMALL)
def test_the_plain_peer_is_the_same_network(network: str) -> None:
    from benchmarks import plain

    plain.like(moved(network))


@needs_torch
def test_a_plain_peer_that_is_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import plain

    monkeypatch.setattr(plain, "shuffled", lambda x, groups: x)
    with pytest.raises(AssertionError, match="outputs differ by"):
        plain.like(moved(SMALL))
    monkeypatch.setitem(plain.NETWORKS, SMALL, lambda: plain.groupnet()[:1])
    with pytest.raises(AssertionError, match="has 336 parameters"):
        plain.like(moved(SMALL))


def rows_of(program: Any, output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[tables.Row]:
    """Run a program with two rounds and return the rows that it wrote."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments, "--rounds", "2", "--output", str(output)])
    program.main()
    (rows,) = tables.read_tables(output.read_text())
    return rows


@pytest.mark.shared
def test_a_race_gives_a_row_with_its_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--mode", "small", "--network", SMALL, "--backend", BACKEND, "--batch", "2")
    (row,) = rows_of(models, tmp_path / "models.md", monkeypatch, *arguments)
    where = (SMALL, "train, batch 2", BACKEND, "plain, PyTorch channels_last")
    assert tuple(row[name] for name in models.KEY) == where
    for column in ("rival, img/s", "times as fast", "first step, s", "warm-up, s", "rival's first step, s"):
        assert float(row[column]) > 0


@pytest.mark.slow
@needs_torch
def test_what_a_gpu_measures_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--mode", "small", "--network", SMALL, "--backend", "torch", "--batch", "2")
    eager, compiled = rows_of(
        models, tmp_path / "models.md", monkeypatch, *arguments, "--precision", "bfloat16", "--compiled"
    )
    assert eager["step"] == compiled["step"] == "train, batch 2, bfloat16"
    assert [row["rival"] for row in (eager, compiled)] == ["plain, PyTorch channels_last", "plain, PyTorch compiled"]


@pytest.mark.slow
def test_a_stock_model_races_the_accelerated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "MobileNetV2", "--backend", BACKEND, "--batch", "2", "--size", "32")
    (row,) = rows_of(accelerating, tmp_path / "accelerate.md", monkeypatch, *arguments)
    assert row["step"] == "train, batch 2, 32x32"
    assert float(row["times as fast"]) > 0


@pytest.mark.once
def test_folded_networks_race_beside_those_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Task] = []

    def fake(tasks: dict[str, Task], rounds: int) -> rivals.Race:
        seen.extend(tasks.values())
        return rivals.Race({name: Start(1.0, 2.0) for name in tasks}, {name: [0.5] * rounds for name in tasks})

    monkeypatch.setattr(models, "race", fake)
    monkeypatch.setattr(sys, "argv", ["models", "--mode", "image", "--network", "mobilenetv1_100", "--fold"])
    models.main()
    assert [task.library for task in seen] == ["timm", *["groupwise"] * 3, *["folded"] * 3]
    assert {task.batch for task in seen} == {1}


@pytest.mark.once
def test_a_capped_rival_is_a_bound() -> None:
    race = rivals.Race({"ours": Start(3.0, 4.0)}, {"ours": [2.0], "rival": [rivals.TIME_CAP]}, is_capped=True)
    assert race.times_as_fast("ours", "rival", digits=1) == "at least 200.0"
    assert race.first_steps("ours", "rival") == {
        "first step, s": "3",
        "warm-up, s": "4",
        "rival's first step, s": "",
    }
    assert race.memory("ours", "rival") == {"memory": ""}


@pytest.mark.once
def test_memory_is_ours_over_the_rivals() -> None:
    race = rivals.Race({"ours": Start(3.0, 4.0, memory=2 << 20), "rival": Start(1.0, 2.0, memory=8 << 20)}, {})
    assert race.memory("ours", "rival") == {"memory": "0.25"}
    held, growth = with_growth(lambda: np.ones(1 << 27, "uint8"))
    assert held.nbytes * 0.9 < growth or not FORGET.exists()


@pytest.mark.once
def test_a_worker_that_ends_is_told_by_its_last_words() -> None:
    with pytest.raises(SystemExit, match="timm's nothing on torch: RuntimeError: Unknown model"):
        rivals.race({"peer": Task("torch", "timm", "nothing")}, rounds=1)


@pytest.mark.once
def test_without_a_gpu_its_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["models", "--device", "gpu"])
    monkeypatch.setattr("benchmarks.timing.shutil.which", lambda program: None)
    with pytest.raises(SystemExit, match="no NVIDIA GPU is here"):
        models.main()


@pytest.mark.once
def test_a_framework_that_does_not_see_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("cuda:0", "/job:localhost/replica:0/task:0/device:GPU:0"):
        monkeypatch.setattr(keras.ops, "zeros", lambda shape, place=place: SimpleNamespace(device=place))
        check_gpu()
    monkeypatch.setattr(keras.ops, "zeros", lambda shape: SimpleNamespace(device="TFRT_CPU_0"))
    with pytest.raises(SystemExit, match=f"{BACKEND} sees no GPU here; it computes on tfrt_cpu_0"):
        check_gpu()


@pytest.mark.once
def test_every_mode_has_networks_with_peers() -> None:
    assert {network for mode in models.MODES.values() for network in mode.networks} == peers.PEERS.keys()
