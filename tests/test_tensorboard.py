"""TensorBoard's files, read back by TensorFlow."""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import keras
import pytest

from groupwise.cli import main
from groupwise.errors import UserError
from groupwise.interruption import Interrupted
from groupwise.training import TensorBoardObserver, extend_plan, make_plan, read_plan, tensorboard, train
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_checkpoints import stop_at
from tests.test_cli import _backend_of_the_tests  # noqa: F401 - a fixture

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")

tiny = bars.tiny


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Return the numbers by name and step, as TensorBoard shows them: a start removes what came after its step."""
    from tensorflow.compat.v1.train import summary_iterator
    from tensorflow.core.util.event_pb2 import SessionLog

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in summary_iterator(str(path)):
            if event.session_log.status == SessionLog.START:
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow reads the files")
def test_the_files_hold_what_metrics_csv_does(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "INTERVAL", 0.0)
    dataset, folder = bars.dataset(tmp_path), tmp_path / "run"
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=2))
    with pytest.raises(Interrupted):
        train(plan, dataset, folder, observer=[TensorBoardObserver(folder / "tensorboard"), stop_at(2, 2)])
    longer = extend_plan(read_plan(folder), 1, 3)
    train(longer, dataset, folder, resume=True, observer=TensorBoardObserver(folder / "tensorboard"))
    found, rows = read(folder / "tensorboard"), Workspace(folder).read_metrics()
    for name in rows[0]:
        assert list(found[name]) == [6, 12, 18]
        assert list(found[name].values()) == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert sorted(found["step_loss"]) == list(range(1, 19))


@pytest.mark.once
def test_it_leaves_nothing_of_a_training_that_left_nothing(tiny: str, tmp_path: Path, capsys: Any) -> None:
    data, folder = bars.write_npz(tmp_path / "bars.npz"), tmp_path / "run"
    command = ["train", str(data), "--model", tiny, "--recipe", "digits", "--epochs", "1", "--output", str(folder)]
    assert main([*command, "--log", "tensorboard", "--learning-rate", "1e30", "--set", "warm_up=0"]) == 1
    assert not folder.exists()
    assert main([*command, "--log", "tensorboard"]) == 0
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.once
def test_a_folder_that_cannot_be_written_stops_no_training(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    plan = make_plan(bars.dataset(tmp_path), "bars.npz", bars.recipe(epochs=1))
    observer = TensorBoardObserver(tmp_path / "file" / "tensorboard")
    assert train(plan, bars.dataset(tmp_path), tmp_path / "run", observer=observer).epochs == 1


@pytest.mark.once
def test_what_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r'tensorboardX, which is not installed: pip install "groupwise\[tensorboard\]"'
    ):
        TensorBoardObserver("run")
