"""The command, run in this process: what it prints, where it fails, and what it leaves behind."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import pytest

from groupwise import backends
from groupwise.cli import main
from groupwise.cli.backend import settle_backend
from groupwise.errors import UserError
from groupwise.frameworks import FRAMEWORKS
from groupwise.routing import measuring, tuning
from tests import tiny as bars
from tests.frameworks import on_cpu

tiny = bars.tiny
FAST = ("--epochs", "2", "--batch-size", "16")


@pytest.fixture(autouse=True)
def _backend_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Return the exit code, and what was printed on standard output and standard error."""
    code = main([str(argument) for argument in arguments])
    output, errors = capsys.readouterr()
    assert "Traceback" not in errors
    return code, output, errors


def refusal(capsys: Any, *arguments: object) -> str:
    """Return the one line that refuses the arguments, with exit code 2."""
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert errors.startswith("groupwise: ")
    assert errors.count("\n") == 1
    return errors


def test_train_evaluate_and_predict(tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_folder(tmp_path / "bars", train=60)
    code, output, _ = run(capsys, "train", "bars", "--model", "tiny", "--recipe", "digits", *FAST)
    assert code == 0
    assert "60 images to train on, 30 to test on, 3 classes, grey, of 8x8" in output
    assert "tiny for 8x8 pixels" in output
    assert "epoch 2/2  accuracy" in output
    assert "test accuracy" in output.splitlines()[-3]
    assert Path("runs/bars-tiny/curves.png").exists()

    code, output, _ = run(capsys, "evaluate", "runs/bars-tiny", "bars", "--json")
    result = json.loads(output)
    summary = json.loads(Path("runs/bars-tiny/summary.json").read_text())
    assert (code, result["images"]) == (0, 30)
    assert result["top1"] == pytest.approx(summary["test_accuracy"])
    assert [entry["class"] for entry in result["classes"]] == ["across", "down", "slant"]
    assert Path("runs/bars-tiny/confusion.png").exists()
    assert f"{result['top1']:.2%}" in Path(result["page"]).read_text()
    code, output, _ = run(capsys, "evaluate", "runs/bars-tiny/best.keras", "bars", "--output", "elsewhere")
    assert code == 0
    assert "recall" in output
    assert Path("elsewhere/confusion.png").exists()
    assert output.splitlines()[-1].endswith("more in elsewhere/evaluation.html")

    Path("broken.png").write_bytes(b"")
    code, output, errors = run(capsys, "predict", "runs/bars-tiny", "bars/test/slant", "broken.png", "--json")
    predictions = json.loads(output)
    assert (code, len(predictions)) == (0, 10)
    assert [guess["class"] for guess in predictions[0]["top"]] != []
    assert sum(guess["probability"] for guess in predictions[0]["top"]) == pytest.approx(1, abs=1e-5)
    assert errors == "groupwise: skipped broken.png: empty file\n"
    code, output, _ = run(capsys, "predict", "runs/bars-tiny", "bars/test/across/00*.png")
    assert code == 0
    assert "across" in output

    assert "broken.png: empty file" in refusal(capsys, "predict", "runs/bars-tiny", "broken.png")
    assert "none.png does not exist" in refusal(capsys, "predict", "runs/bars-tiny", "none.png")
    assert "bars/train holds no images" not in refusal(capsys, "predict", "bars", "broken.png")
    colours = bars.write_npz(tmp_path / "colours.npz")
    assert "has classes that the model does not know: '0', '1', '2'; its labels are numbers" in refusal(
        capsys, "evaluate", "runs/bars-tiny", colours
    )
    assert "holds another run" in refusal(
        capsys, "train", "bars", "--model", "tiny", "--output", "runs/bars-tiny", *FAST
    )
    resume = ("train", "bars", "--output", "runs/bars-tiny", "--resume")
    for option, value in (
        *(("batch-size", 8), ("model", "mnist_cnn"), ("recipe", "photos"), ("argument", "dropout=0.5")),
        *(("dtype", "mixed_bfloat16"), ("compile", None)),
    ):
        message = (
            f"--{option} cannot be changed by --resume: the run in runs/bars-tiny goes on as it began; begin a new"
        )
        given = (f"--{option}",) if value is None else (f"--{option}", value)
        assert message in refusal(capsys, *resume, *given)
    assert "--epochs 1: the run has finished 2 epochs" in refusal(capsys, *resume, "--epochs", 1)
    assert "none of the run's 2 epochs is left" in refusal(capsys, *resume, "--schedule", "restart")
    assert "--schedule restart: belongs to --resume" in refusal(capsys, "train", "bars", "--schedule", "restart")
    # What the run has already is no change.
    same = ("--model", "tiny", "--recipe", "digits", "--batch-size", 16, "--image-size", 8, "--seed", 0)
    code, output, _ = run(capsys, *resume, *same, "--epochs", 3, "--schedule", "restart")
    assert code == 0
    assert "epoch 3/3" in output
    assert run(capsys, *resume)[0] == 0  # nothing is left to do
    assert run(capsys, *resume, "auto")[0] == 0
    new = ("train", "bars", "--model", "tiny", "--recipe", "digits", "--epochs", 1, "--output", "runs/new")
    for finished in (False, True):
        code, output, _ = run(capsys, *new, "--resume", "auto")
        assert (code, "epoch 1/1" in output) == (0, not finished)


def test_a_training_that_diverges_ends_with_1(tiny: str, tmp_path: Path, capsys: Any) -> None:
    data, folder = bars.write_npz(tmp_path / "bars.npz"), tmp_path / "run"
    code, _, errors = run(capsys, "train", data, "--model", "tiny", "--learning-rate", "1e30", "--output", folder)
    assert code == 1
    assert "Begin again with a smaller rate" in errors
    assert not folder.exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "digits", "--model", "mnist_cn"), "did you mean mnist_cnn"),
        (("train", "digits", "--recipe", "digit"), "did you mean digits?"),
        (("train", "digits", "--recipe", "none.toml"), "none.toml cannot be read"),
        (("train", "digitz"), "digitz does not exist"),
        (("train", "."), "is empty"),
        (("train", "digits", "--backend", "theano"), "must be one of tensorflow, jax, torch"),
        (("train", "digits", "--epochs", "0"), "'--epochs': "),
        (("train", "digits", "--epochs", "-7"), "-7"),
        (("train", "digits", "--epochs", "many"), "Invalid value for '--epochs'"),
        (("train", "digits", "--epoch", "3"), "No such option: --epoch"),
        (("train", "digits", "--image-size", "big"), "--image-size big: must be one number of pixels"),
        (("train", "digits", "--image-size", "2"), "at least 4x4 pixels"),
        (("train", "digits", "--learning-rate", "-1"), "--learning-rate -1.0: must be positive"),
        (("train", "digits", "--freeze-backbone"), "--freeze-backbone: a backbone of fresh weights is of no use"),
        (("train", "digits", "-a", "convolution"), "must be NAME=VALUE"),
        (("train", "digits", "-a", "convolution=round"), "must be one of dense"),
        (("train", "digits", "-a", "num_classes=3"), "--argument num_classes=3: is no argument of the network's own"),
        (("train", "digits", "-a", "name=x"), "--argument name=x: is no argument of the network's own"),
        (("train", "digits", "-a", "input_shape=3"), "--argument input_shape=3: is no argument of the network's own"),
        (("train", "digits", "-a", "include_top=false"), "argument include_top=False: is no argument of the network's"),
        (("train", "digits", "-a", "dropout=2"), "model 'mnist_cnn' cannot be made with dropout=2: "),
        (("train", "digits", "-a", "dropout=nan"), "model 'mnist_cnn' cannot be made with dropout='nan': "),
        (("train", "digits", "-a", "convolution=[1]"), "model 'mnist_cnn' cannot be made with convolution=[1]: "),
        (("train", "digits", "--seed", "4294967296"), "Invalid value for '--seed'"),
        (("train", "digits", "--batch-size", "100000000000000000000"), "Invalid value for '--batch-size'"),
        (("train", "digits", "--image-size", "99999999"), "there is not enough memory for this"),
        (("train", "digits", "-a", "form=a"), "--argument form='a': mnist_cnn has no such argument; it takes"),
        (("train", "digits", "--weights", "nowhere"), "nowhere does not exist"),
        (("train", "digits", "--resume"), "--resume: say which run to go on with: --output RUN"),
        (("train", "digits", "--resume", "auto"), "--resume auto: say which run to go on with: --output RUN"),
        (("train", "digits", "--checkpoint-every", "often"), "--checkpoint-every often: is no interval; name a time"),
        (("train", "digits", "--resume", "--output", "nowhere"), "holds no run to resume"),
        (("train", "digits", "--on-nan", "pray"), "'--on-nan': 'pray' is not one of 'stop', 'retry'"),
        (("train", "digits", "more"), "unexpected extra argument"),
        (("train", ""), "DATA '': is empty; `--help` says what it takes"),
        (("train", "digits", "--output", " "), "--output ' ': is empty"),
        (("train", "digits", "--recipe", ""), "--recipe '': is empty"),
        (("predict", ".", "a.png", ""), "IMAGE '': is empty"),
        (("convert", "", "resnet50", "--output", "a.keras"), "SOURCE '': is empty"),
        (("evaluate", "nowhere", "digits"), "nowhere does not exist"),
        (("evaluate", "text.keras", "digits"), "is no .keras file"),
        (("predict", ".", "text.keras"), "holds no last.keras"),
        (("describe", "resnext51_32x4d"), "did you mean"),
        (("describe", "resnext50_32x4d", "--image-size", "16"), "at least 32x32 pixels"),
        (("describe", "resnet50", "--channels", "0"), "Invalid value for '--channels'"),
        (("describe", "resnet50", "--classes", "0"), "Invalid value for '--classes'"),
        (("describe", "resnet50", "--image-size", "0"), "--image-size 0: must be one number of pixels"),
        (("describe", "mnist_cnn", "--classes", "99999999999999"), "there is not enough memory for this"),
        (("describe", "mnist_cnn", "-a", "input_shape=null"), "--argument input_shape=null: is no argument"),
        (("models", "nothing*"), "no network's name matches"),
        (("routing",), "name a network, or describe one convolution"),
        (("routing", "--input", "56,56"), "must be height,width,channels"),
        (("routing", "--input", "56,56,100", "--groups", "32"), "groups=32: must divide the 100 input channels"),
        (("tune", "--show", "--clear"), "choose one of --show and --clear"),
        (("tune", "mnist_cnn", "--clear"), "--clear takes no network; leave out mnist_cnn"),
        (("tune", "--image-size", "8"), "--image-size and --argument belong to a network"),
        (("tune", "resnext51_32x4d"), "did you mean"),
        (("tune", "--batch-size", "0"), "--batch-size"),
        (("tune", "--backend", "theano"), "must be one of tensorflow, jax, torch"),
        (("tune", "--clear", "--backend", "theano"), "must be one of tensorflow, jax, torch"),
        (("trian",), "No such command 'trian'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_left(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if "text.keras" in arguments:
        Path("text.keras").write_text("text")
    before = sorted(folder.rglob("*"))
    assert message in refusal(capsys, *arguments)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.once
def test_the_lists(capsys: Any) -> None:
    code, output, _ = run(capsys, "models", "resnext50*")
    assert code == 0
    assert "resnext50_32x4d" in output
    code, output, _ = run(capsys, "recipes")
    assert code == 0
    assert "groupwise train digits" in output
    assert run(capsys, "--version")[1].startswith("groupwise ")
    code, output, _ = run(capsys, "--help")
    assert code == 0
    assert "groupwise train digits" in output


@pytest.mark.once
def test_describe(capsys: Any) -> None:
    code, output, _ = run(capsys, "describe", "mnist_cnn", "-a", "convolution=grouped", "--classes", "7")
    assert code == 0
    assert "1x1" not in output.splitlines()[-1]
    assert " 7 " in output
    assert "trainable parameters" in output


def test_routing(capsys: Any) -> None:
    code, output, _ = run(capsys, "routing", "mnist_cnn", "-a", "convolution=separable")
    assert code == 0
    assert "runs" in output
    assert keras.backend.backend() in output
    code, output, _ = run(capsys, "routing", "--input", "56,56,128", "--groups", "32", "--strides", "2")
    assert code == 0
    assert "32 groups of 4" in output


@on_cpu
def test_tune(tiny: str, cache_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = keras.backend.backend()
    monkeypatch.setattr(measuring, "SUBJECTS", ((5, 8, 8, 4, 3, 1), (5, 4, 6, 1, 1, 1)))
    assert f"nothing that holds here is stored for {backend}" in run(capsys, "tune", "--show")[1]
    assert not cache_folder.exists()
    code, output, errors = run(capsys, "tune", "--batch-size", "2")
    assert (code, errors) == (0, "")
    assert f"measuring 2 kinds of convolution on {backend} {backends.active.version}" in output
    assert "batch 2" in output
    file = cache_folder / f"tuning-{backend}.json"
    assert f"stored in {file}" in output
    rows = [line.split() for line in output.splitlines() if line.startswith((" narrow groups", " dense 1x1"))]
    choices = tuning.read(backend, backends.active.version)
    assert [row[2] for row in rows] == [choice.algorithm for choice in choices.values()]
    assert list(choices) == ["narrow groups", "dense 1x1"]

    code, output, _ = run(capsys, "routing", "--input", "9,9,16", "--groups", "4")
    assert f"runs         {choices['narrow groups'].algorithm}: measured here on 20" in output
    assert str(choices["narrow groups"].date) in output
    code, output, _ = run(capsys, "tune", "tiny", "--image-size", "12")
    assert code == 0
    assert "measuring 2 convolutions" in output
    assert " 6x6x8 -> 8, 3x3, 2 groups, strides 2 2, padding 1 1 1 1 " in output
    code, output, _ = run(capsys, "tune", "--show")
    assert "narrow groups" in output
    assert "6x6x8 -> 8" in output

    before = file.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "choose", interrupted)
        code, _, errors = run(capsys, "tune")
    assert (code, errors) == (
        130,
        "groupwise: stopped: nothing was stored, and what was stored before is as it was\n",
    )
    assert file.read_bytes() == before
    monkeypatch.setenv("GROUPWISE_TUNING", "0")
    assert "ignored as long as GROUPWISE_TUNING is 0" in run(capsys, "tune", "--batch-size", "1")[1]

    assert run(capsys, "tune", "--clear", "--backend", "jax" if backend == "torch" else "torch")[0] == 0
    assert file.exists()
    assert run(capsys, "tune", "--clear")[:2] == (0, f"removed {file}\n")
    assert run(capsys, "tune", "--clear")[:2] == (0, f"nothing is stored in {cache_folder}\n")


@on_cpu
def test_a_tuning_that_does_not_hold_is_measured_again_without_a_word(
    cache_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = keras.backend.backend()
    cache_folder.mkdir()
    tuning.path(backend).write_text("{}")
    with pytest.warns(RuntimeWarning, match="is ignored: the file is damaged"):
        assert "runs" in run(capsys, "routing", "--input", "9,9,16")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert run(capsys, "tune", "mnist_cnn_grouped", "--batch-size", "1")[0] == 0
    assert tuning.read(backend, backends.active.version)
    cache_folder.joinpath("file").write_text("")
    monkeypatch.setenv("GROUPWISE_CACHE", str(cache_folder / "file"))
    assert "cannot be written to: set GROUPWISE_CACHE" in refusal(capsys, "tune")


def test_the_backend_is_the_option_then_the_variable_then_the_file_then_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"jax", "torch"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert settle_backend("torch") == "torch"
    assert os.environ["KERAS_BACKEND"] == "torch"
    assert settle_backend() == "torch"
    monkeypatch.delenv("KERAS_BACKEND")
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert settle_backend() == "torch"
    monkeypatch.delenv("KERAS_BACKEND")
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')
    assert settle_backend() == "jax"  # Keras wrote that file, no user: TensorFlow is not there
    with pytest.raises(UserError, match=r'--backend\) is not installed: pip install "groupwise\[tensorflow\]"'):
        settle_backend("tensorflow")
    installed.clear()
    with pytest.raises(UserError) as error:
        settle_backend()
    assert all(f'pip install "groupwise[{name}]"' in str(error.value) for name in FRAMEWORKS)


@pytest.mark.once
def test_a_file_of_another_keras_model_is_refused(tmp_path: Path, capsys: Any) -> None:
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    message = refusal(capsys, "evaluate", tmp_path / "other.keras", "digits")
    assert "was not written by `groupwise train`" in message


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_command_with_a_word(
    number: signal.Signals, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("groupwise.cli.networks.settle_backend", signalled)
    before = signal.getsignal(number)
    assert run(capsys, "models") == (128 + number, "", "groupwise: stopped\n")
    assert signal.getsignal(number) == before


@pytest.mark.once
@pytest.mark.parametrize(("times", "busy"), [(1, 0.0), (3, 0.0), (1, 0.3)])
def test_a_signal_that_comes_where_python_loses_it_ends_the_command_all_the_same(
    times: int, busy: float, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, start = [times], threading.Thread.start

    def late(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(busy)  # a machine on which a thread takes its time to start

    class Losing:
        def __del__(self) -> None:
            left[0] -= 1
            signal.raise_signal(signal.SIGTERM)

    def signalled(*_: object) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if left[0]:
                Losing()
            time.sleep(0.01)

    monkeypatch.setattr(threading.Thread, "start", late)
    monkeypatch.setattr("groupwise.cli.networks.settle_backend", signalled)
    hook = sys.unraisablehook
    assert run(capsys, "models") == (128 + signal.SIGTERM, "", "groupwise: stopped\n")
    assert sys.unraisablehook == hook


@pytest.mark.once
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to write to")
@pytest.mark.parametrize("arguments", [("models",), ("--help",), ("--version",)])
def test_an_output_that_is_full_is_said(
    arguments: tuple[str, ...], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 2
        assert capsys.readouterr().err == "groupwise: the output: no space left on device\n"
