"""What is found in a network's outputs, against numbers computed by hand; and images that look alike."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from groupwise.data import BrokenImage, Split
from groupwise.errors import UserError
from groupwise.inference.evaluation import Outputs, joined
from groupwise.report.doubles import find_doubles
from groupwise.report.findings import Pair, calibration_of, confused_pairs, guesses_of, suspect_labels

pytestmark = pytest.mark.once


def outputs(probabilities: Any, labels: Any) -> Outputs:
    """Return outputs that stand for some probabilities, of images in the reverse order of their split."""
    shares = np.asarray(probabilities, np.float32)
    return Outputs(np.log(shares), np.asarray(labels, np.int64), np.arange(len(shares))[::-1].copy())


def test_guesses() -> None:
    found = guesses_of(outputs([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.1, 0.5, 0.4]], [0, 0, 2]))
    assert found.guesses.tolist() == [0, 2, 1]
    assert found.right.tolist() == [True, False, False]
    np.testing.assert_allclose(found.confidences, [0.7, 0.6, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.own, [0.7, 0.1, 0.4], rtol=1e-6)
    assert found.places.tolist() == [2, 1, 0]


def test_mistakes_and_doubtful_hits_in_their_order() -> None:
    shares = [[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.3, 0.7], [0.4, 0.6], [0.6, 0.4]]
    found = guesses_of(outputs(shares, [1, 1, 1, 0, 1, 0]))
    # Wrong: 0, 1 and 2 (1 taken for 0, with 0.9, 0.8 and 0.95) and 3 (0 taken for 1, with 0.7). Right: 4 and 5, alike.
    assert found.mistakes(10, of_a_pair=10) == [2, 0, 1, 3]
    assert found.mistakes(10, of_a_pair=2) == [2, 0, 3]
    assert found.mistakes(1, of_a_pair=2) == [2]
    assert found.doubtful_hits(10) == [4, 5]
    assert found.doubtful_hits(1) == [4]


def test_the_calibration_error_by_hand() -> None:
    shares = [[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45], [0.6, 0.4]]
    found = calibration_of(guesses_of(outputs(shares, [0, 1, 0, 0, 0])), bins=10)
    # Half of those of 0.95 are right, all of the others; what lies on an edge belongs to the bin below it.
    assert [one.images for one in found.bins] == [3, 2]
    assert [one.accuracy for one in found.bins] == [1.0, 0.5]
    assert found.bins[0].confidence == pytest.approx((0.55 + 0.55 + 0.6) / 3)
    expected = 3 / 5 * (1 - (0.55 + 0.55 + 0.6) / 3) + 2 / 5 * (0.95 - 0.5)
    assert found.error == pytest.approx(expected)
    assert found.confidence == pytest.approx((0.95 * 2 + 0.55 * 2 + 0.6) / 5)
    assert found.accuracy == 0.8


def test_a_network_that_is_always_sure() -> None:
    found = calibration_of(
        guesses_of(Outputs(np.array([[99, 0], [99, 0]], np.float32), np.array([0, 0]), np.arange(2)))
    )
    assert (found.error, [one.high for one in found.bins]) == (0, [1.0])


def test_confused_pairs() -> None:
    confusion = np.array([[5, 2, 0], [2, 1, 1], [3, 0, 7]])
    pairs = [Pair(2, 0, 3, 0.3), Pair(1, 0, 2, 0.5), Pair(0, 1, 2, 2 / 7), Pair(1, 2, 1, 0.25)]
    assert confused_pairs(confusion, 10) == pairs
    assert confused_pairs(confusion, 2) == pairs[:2]
    assert confused_pairs(np.eye(3, dtype=np.int64), 2) == []


def confident_learning(shares: NDArray[np.float64], labels: NDArray[np.int64]) -> set[int]:
    """Return the images off the diagonal of the confident joint, as arXiv 1911.00068 defines it in section 3.1."""
    thresholds = [shares[labels == label, label].mean() for label in range(shares.shape[1])]
    suspects = set()
    for image, label in enumerate(labels):
        counted = [other for other in range(shares.shape[1]) if shares[image, other] >= thresholds[other]]
        if counted and max(counted, key=lambda other: shares[image, other]) != label:
            suspects.add(image)
    return suspects


def test_suspect_labels_are_those_off_the_diagonal_of_the_confident_joint() -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 4, 300)
    logits = generator.normal(size=(300, 4)) + 4 * np.eye(4)[labels]
    wrong = generator.choice(300, 20, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 4
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = suspect_labels(Outputs(logits.astype(np.float32), labels, np.arange(300)))
    # cleanlab leaves alone what the network itself takes for its label.
    expected = {image for image in confident_learning(shares, labels) if shares[image].argmax() != labels[image]}
    assert set(found) == expected
    assert len(set(found) & set(wrong.tolist())) > 10
    others = np.where(np.eye(4)[labels] > 0, -1, shares).max(axis=1)
    margins = shares[np.arange(300), labels] - others
    np.testing.assert_array_equal(margins[found], np.sort(margins[found]))


def test_without_another_class_no_label_is_suspect() -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    assert suspect_labels(outputs([[0.1, 0.9], [0.2, 0.8]], [0, 0])) == []


def test_what_processes_found_is_joined_in_the_order_of_the_split() -> None:
    parts = [outputs([[0.5, 0.5]] * 2, [0, 1]), Outputs(np.zeros((1, 2), np.float32), np.array([1]), np.array([5]))]
    parts[0].places[:] = [7, 2]
    whole = joined(parts)
    assert (whole.places.tolist(), whole.labels.tolist()) == ([2, 5, 7], [1, 1, 0])
    np.testing.assert_allclose(whole.logits[:, 0], [np.log(0.5), 0, np.log(0.5)])


def photos(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Return smooth random pictures, each another one."""
    noise = np.random.default_rng(seed).integers(0, 255, (count, 12, 12, 3), np.uint8)
    return [np.asarray(Image.fromarray(one).resize((64, 48), Image.Resampling.BICUBIC)) for one in noise]


def split_of(images: list[NDArray[np.uint8] | None]) -> Split:
    """Return images as a split; None is a broken one."""

    def read(index: int, _: int | None) -> NDArray[np.uint8]:
        image = images[index]
        if image is None:
            raise BrokenImage(str(index), "broken")
        return image

    return Split(np.zeros(len(images), np.int64), [f"{index}.png" for index in range(len(images))], read)


def test_doubles_are_found_though_scaled_and_brightened() -> None:
    pytest.importorskip("imagehash", reason="imagehash is not installed")
    trained, tested = photos(40, seed=1), photos(10, seed=2)
    copy = Image.fromarray(trained[17]).resize((40, 30)).filter(ImageFilter.GaussianBlur(1)).resize((90, 70))
    tested[3] = np.asarray(copy.point(lambda value: min(255, value + 12)))
    tested[6] = trained[5]
    flat = np.full((48, 64, 3), 200, np.uint8)
    told: list[tuple[int, int]] = []
    found = find_doubles(
        split_of([*tested, flat, None]),
        split_of([*trained, flat, None]),
        lambda done, total: told.append((done, total)),
    )
    assert [(double.test, double.train) for double in found] == [(3, 17), (6, 5)]
    assert [double.distance for double in found] == [0, 0]
    assert told[-1] == (54, 54)
    assert find_doubles(split_of(list(tested)), split_of([])) == []


@pytest.mark.parametrize(
    ("package", "look"),
    [
        ("cleanlab", lambda: suspect_labels(outputs([[0.5, 0.5]], [0]))),
        ("imagehash", lambda: find_doubles(split_of([]), split_of([]))),
    ],
)
def test_what_an_extra_brings_is_named(
    package: str, look: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf'needs {package}, .*pip install "groupwise\[report\]"'):
        look()
