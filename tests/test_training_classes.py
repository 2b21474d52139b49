"""Classes of data and of trained weights meet by their names, never by their places."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from groupwise import models
from groupwise.data import load_dataset
from groupwise.errors import UserError
from groupwise.inference.matching import match_classes
from groupwise.models.network import Network
from groupwise.training import make_plan
from groupwise.training.plan import build_network
from groupwise.training.starting import start_from
from tests import tiny as bars
from tests.published import pytorchcv_file

tiny = bars.tiny
CLASSES = ("across", "down", "slant")


def network_of(tmp_path: Path, *class_names: str) -> Network:
    """Return an untrained network for these classes, its head's weights all different."""
    dataset = load_dataset(bars.write_classes(tmp_path / "-".join(class_names), range(3), tuple(class_names)))
    network = build_network(make_plan(dataset, "x", bars.RECIPE))
    head = network.get_layer("head")
    head.set_weights([np.arange(value.size, dtype="float32").reshape(value.shape) for value in head.get_weights()])
    return network


@pytest.mark.once
def test_classes_are_matched_by_name_and_never_by_position(tiny: str, tmp_path: Path) -> None:
    network = network_of(tmp_path, "caf\u00e9 au lait", "down", "slant")

    def labels(*names: str) -> tuple[list[str], str | None]:
        folder = bars.write_classes(tmp_path / "data", range(2), tuple(names))
        dataset = load_dataset(folder, test_fraction=1)
        shutil.rmtree(folder)
        split, note = match_classes(network, dataset)
        known = network.metadata["class_names"]
        return [known[label] for label in split.labels[::2]], note

    assert labels("slant", "down") == (["down", "slant"], None)
    assert labels("Slant", "down") == (["slant", "down"], "the class 'Slant' is the model's 'slant'")
    assert labels("CAFE\u0301_au_lait", "down")[0] == ["caf\u00e9 au lait", "down"]
    for names, says in (
        (("down", "up", "zoo"), "that the model does not know: 'up', 'zoo'. It knows 'caf\u00e9 au lait', 'down'"),
        (("0", "1", "2"), "does not know: '0', '1', '2'; its labels are numbers: the classes' names are needed"),
    ):
        with pytest.raises(UserError, match=says):
            labels(*names)
    network.metadata["class_names"] = ["0", "1", "2"]
    assert labels("2", "1")[0] == ["1", "2"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("classes", "places", "says"),
    [
        (("Down", "across", "slant"), {0: 1, 1: 0, 2: 2}, ""),
        (("across", "slant", "up"), {0: 0, 1: 2}, "; new in the head: 'up'"),
        (("across", "slant"), {0: 0, 1: 2}, ""),
        (("x", "y", "z"), {}, "; the head is fresh, since it knows none of the classes"),
    ],
)
def test_a_head_is_taken_over_class_by_class(
    tiny: str, tmp_path: Path, classes: tuple[str, ...], places: dict[int, int], says: str
) -> None:
    source = network_of(tmp_path / "source", *CLASSES)
    source.save(tmp_path / "source.keras")
    network = network_of(tmp_path, *classes)
    head = network.get_layer("head")
    head.set_weights([np.full_like(value, -1) for value in head.get_weights()])
    assert start_from(network, str(tmp_path / "source.keras")).endswith(f"{tmp_path / 'source.keras'}{says}")
    for value, theirs in zip(head.get_weights(), source.get_layer("head").get_weights(), strict=True):
        for own in range(len(classes)):
            np.testing.assert_array_equal(value[..., own], theirs[..., places[own]] if own in places else -1)


def test_published_heads_are_taken_over_class_by_class(tmp_path: Path) -> None:
    """The file's classes are CIFAR-10's, in their order."""
    path = pytorchcv_file(tmp_path / "weights.npz", "resnext20_16x4d_cifar10")
    kernel = np.load(path)["output.fc.weight"]
    network = models.create("resnext20_16x4d_cifar10", num_classes=10)
    network.metadata["class_names"] = ["Truck", "owl", *(f"class {n}" for n in range(7)), "airplane"]
    fresh = np.array(network.get_layer("head").get_weights()[0])
    assert "; new in the head: 'owl', 'class 0'" in start_from(network, str(path))
    values = network.get_layer("head").get_weights()[0]
    np.testing.assert_array_equal(values[:, [0, 9]], kernel[:, [9, 0]])
    np.testing.assert_array_equal(values[:, 1:9], fresh[:, 1:9])

    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    pairs = {name: torch.tensor(value.transpose(order[value.ndim])) for name, value in np.load(path).items()}
    torch.save({"state_dict": {}, "state_dict_ema": pairs}, tmp_path / "averaged.pth")
    network.get_layer("head").set_weights([fresh, np.zeros(10, "float32")])
    assert "averaged" in start_from(network, str(tmp_path / "averaged.pth"))
    np.testing.assert_array_equal(network.get_layer("head").get_weights()[0], values)

    changes = {"output.fc.weight": kernel[:, :3], "output.fc.bias": np.zeros(3, "float32")}
    path = pytorchcv_file(tmp_path / "three.npz", "resnext20_16x4d_cifar10", **changes)
    network = models.create("resnext20_16x4d_cifar10", num_classes=3)
    network.metadata["class_names"] = ["a", "b", "c"]
    assert "does not name its classes: they are taken in the data's order" in start_from(network, str(path))
    np.testing.assert_array_equal(network.get_layer("head").get_weights()[0], kernel[:, :3])
