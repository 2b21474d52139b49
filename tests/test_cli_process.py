"""The command as a process of its own: signals, and what is imported when."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import groupwise
from groupwise.cli import main
from groupwise.training.workspace import Workspace
from tests import tiny as bars

PACKAGES = Path(groupwise.__file__).parents[1]  # the installed package where there is one: it has the C core
COMMAND = [sys.executable, "-c", "import sys; from groupwise.cli import main; sys.exit(main())"]
THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); "
"""Something that a framework does beside Python, such as compiling."""
EPOCHS = 6


def _environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": keras.backend.backend(), **changes}


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_ctrl_c_stops_and_resume_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    bars.write_npz(tmp_path / "bars.npz")
    arguments = ["train", "bars.npz", "--recipe", "digits", "--output", "run", "--epochs", str(EPOCHS)]
    with subprocess.Popen(
        [*COMMAND[:2], THREAD + COMMAND[2], *arguments],
        cwd=tmp_path,
        env=_environment(PYTHONUNBUFFERED="1"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.startswith("groupwise: stopped: ")  # nothing of the framework's own comes before it
    assert f"of {EPOCHS}; go on with: groupwise train bars.npz --output run --resume" in errors
    finished = len(Workspace(tmp_path / "run").read_metrics())
    assert 2 <= finished < EPOCHS
    # The run's own backend is taken, whatever is set now.
    resumed = subprocess.run(
        [*COMMAND, "train", "bars.npz", "--output", "run", "--resume"],
        cwd=tmp_path,
        env={name: value for name, value in _environment().items() if name != "KERAS_BACKEND"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    assert f"epoch {finished + 1}/{EPOCHS}" in resumed.stdout
    assert f"epoch {finished}/{EPOCHS}" not in resumed.stdout
    assert keras.backend.backend() in resumed.stdout
    assert len(Workspace(tmp_path / "run").read_metrics()) == EPOCHS


@pytest.mark.once
def test_bad_arguments_are_refused_before_a_framework_starts(tmp_path: Path) -> None:
    code = "import sys; from groupwise.cli import main; code = main(); sys.exit(code + 10 * ('keras' in sys.modules))"
    for arguments in (
        ["train", "nowhere"],
        ["train", "digits", "--recipe", "x"],
        ["recipe"],
        ["predict", "x", "no.png"],
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=_environment(), text=True, capture_output=True, check=False)
        assert done.returncode == 2, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_a_pipe_that_closes_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("groupwise.cli.application.app", broken)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert main(["models"]) == 1


@pytest.mark.once
def test_ctrl_c_while_the_command_is_imported_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("groupwise.cli.check_installed", interrupt)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "groupwise: stopped\n"
