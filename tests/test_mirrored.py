"""Test-time augmentation: an image and its mirror image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.inference import load_network
from groupwise.inference.evaluation import evaluate, evaluation_of
from groupwise.inference.preprocessing import make_batches
from tests import tiny as bars
from tests.test_checkpoints import begin
from tests.test_cli import _backend_of_the_tests, run  # noqa: F401 - a fixture

tiny = bars.tiny


def test_logits_are_the_mean_of_an_image_s_and_its_mirror_image_s(tiny: str, tmp_path: Path, capsys: Any) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "run", bars.recipe(epochs=1))
    network = load_network(tmp_path / "run")
    images = np.stack([dataset.test.read(index) for index in range(30)])
    logits = [
        np.asarray(network.predict_on_batch(np.ascontiguousarray(((each / 255 - 0.5) / 0.5).astype("float32"))))
        for each in (images, images[:, :, ::-1])
    ]
    expected = evaluation_of((logits[0] + logits[1]) / 2, dataset.test.labels)
    batches = make_batches(dataset.test, network, 16)
    found = evaluate(network, batches, mirrors=True)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.top1 == expected.top1
    assert found.loss != pytest.approx(evaluate(network, batches).loss, rel=1e-5)
    batches.close()
    code, output, _ = run(capsys, "evaluate", tmp_path / "run", tmp_path / "bars.npz", "--mirror", "--json")
    assert code == 0
    assert f'"loss": {found.loss}' in output
