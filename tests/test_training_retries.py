"""A training whose loss is not finite goes back, with a smaller rate, whether or not it is interrupted on its way."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from groupwise.interruption import Interrupted
from groupwise.recipes import recipe_of
from groupwise.training import TextObserver, bookkeeper, read_plan
from groupwise.training.diverging import check_loss
from groupwise.training.events import EndedEarly, Event, Finished, Retried, StepDone
from groupwise.training.plan import Plan
from groupwise.training.stopped import Diverged, StopTraining
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_checkpoints import MANY, assert_same_end, begin, resume
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny
RETRY = replace(MANY, epochs=4, on_nan="retry")


@pytest.fixture
def bursts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets the loss burst at a step of an epoch, both from 0, where the rate is above some."""

    def set_up(epoch: int, step: int, above: float) -> None:
        def check(logs: Any, now: int, done: int) -> None:
            check_loss(logs, now, done)
            if (now, done) == (epoch, step) and plans[-1].learning_rate > above:
                raise StopTraining(f"the loss became nan in epoch {epoch + 1}, step {step + 1}")

        monkeypatch.setattr(bookkeeper, "check_loss", check)

    plans: list[Plan] = []
    initialize = bookkeeper.Bookkeeper.__init__

    def noting(self: Any, session: Any, resumed: Any = None) -> None:
        plans.append(session.run.plan)
        initialize(self, session, resumed)

    monkeypatch.setattr(bookkeeper.Bookkeeper, "__init__", noting)
    return set_up


def test_it_goes_back_to_the_epoch_before_with_a_fifth_of_the_rate(
    tiny: str, tmp_path: Path, bursts: Callable[..., None]
) -> None:
    dataset, folder, seen = bars.dataset(tmp_path), tmp_path / "run", list[Event]()
    begin(dataset, tmp_path / "whole", replace(RETRY, on_nan="stop"))
    bursts(2, 3, above=RETRY.learning_rate / 2)
    # The one newest checkpoint is not where it goes back to.
    summary = begin(dataset, folder, RETRY, observer=seen.append, checkpoint_every="1steps", checkpoints_kept=1)
    assert summary.epochs == 4
    assert [event for event in seen if isinstance(event, Retried)] == [
        Retried("the loss became nan in epoch 3, step 4", 2, RETRY.learning_rate / 5, 1)
    ]
    assert isinstance(seen[-1], Finished)
    assert not [event for event in seen if isinstance(event, EndedEarly)]
    steps = [(event.epoch, event.step) for event in seen if isinstance(event, StepDone)]
    assert steps == [
        (epoch, step) for epoch, last in ((1, 6), (2, 6), (3, 3), (3, 6), (4, 6)) for step in range(1, last + 1)
    ]
    rows, whole = (Workspace(tmp_path / name).read_metrics() for name in ("run", "whole"))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row, other, part in zip(rows, whole, (1, 1, 5, 5), strict=True):
        assert row["learning_rate"] == pytest.approx(other["learning_rate"] / part, rel=1e-6)
    assert rows[1]["loss"] == whole[1]["loss"]
    assert read_plan(folder).retries == 1


@pytest.mark.parametrize("stop_at", [(3, 2, 0), (3, 2, 1)], ids=["before", "after"])
def test_a_run_that_was_interrupted_on_its_way_ends_the_same(
    stop_at: tuple[int, int, int], tiny: str, tmp_path: Path, bursts: Callable[..., None]
) -> None:
    dataset, retried = bars.dataset(tmp_path), list[Event]()
    bursts(2, 3, above=RETRY.learning_rate / 2)
    begin(dataset, tmp_path / "whole", RETRY)

    def stop(event: Event) -> None:
        if isinstance(event, Retried):
            retried.append(event)
        if isinstance(event, StepDone) and (event.epoch, event.step, len(retried)) == stop_at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "parts", RETRY, observer=stop)
    resume(dataset, tmp_path / "parts", observer=stop)
    assert len(retried) == 1
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
    assert read_plan(tmp_path / "parts") == read_plan(tmp_path / "whole")


def test_in_its_first_epoch_it_begins_anew(tiny: str, tmp_path: Path, bursts: Callable[..., None]) -> None:
    dataset = bars.dataset(tmp_path)
    bursts(0, 4, above=RETRY.learning_rate / 100)
    begin(dataset, tmp_path / "run", RETRY, checkpoint_every="1steps")
    assert read_plan(tmp_path / "run").retries == 3
    begin(dataset, tmp_path / "small", replace(RETRY, learning_rate=RETRY.learning_rate / 125, on_nan="stop"))
    assert_same_end(tmp_path / "run", tmp_path / "small")


@pytest.mark.once
def test_after_three_times_it_ends_as_ever(tiny: str, tmp_path: Path, bursts: Callable[..., None], capsys: Any) -> None:
    dataset = bars.dataset(tmp_path)
    bursts(2, 3, above=0)
    with pytest.raises(Diverged, match=r"epoch 3, step 4; .* smaller rate: learning_rate=8e-05"):
        begin(dataset, tmp_path / "run", replace(RETRY, learning_rate=0.05), observer=TextObserver())
    lines = capsys.readouterr().out.splitlines()
    said = (
        "the loss became nan in epoch 3, step 4: the training goes back to the end of epoch 2, with a learning rate up"
    )
    assert [line for line in lines if said in line] == [f"{said} to {rate}" for rate in (0.01, 0.002, 0.0004)]
    assert "epoch 2 of 4" in lines[-1]
    with pytest.raises(Diverged):
        resume(dataset, tmp_path / "run")


@pytest.mark.once
def test_the_command_retries(tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_npz(tmp_path / "bars.npz")
    settings = ("train", "bars.npz", "--model", tiny, "--recipe", "digits", "--epochs", 1, "--set", "warm_up=0")
    code, output, errors = run(capsys, *settings, "--on-nan", "retry", "--learning-rate", 1e30)
    assert code == 1
    assert output.count("the training begins anew, with a learning rate up to") == 3
    assert "smaller rate: --learning-rate 1.6e+27" in errors
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.once
def test_older_plans_and_recipes_do_not_retry(tiny: str, tmp_path: Path) -> None:
    begin(bars.dataset(tmp_path), tmp_path / "run", bars.recipe(epochs=1))
    content = read_plan(tmp_path / "run").as_dict()
    del content["retries"], content["recipe"]["on_nan"]
    assert (Plan.of(content).retries, recipe_of(content["recipe"]).on_nan) == (0, "stop")
