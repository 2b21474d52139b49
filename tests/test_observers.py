"""What a training tells its observers: a log, lines of text, a file; and how its errors name arguments."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from groupwise.cli.options import option
from groupwise.errors import UserError, argument, naming
from groupwise.training import FileObserver, TextObserver, extend_plan, make_plan, read_plan, train
from groupwise.training.events import Event, Finished, Noted, StepDone
from groupwise.training.stopped import Diverged
from tests import tiny as bars

tiny = bars.tiny
KINDS = [
    *("begun", "reading_begun", "reading_ended", "fit_begun"),
    *(2 * ["step_done", "step_done", "step_done", "step_done", "step_done", "step_done", "epoch_ended"]),
    *("fit_ended", "finished"),
]


def test_each_thing_that_happens_is_an_event(tiny: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    dataset = bars.dataset(tmp_path)
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=2))
    summary = train(plan, dataset, tmp_path / "run", observer=seen.append)
    assert [event.as_dict()["event"] for event in seen] == KINDS  # 96 images in batches of 16
    assert seen[0].dataset is not None
    assert [event.step for event in seen if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6] * 2
    assert seen[-1] == Finished(summary, tmp_path / "run")
    again: list[Event] = []
    longer = extend_plan(read_plan(tmp_path / "run"), 2, 3)
    train(longer, dataset, tmp_path / "run", resume=True, observer=again.append)
    assert [event.as_dict() for event in again][3] == {
        "event": "fit_begun",
        "epochs": 3,
        "steps": 6,
        "finished": 2,
        "first": 0,
    }
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=1), weights=str(tmp_path / "run"))
    begun: list[Event] = []
    train(plan, dataset, tmp_path / "next", observer=begun.append)
    assert any(event.as_dict()["event"] == "weights_taken" for event in begun)


@pytest.mark.once
def test_lines_and_files_say_what_the_console_says(tiny: str, tmp_path: Path) -> None:
    dataset, text = bars.dataset(tmp_path), io.StringIO()
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=2))
    to_text, to_file = TextObserver(text), FileObserver(tmp_path / "log.jsonl")

    def both(event: Event) -> None:
        to_text(event)
        to_file(event)

    train(plan, dataset, tmp_path / "run", observer=both)
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["data", "model", "recipe", "backend", "output"]
    assert lines[5].startswith("epoch 1/2  accuracy ")
    assert lines[-1] == f"{tmp_path / 'run'} holds last.keras, best.keras, metrics.csv, curves.png and report.html"
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == [kind for kind in KINDS if kind != "step_done"]
    assert rows[0]["recipe"]["epochs"] == 2
    assert rows[-3]["numbers"]["epoch"] == 2
    assert all(row["time"].endswith("+00:00") for row in rows)


@pytest.mark.once
def test_a_name_of_others_acts_on_no_observer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from groupwise.training.observers import log

    event, text = Noted("two\nlines \x1b[31m"), io.StringIO()
    TextObserver(text)(event)
    FileObserver(tmp_path / "log.jsonl")(event)
    with caplog.at_level(logging.INFO, "groupwise.training"):
        log(event)
    assert text.getvalue() == "two\\nlines \\x1b[31m\n" == f"{event}\n"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "two\\nlines \\x1b[31m")]
    assert json.loads((tmp_path / "log.jsonl").read_text())["text"] == event.text
    with pytest.raises(UserError, match="there is no folder"):
        FileObserver(tmp_path / "none" / "log.jsonl")


@pytest.mark.once
def test_a_training_that_ends_early_says_so(tiny: str, tmp_path: Path) -> None:
    seen: list[Event] = []
    plan = make_plan(bars.dataset(tmp_path), "x", bars.recipe(learning_rate=1e30, warm_up=0.0))
    with pytest.raises(Diverged):
        train(plan, bars.dataset(tmp_path), tmp_path / "run", observer=seen.append)
    assert [event.as_dict()["event"] for event in seen[-2:]] == ["fit_ended", "ended_early"]
    assert "nothing was kept" in str(seen[-1])


@pytest.mark.once
@pytest.mark.parametrize(
    ("given", "python", "command"),
    [
        (("weights", "runs/a"), "weights=runs/a", "--weights runs/a"),
        (("learning_rate",), "learning_rate", "--learning-rate"),
        (("resume", True), "resume=True", "--resume"),
        (("restart", True), "restart=True", "--schedule restart"),
        (("image_size", (224, 224)), "image_size=(224, 224)", "--image-size 224"),
        (("image_size", (128, 256)), "image_size=(128, 256)", "--image-size 128x256"),
    ],
)
def test_a_sentence_names_an_argument_as_its_reader_writes_it(given: Any, python: str, command: str) -> None:
    assert argument(*given) == python
    with naming(option):
        assert argument(*given) == command
    assert argument(*given) == python
