"""`groupwise serve` as a process of its own, and its page in a browser."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise.cli import main
from groupwise.serving import Limits, open_listener
from tests import processes
from tests import tiny as bars
from tests.driving import Driven, driven
from tests.serving_network import Client, expected, png, served, small_network

tiny = bars.tiny
COMMAND = [sys.executable, "-c", "import sys; from groupwise.cli import main; sys.exit(main())"]


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Give `groupwise serve` at work, and the line that it prints when it is ready."""
    with subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        cwd=folder,
        env=processes.environment(KERAS_BACKEND=keras.backend.backend()),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    network = small_network("mnist_cnn")
    network.save(tmp_path / "m.keras")
    truth = expected(network, seed=1)
    with command(tmp_path, "m.keras", "--port", "0") as (process, line):
        name, _, port = line.partition(" at http://127.0.0.1:")
        assert name == "mnist_cnn", process.communicate()
        client = Client(int(port.split()[0]))
        (guess,) = client.ask("/predict?top=1", body=png(1, (28, 28))).json["top"]
        assert guess["index"] == truth.argmax()
        assert guess["probability"] == pytest.approx(truth.max(), abs=1e-5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "groupwise: stopped\n")


@pytest.mark.once
def test_what_cannot_be_served_is_said_as_predict_says_it(folder_of_models: Path, capsys: Any) -> None:
    for model in ("nowhere.keras", "no-run", "text.keras", "plain.keras"):
        said = []
        for arguments in (["predict", model, "a.png"], ["serve", model, "--port", "0"]):
            assert main(arguments) == 2
            said.append(capsys.readouterr().err)
        assert said[0] == said[1] != ""


@pytest.fixture
def folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with what is no network from images to classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    Path("a.png").write_bytes(png())
    Path("no-run").mkdir()
    Path("text.keras").write_text("no model")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("plain.keras")
    return tmp_path


@pytest.mark.once
def test_where_nothing_can_listen_is_said_before_a_network_is_read(capsys: Any) -> None:
    with open_listener(port=0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "nowhere.keras", "--port", port]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"groupwise: --port {port} of 127.0.0.1: address already in use; choose another, or 0")
    assert main(["serve", "nowhere.keras", "--host", "no.such.host.invalid"]) == 2
    assert "--host no.such.host.invalid: is no address of this machine" in capsys.readouterr().err


def wait_for_cards(page: Driven, count: int) -> None:
    page.wait_for(f"document.querySelectorAll('.card').length === {count} && !document.querySelector('.card.waiting')")


def texts(page: Driven, selector: str) -> list[str]:
    return list(page.value(f"[...document.querySelectorAll('{selector}')].map(part => part.textContent)"))


def pictures(folder: Path, count: int) -> list[Path]:
    """Write pictures of noise, as large as a photograph is on the page."""
    for seed in range(count):
        Path(folder, f"{seed}.png").write_bytes(png(seed))
    return [folder / f"{seed}.png" for seed in range(count)]


@pytest.mark.once
@pytest.mark.skipif(sys.platform == "win32", reason="the browser is spoken to through pipes of POSIX")
def test_images_that_are_dropped_on_the_page_are_named(tiny: str, tmp_path: Path) -> None:
    network = small_network()
    first, second, third = pictures(tmp_path, 3)
    wrong, large = tmp_path / "notes.txt", tmp_path / "large.png"
    wrong.write_text("no image")
    large.write_bytes(bytes(200_000))
    with served(network, Limits(most_bytes=100_000)) as client, driven(tmp_path) as page:
        page.open(f"http://localhost:{client.port}/")
        page.choose("#files", [first])
        wait_for_cards(page, 1)
        truth = expected(network, seed=0)
        order = np.argsort(-truth)
        names = [network.metadata["class_names"][place] for place in order]
        assert texts(page, ".guess .name") == names  # "<b>down</b>" as it is written
        assert texts(page, ".guess .share") == [f"{100 * share:.1f}%" for share in truth[order]]
        assert texts(page, ".card h3") == names[:1]

        page.value("document.querySelector('.as-heat').click()")
        page.wait_for("document.querySelector('.heat').naturalWidth === 384")
        assert page.value("document.querySelector('.heat').alt") == f"Where the network looked for {names[0]}"
        page.value("document.querySelectorAll('.guess')[1].click()")
        page.wait_for("document.querySelectorAll('.guess')[1].getAttribute('aria-pressed') === 'true'")
        assert page.value("document.querySelector('.heat').alt") == f"Where the network looked for {names[1]}"
        assert f"http://localhost:{client.port}/predict?heat_map=true&class={order[1]}" in page.addresses
        assert not page.complaints

        page.drop([second, wrong, third, large])
        wait_for_cards(page, 5)
        assert texts(page, "#count") == ["5 images"]
        said = texts(page, ".card.wrong h3")
        assert said == [
            "The image is too large: 100 kB is the most.",
            "The image cannot be read: not an image of a known format.",
        ]
        own = (f"http://localhost:{client.port}/", f"blob:http://localhost:{client.port}/", "data:")
        assert page.addresses
        assert all(address.startswith(own) for address in page.addresses)
        for width in (390, 1280):
            for dark in (False, True):
                look: Image.Image = page.picture(width, dark)
                assert page.value("document.documentElement.scrollWidth") == width
                assert bool(np.asarray(look)[5, 5].mean() < 60) == dark
        page.value("document.querySelector('#clear').click()")
        assert page.value("document.querySelectorAll('.card').length") == 0
