"""Trainings whose first epochs see small images: of which sizes and pixels, and what they come to."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from groupwise import models
from groupwise.data import Augmentation, Decoding, ImageBatches, Preprocessing, Split, Variation
from groupwise.data.augmentation import random_resized_crop
from groupwise.data.making import BatchMaker
from groupwise.interruption import Interrupted
from groupwise.layers import GroupedConv2D
from groupwise.models.registry import Head
from groupwise.training import extend_plan, make_plan, rehearse
from groupwise.training.events import Begun
from groupwise.training.plan import build_network
from groupwise.training.seed import set_seed
from tests import tiny as bars
from tests.test_checkpoints import assert_same_end, begin, newest, resume, stop_at
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny
RECIPE = bars.recipe(
    epochs=2,
    first_image_size=(4, 4),
    schedule="constant",
    warm_up=0.0,
    weight_decay=0.0,
    augmentation=Augmentation(),
)
"""Images of 4x4 in the first epoch, of 8x8 in the second."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Return a set that will have of each batch whether it is to train on, its epoch, and the size of its images."""
    seen, make = set(), BatchMaker.make

    def watched(maker: BatchMaker, epoch: int, index: int) -> Any:
        images, targets = make(maker, epoch, index)
        seen.add((maker.division.equal, epoch, images.shape[1:3]))
        return images, targets

    monkeypatch.setattr(BatchMaker, "make", watched)
    return seen


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Return a set that will have the sizes of the images that networks compute with, traced or not."""
    seen, call = set(), GroupedConv2D.call

    def watched(layer: GroupedConv2D, inputs: Any, *given: Any, **named: Any) -> Any:
        if layer.name.startswith("stem"):
            seen.add(tuple(inputs.shape[1:3]))
        return call(layer, inputs, *given, **named)

    monkeypatch.setattr(GroupedConv2D, "call", watched)
    return seen


def test_it_equals_fits_of_each_size_and_goes_on_to_the_bit(
    tiny: str, made: set[Any], computed: set[Any], tmp_path: Path
) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "whole", RECIPE)
    # Batches of the next epoch are made ahead.
    assert {batch for batch in made if batch[1] < 2} == {(True, 0, (4, 4)), (True, 1, (8, 8)), (False, 0, (8, 8))}
    assert computed == {(4, 4), (8, 8)}  # and none of unknown size
    weights = bars.weights(tmp_path / "whole" / "last.keras")
    for found, expected in zip(weights, _trained_by_hand(make_plan(dataset, "bars.npz", RECIPE)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    saved = keras.saving.load_model(tmp_path / "whole" / "last.keras", compile=False)
    assert (saved.input_shape, saved.architecture["input_shape"]) == ((None, 8, 8, 1), [8, 8, 1])
    with pytest.raises(ValueError, match="shape"):
        saved(np.zeros((1, 4, 4, 1), "float32"))

    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "parts", RECIPE, observer=stop_at(1, 3))
    with pytest.raises(Interrupted):
        resume(dataset, tmp_path / "parts", observer=stop_at(2, 3))
    assert newest(tmp_path / "parts").step == 6 + 4
    resume(dataset, tmp_path / "parts")
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def _trained_by_hand(plan: Any) -> list[NDArray[np.float32]]:
    """Return the weights after two calls of Keras's fit, of a network made for any size, on Pillow's images."""
    set_seed(0)
    weights = build_network(replace(plan, recipe=replace(plan.recipe, first_image_size=None))).get_weights()
    network = models.create("tiny", input_shape=(None, None, 1), dtype="float32")
    network.set_weights(weights)
    network.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05),
    )
    images, labels = bars.bars(96)
    for epoch, size in enumerate((4, 8)):
        order = np.random.default_rng((0, epoch)).permutation(96)
        small = [Image.fromarray(images[index]).resize((size, size), Image.Resampling.BILINEAR) for index in order]
        pixels = (np.stack([np.asarray(image) for image in small])[..., None] / np.float32(255) - 0.5) / 0.5
        network.fit(pixels, np.eye(3, dtype="float32")[labels[order]], batch_size=16, shuffle=False, verbose=0)
    return network.get_weights()


@pytest.mark.once
@pytest.mark.parametrize(
    ("epochs", "first", "last", "multiple", "sizes"),
    [
        (8, (128, 128), (224, 224), 32, {0: (128, 128), 2: (160, 160), 4: (192, 192), 6: (224, 224)}),
        (8, (16, 16), (32, 32), 8, {0: (16, 16), 2: (24, 24), 6: (32, 32)}),
        (8, (32, 64), (96, 128), 32, {0: (32, 64), 2: (64, 96), 6: (96, 128)}),
        (3, (128, 128), (299, 299), 32, {0: (128, 128), 1: (224, 224), 2: (299, 299)}),
        (2, (128, 128), (224, 224), 32, {0: (128, 128), 1: (224, 224)}),
        (1, (128, 128), (224, 224), 32, {0: (224, 224)}),
        (8, (224, 224), (224, 224), 32, {0: (224, 224)}),
        (8, None, (224, 224), 32, {0: (224, 224)}),
    ],
)
def test_sizes_grow_in_even_stages(epochs: int, first: Any, last: Any, multiple: int, sizes: Any) -> None:
    recipe = bars.recipe(epochs=epochs, image_size=last, first_image_size=first)
    assert recipe.image_sizes(multiple) == sizes


@pytest.mark.once
@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 300), st.sampled_from([1, 4, 32]))
def test_the_last_epoch_has_the_largest_size(epochs: int, first: int, more: int, multiple: int) -> None:
    last = first + more
    recipe = bars.recipe(epochs=epochs, image_size=(last, last), first_image_size=(first, first))
    sizes = recipe.image_sizes(multiple)
    begins = list(sizes)
    assert begins[0] == 0
    assert all(one < other for one, other in pairwise([*begins, epochs]))
    assert all(one < other for one, other in pairwise(sizes.values()))
    assert sizes[begins[-1]] == (last, last)


@dataclass(frozen=True)
class Flat(Head):
    """A head of as many weights as the features have pixels."""

    def logits(self, features: Any, num_classes: int) -> Any:
        return keras.layers.Dense(num_classes, name="head")(keras.layers.Flatten()(features))


@pytest.mark.once
def test_what_cannot_grow_is_refused(tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.variants(), "flat", replace(bars.VARIANT, name="flat", head=Flat()))
    monkeypatch.chdir(tmp_path)
    bars.write_npz(tmp_path / "bars.npz")
    command = ("train", "bars.npz", "--recipe", "digits", "--epochs", 2, "--model")
    for model, size, message in (
        (tiny, "[4, 12]", "first_image_size = (4, 12): grows to image_size=(8, 8), and must not be larger"),
        (tiny, "[0, 4]", "first_image_size = (0, 4): its sides are of at least 1 pixel"),
        (tiny, "4", "first_image_size = 4: must be a list of 2 numbers"),
        (tiny, "[4, 2]", "first_image_size = (4, 2): tiny makes an image 4 times smaller, and needs at least 4x4"),
        ("flat", "[4, 4]", "first_image_size = (4, 4): flat has other weights for images of another size than (8, 8)"),
    ):
        assert message in refusal(capsys, *command, model, "--set", f"first_image_size={size}")
    assert not list(Path("runs").glob("*"))


@pytest.mark.once
def test_a_run_says_when_its_images_grow(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    plan = make_plan(dataset, "bars.npz", replace(RECIPE, epochs=6))
    says = "images of 4x4 from epoch 1, 8x8 from epoch 4"
    rehearsal = rehearse(plan, dataset, observer=lambda _: None)
    assert rehearsal.facts()["sizes"] == says
    assert rehearsal.image_shape == (8, 8, 1)
    seconds = replace(rehearsal, step_seconds=2.0, steps=4).facts()["time"]
    assert "8 seconds for an epoch of 4 steps, 30 seconds for all" in seconds  # three of them are a quarter as long
    begun = Begun(plan, dataset, tmp_path, keras.backend.backend())
    assert f"sizes    {says}" in begun.lines()
    assert "sizes" not in replace(begun, plan=replace(plan, recipe=replace(plan.recipe, epochs=1))).facts()
    assert extend_plan(plan, finished=6, epochs=10).image_sizes == {0: (4, 4), 5: (8, 8)}


def noise(count: int) -> Split:
    images = np.random.default_rng(3).integers(0, 256, (count, 12, 16, 3), np.uint8)
    return Split(np.arange(count) % 2, [str(index) for index in range(count)], lambda index, side: images[index])


def batches_of(augmentation: Augmentation, sizes: dict[int, tuple[int, int]], **decoding: Any) -> list[Any]:
    """Return the (images, labels) of two epochs, pixels as they are."""
    variation = Variation(augmentation, shuffle=True, seed=5, image_sizes=sizes)
    preprocessing = Preprocessing(mean=(0.0,), std=(1 / 255,), crop=1.0)
    batches = ImageBatches(noise(14), 6, (12, 12, 3), 2, preprocessing, variation, Decoding(**decoding))
    found = []
    for _ in range(2):
        found += list(batches)
        batches.on_epoch_end()
    batches.close()
    return found


SHIFTED = Augmentation(flip=True, crop_padding=2, rand_augment={"num_ops": 1}, erase=0.4)


@pytest.mark.once
def test_a_small_image_is_the_large_one_made_smaller() -> None:
    large, growing = batches_of(SHIFTED, {}), batches_of(SHIFTED, {0: (8, 6), 1: (12, 12)})
    for (images, labels), (small, same) in zip(large[:2], growing[:2], strict=True):
        np.testing.assert_array_equal(labels, same)
        for image, found in zip(images, small, strict=True):
            picture = Image.fromarray(np.rint(image).astype(np.uint8)).resize((6, 8), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(found, np.asarray(picture), atol=1e-3)
    for (images, _), (same, _) in zip(large[2:], growing[2:], strict=True):
        np.testing.assert_array_equal(images, same)


@pytest.mark.once
def test_a_resized_crop_has_the_small_size_at_once() -> None:
    found = np.concatenate([images for images, _ in batches_of(Augmentation(resized_crop=(0.3, 0.9)), {0: (8, 6)})[:2]])
    order, split = np.random.default_rng((5, 0)).permutation(14), noise(14)
    for place, image in enumerate(found):
        generator = Variation(seed=5).generator(0, place)
        crop = random_resized_crop(split.read(order[place], None), (8, 6), (0.3, 0.9), generator, "bilinear")
        np.testing.assert_allclose(image, crop, atol=1e-3)


@pytest.mark.once
@pytest.mark.parametrize("augmentation", [replace(SHIFTED, mixup=0.3, cutmix=1.0), Augmentation(resized_crop=(0.3, 1))])
def test_small_images_are_the_same_whoever_makes_them(augmentation: Augmentation) -> None:
    sizes = {0: (8, 6), 1: (12, 12)}
    whole = batches_of(augmentation, sizes, cache=True)
    others = [batches_of(augmentation, sizes, cache=False, workers=3, part=(index, 2)) for index in range(2)]
    for batch, *parts in zip(whole, *others, strict=True):
        for one, *slices in zip(batch, *parts, strict=True):
            np.testing.assert_array_equal(one, np.concatenate(slices))
