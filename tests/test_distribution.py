"""A training on several processes and devices: what one process does, to rounding; and how it ends and goes on."""

import json
import re
import signal
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import numpy as np
import pytest

from groupwise import backends, models
from groupwise.cli import main, training
from groupwise.cli.planning import Wishes, resumed
from groupwise.cli.processes import Start
from groupwise.errors import UserError
from groupwise.inference.evaluation import Evaluation, evaluation_of, merged
from groupwise.launchers import Place
from groupwise.training import Distribution, checkpoints, make_plan, train
from groupwise.training.checkpoints import Checkpoint
from groupwise.training.distribution import Agreement
from groupwise.training.workspace import Workspace
from groupwise.writing import locked
from tests import collectives, kills, processes, together
from tests import tiny as bars
from tests.frameworks import BACKEND
from tests.processes import free_port

tiny = bars.tiny

SEVERAL = pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow trains in one process")
COMMAND = ["-c", "import sys; from groupwise.cli import main; sys.exit(main())", "train", "bars.npz"]
TOLERANCES = {"mixed": (2e-3, 2e-2)}
"""Of loss and weights: sums in another order round to another bfloat16, of which two are 0.4% apart."""


def newest(run: Path) -> Checkpoint:
    checkpoint, _ = checkpoints.newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def assert_same_training(found: Path, expected: Path, loss: float = 1e-6, weights: float = 1e-5) -> None:
    mine, its = newest(found).arrays, newest(expected).arrays
    shared = {name for name in its if not name.startswith(("random", "process"))}
    assert shared == {name for name in mine if not name.startswith(("random", "process"))}
    for name in shared:
        scale = max(1, np.abs(its[name]).max(initial=0))
        np.testing.assert_allclose(mine[name], its[name], rtol=0, atol=weights * scale, err_msg=name)
    rows = [newest(run).rows[-1] for run in (found, expected)]
    assert rows[0]["validation_loss"] == pytest.approx(rows[1]["validation_loss"], rel=max(loss, 1e-6))
    losses, its_losses = (np.load(f"{run}.npy") for run in (found, expected))
    np.testing.assert_allclose(losses, its_losses, rtol=loss)


@SEVERAL
def test_processes_and_devices_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.variants(), "smooth", together.VARIANT)
    together.write_data(tmp_path)
    together.train_all(tmp_path, Distribution.alone(), "1")
    for count, devices in ((2, 2), (4, 1)):
        for status, output in processes.finished(together.start(tmp_path, count, devices)):
            assert status == 0, output
        for name in together.RECIPES if count == 2 else list(together.RECIPES)[:1]:
            run = tmp_path / str(count) / name
            assert_same_training(run, tmp_path / "1" / name, *TOLERANCES.get(name, ()))
            assert (run / "process-1.log").read_text().count("Training as process 1 of") == 1
            mine, its = (json.loads((path / "summary.json").read_text()) for path in (run, tmp_path / "1" / name))
            assert (mine["tests"]["more"]["images"], its["tests"]["more"]["images"]) == (23, 23)
            page = (run / "report.html").read_text(encoding="utf-8")
            assert f"<dd>{mine['test_accuracy']:.2%}</dd>" in page
            assert "calibration error" in page
            if mine["best_epoch"] == its["best_epoch"]:  # else several were as good, to rounding
                assert mine["tests"]["more"]["loss"] == pytest.approx(its["tests"]["more"]["loss"], rel=1e-2)


@pytest.mark.skipif(BACKEND != "jax", reason="of what XLA compiles")
def test_devices_send_sums_alone() -> None:
    """Of the other families `python -m tests.collectives` shows it."""
    sent = collectives.of_training("groupnet_cifar10", 32)
    assert sent["all-reduce"]
    assert not any(sent[way] for way in collectives.MOVES)


@SEVERAL
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_a_killed_training_of_two_processes_goes_on_to_the_bit() -> None:
    settings = ("accumulate=2", "dtype=mixed_bfloat16", "on_nan=retry", "patience=2", "layer_decay=0.9")
    options = ["--epochs", "2", *(word for setting in settings for word in ("--set", setting))]
    assert not kills.killed(BACKEND, 1, count=2, options=options)


def torchrun(count: int, *arguments: str) -> list[list[str]]:
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "groupwise"]
    return [[*run, "train", "bars.npz", *arguments]]


def by_hand(count: int, *arguments: str) -> list[list[str]]:
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)]
    return [[*COMMAND, *arguments, *where, "--process", str(index)] for index in range(count)]


@SEVERAL
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_the_command_trains_in_processes_ends_as_one_and_goes_on_with_fewer(tmp_path: Path) -> None:
    bars.write_npz(tmp_path / "bars.npz")
    (tmp_path / "kills.toml").write_text(kills.RECIPE)
    arguments = ["--recipe", "kills.toml", "--output", "run", "--backend", BACKEND, "--epochs", "500"]
    commands = by_hand(2, *arguments)
    if BACKEND == "torch":
        commands = torchrun(2, *arguments, "--no-sync-batch-norm")
    started = processes.start(commands, cwd=tmp_path)
    pipe: Any = started[0].stdout
    seen = ""
    while "epoch   2/500" not in seen:
        line = pipe.readline()
        assert line, seen
        seen += line
    started[-1].send_signal(signal.SIGTERM)
    ended = processes.finished(started)
    text = seen + "".join(output for _, output in ended)
    assert text.count("data     bars") == 1, "one of them speaks"
    assert re.search(r"Training as process 0 of 2 \(from 0\), 1 device of 2, started by (torchrun|hand)", text)
    assert text.count("go on with: groupwise train bars.npz --output run --resume") == 1
    assert all(status for status, _ in ended)
    before = newest(tmp_path / "run").step
    end = ["--resume", "--output", "run", "--epochs", str(before // 12 + 2)]
    (status, output), *_ = processes.finished(processes.start([[*COMMAND, *end]], cwd=tmp_path))
    assert status == 0, output
    assert newest(tmp_path / "run").step > before


@SEVERAL
@pytest.mark.parametrize(
    ("fails", "why", "expected"),
    [
        ("beginning as b; b.build_network = lambda plan: 1 / 0", "division by zero", 1),
        # A signal in the test after the last epoch, in one process alone.
        ("ending as e, signal; e.swap_average = lambda _: signal.raise_signal(signal.SIGTERM)", "stopped: run", 143),
    ],
)
def test_an_end_of_one_process_ends_the_others_with_a_sentence(
    tmp_path: Path, fails: str, why: str, expected: int
) -> None:
    bars.write_npz(tmp_path / "bars.npz")
    options = ["--epochs", "2", "--batch-size", "32", "--set", "average=0.9", "--validation", "0.2"]
    commands = by_hand(2, "--output", "run", "--backend", BACKEND, *options)
    commands[1][1] = f"import groupwise.training.{fails}; {commands[1][1]}"
    (status, output), (its, _) = processes.finished(processes.start(commands, cwd=tmp_path))
    assert (status, its) == (1, expected)
    assert re.search(rf"process 1 of 2 \(on \S+\) has ended, and so do all: {why}", output)


@SEVERAL
def test_a_process_without_its_data_ends_all(tmp_path: Path) -> None:
    bars.write_npz(tmp_path / "bars.npz")
    commands = by_hand(2, "--output", "run", "--backend", BACKEND, "--epochs", "2", "--batch-size", "32")
    commands[1][commands[1].index("bars.npz")] = "gone.npz"
    (status, output), (its, _) = processes.finished(processes.start(commands, cwd=tmp_path))
    assert (status, its) == (1, 1)
    assert re.search(r"process 1 of 2 \(on \S+\) has ended, and so do all: gone.npz does not exist", output)
    assert {file.name for file in tmp_path.glob("run/*")} <= {"process-1.log", ".lock"}, "nothing of a run"


@pytest.mark.once
def test_the_first_process_alone_looks_whether_a_run_is_free(tiny: str, tmp_path: Path) -> None:
    dataset, run = bars.dataset(tmp_path), tmp_path / "run"
    train(make_plan(dataset, "bars.npz", bars.recipe(epochs=1)), dataset, run, observer=[])
    for index, ends in ((1, nullcontext()), (0, pytest.raises(UserError, match="another training is at work"))):
        start = Mock(is_one_of_several=True, return_value=Mock(index=index))
        wishes = Wishes(None, None, None, {}, {}, {}, None, None, (), start)
        with locked(Workspace(run).lock, "in use"), ends:  # as another process holds it, which looks
            assert resumed(str(tmp_path / "bars.npz"), run, wishes, restart=False)[2] == run


@pytest.mark.once
def test_processes_with_other_arguments_do_not_train(tiny: str, tmp_path: Path) -> None:
    """Each of two processes in its turn, of which one hears what the other one gave."""
    dataset, given = bars.dataset(tmp_path), list[str]()

    def gather(value: Any) -> list[Any]:
        if not isinstance(value, str):
            return [value, value]
        given.append(value)
        return [value, given[0] if len(given) > 1 else "nothing yet"]

    for epochs in (2, 3):
        distribution = Distribution.alone()
        distribution.count, distribution.gather = 2, gather  # type: ignore[method-assign]
        plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=epochs))
        says = "process 1 has other arguments than process 0: all train by the same, on the same"
        with pytest.raises(UserError, match=says):
            train(plan, dataset, tmp_path / "run", distribution=distribution)
        assert not (tmp_path / "run").exists(), "nothing of a run"
    assert len({*given}) == 2


@SEVERAL
def test_batches_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = Distribution.alone()
    distribution.check_batch(17)
    monkeypatch.setattr(backends.active.distribution, "devices", lambda: (1, 3))
    distribution.check_batch(18)
    with pytest.raises(UserError, match=r"batch_size=20: the images .* divided evenly among 3 devices: take 18"):
        distribution.check_batch(20)
    with pytest.raises(UserError, match=r"batch_size=20: .* among 3 devices, in 2 steps: take 18"):
        distribution.check_batch(20, pieces=2)


def test_parts_of_a_test_count_as_the_whole_does() -> None:
    labels = np.arange(43) % 3
    wrong = np.roll(np.eye(3, dtype=np.float32), 1, axis=1)

    def evaluations(right: slice) -> list[Evaluation]:
        """Return those of the whole and of three parts, one of them empty, where some images are named rightly."""
        logits = wrong[labels]
        logits[right] = np.eye(3, dtype=np.float32)[labels[right]]
        slices = (slice(0, 43), slice(0, 22), slice(22, 22), slice(22, 43))
        return [evaluation_of(logits[part], labels[part]) for part in slices]

    for right in (slice(0, 15), slice(22, 37)):  # of which the means of shares differ by a rounding
        whole, *parts = evaluations(right)
        found = merged(parts)
        assert (found.top1, found.top5, found.count) == (15 / 43, whole.top5, 43)
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)
        assert (found.confusion == whole.confusion).all()


@pytest.mark.once
def test_an_agreement_asks_about_once_a_second_and_whenever_all_know_that_it_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distribution, clock = Distribution.alone(), [500.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert Agreement(distribution).on(1, [15, 0], now=False) == [15, 0]
    distribution.count = 2
    distribution.gather = lambda value: [value, ([0, 1], value[1] / 2)]  # type: ignore[method-assign]
    agreement, asked = Agreement(distribution), []
    for step in range(7001, 7012):  # of a run that goes on, each of a quarter of a second
        if any(agreement.on(step, [15, 0], now=step == 7007)):
            asked.append(step)
        clock[0] += 0.25
    assert asked == [7001, 7002, 7006, 7007, 7011]
    assert agreement.on(7012, [15, 0], now=True) == [15, 1]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others train in several processes")
def test_tensorflow_names_those_that_train_in_several_processes() -> None:
    with pytest.raises(UserError, match=r"2 processes, started by hand: TensorFlow trains in one alone; take JAX"):
        Distribution(Place(0, 2, "127.0.0.1:1"))


@pytest.mark.skipif(BACKEND != "jax", reason="PyTorch has both ways")
def test_jax_has_no_batch_norm_of_one_process() -> None:
    with pytest.raises(UserError, match="synchronizes=False: on JAX a batch norm sees the batch of all devices"):
        Distribution(synchronizes=False)


def test_a_process_alone_is_as_it_was() -> None:
    with Distribution() as distribution:
        assert (distribution.index, distribution.count, distribution.gather("x")) == (0, 1, ["x"])
        assert keras.distribution.distribution() is None


@pytest.mark.skipif(BACKEND != "torch", reason="JAX uses all devices from one process")
def test_a_machine_with_several_cards_gets_as_many_processes_but_to_rehearse(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def execute(_: str, arguments: list[str]) -> None:
        started.append(arguments[1:])
        raise SystemExit

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("os.execv", execute)
    monkeypatch.setattr("sys.argv", ["groupwise", "train", "bars.npz", "--epochs", "3"])
    with pytest.raises(SystemExit), ExitStack() as stack:
        Start(stack, None, True)("torch")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "groupwise"]
    assert started == [[*run, "train", "bars.npz", "--epochs", "3"]]

    rehearsed: list[Path] = []
    monkeypatch.setattr(training, "_rehearse", lambda plan, dataset, folder, tests: rehearsed.append(folder))
    data = str(bars.write_npz(tmp_path / "bars.npz"))
    assert main(["train", data, "--model", tiny, "--backend", "torch", "--output", "run", "--dry-run"]) == 0
    assert (len(rehearsed), len(started)) == (1, 1)
