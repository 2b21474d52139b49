"""Batches: what is in them, in which order, and what becomes of broken images."""

import os
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupwise.data import (
    Augmentation,
    BrokenImage,
    Decoding,
    ImageBatches,
    Preprocessing,
    Split,
    TooManyBroken,
    Variation,
    load_dataset,
    prepare_image,
)
from groupwise.errors import UserError

pytestmark = pytest.mark.once
AS_THEY_ARE = {"mean": (0.0,), "std": (1 / 255,)}  # of pixels, by 255 too large
UNIT = Preprocessing(mean=(0.0,), std=(1.0,))


AUGMENTATION = Augmentation(flip=True, crop_padding=1, rand_augment={"num_ops": 1}, erase=0.3, mixup=0.2, cutmix=1.0)


def numbered_split(count, broken=(), size=(4, 4), classes=2):
    """Image n is all n % 256; those in broken cannot be read."""

    def read(index, smallest_side):
        if index in broken:
            raise BrokenImage(f"image {index}", "truncated")
        return np.full((*size, 1), index % 256, np.uint8)

    return Split(np.arange(count) % classes, [f"image {index}" for index in range(count)], read)


def batches_of(split, batch_size=4, **options):
    preprocessing, variation, decoding = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (Preprocessing, Variation, Decoding)
    )
    assert not options
    return ImageBatches(split, batch_size, (4, 4, 1), 2, replace(preprocessing, **AS_THEY_ARE), variation, decoding)


def numbers(images):
    return [round(value) for value in images[:, 0, 0, 0].tolist()]


def epoch_of(batches):
    return [number for images, _ in batches for number in numbers(images)]


def test_pixels_are_normalised_by_channel():
    split = Split(np.array([0]), ["a"], lambda index, side: np.array([[[0, 255, 51]]], np.uint8))
    batches = ImageBatches(split, 1, (1, 1, 3), 2, Preprocessing(mean=(0.5, 0.25, 0.2), std=(0.25, 0.5, 1.0)))
    images, labels = batches[0]
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(images[0, 0, 0], [-2, 1.5, 0], atol=1e-6)


def test_labels_are_one_hot_and_smoothed():
    split = numbered_split(4)
    np.testing.assert_array_equal(batches_of(split)[0][1], [[1, 0], [0, 1], [1, 0], [0, 1]])
    smoothed = batches_of(split, label_smoothing=0.1)[0][1]
    np.testing.assert_allclose(smoothed, [[0.95, 0.05], [0.05, 0.95]] * 2, rtol=1e-6)


@pytest.mark.parametrize("cache", [True, False, "auto"])
def test_an_evaluation_has_every_image_once_in_order(cache):
    batches = batches_of(numbered_split(10), cache=cache)
    assert len(batches) == 3
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert epoch_of(batches) == epoch_of(batches) == list(range(10))
    with pytest.raises(IndexError):
        batches[3]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_training_is_shuffled_and_can_go_on(cache, workers):
    options = {"shuffle": True, "seed": 5, "augmentation": AUGMENTATION}
    batches = batches_of(numbered_split(22), cache=cache, **options)
    assert len(batches) == 5
    epochs = []
    for _ in range(3):
        epochs.append([(images, labels) for images, labels in batches])
        batches.on_epoch_end()
    resumed = batches_of(numbered_split(22), cache=not cache, workers=workers, **options)
    resumed.epoch = 2
    for (images, labels), (same_images, same_labels) in zip(epochs[2], resumed, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
    assert all(images.shape == (4, 4, 4, 1) for epoch in epochs for images, _ in epoch)


def test_an_epoch_goes_on_after_the_batches_that_were_given():
    whole, rest = (batches_of(numbered_split(20), shuffle=True) for _ in range(2))
    expected = [images for images, _ in whole]
    rest.first = 3
    assert (len(rest), rest.steps) == (2, 5)
    for images, same in zip([images for images, _ in rest], expected[3:], strict=True):
        np.testing.assert_array_equal(images, same)
    with pytest.raises(IndexError, match="batch 2: there are 2"):
        rest.batch(2)
    for batches in (whole, rest):
        batches.on_epoch_end()
    assert (rest.epoch, rest.first, len(rest)) == (1, 0, 5)
    assert epoch_of(rest) == epoch_of(whole)


def test_every_epoch_has_its_own_order():
    batches = batches_of(numbered_split(20), shuffle=True)
    first = epoch_of(batches)
    batches.on_epoch_end()
    second = epoch_of(batches)
    assert sorted(first) == sorted(second) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(range(20))}) == 3
    assert epoch_of(batches_of(numbered_split(20), shuffle=True, seed=1)) not in (first, second)


def test_resized_crops_are_the_same_for_any_number_of_threads():
    noise = np.random.default_rng(0).integers(0, 256, (40, 9, 11, 1), np.uint8)
    split = Split(np.zeros(40, np.int64), ["a"] * 40, lambda index, side: noise[index])
    options = {"shuffle": True, "augmentation": Augmentation(resized_crop=(0.1, 1.0))}
    one, many = (batches_of(split, 20, workers=workers, **options)[0][0] for workers in (1, 4))
    np.testing.assert_array_equal(one, many)
    assert one.std(axis=(1, 2, 3)).min() > 0


def test_a_split_smaller_than_a_batch_is_one_batch():
    assert [len(images) for images, _ in batches_of(numbered_split(3), 8, shuffle=True)] == [3]


@pytest.mark.parametrize("cache", [True, False])
def test_an_evaluation_leaves_broken_images_out(cache):
    batches = batches_of(numbered_split(300, broken=[7, 250]), 64, cache=cache)
    assert epoch_of(batches) == [n % 256 for n in range(300) if n not in (7, 250)]
    assert batches.broken == [("image 7", "truncated"), ("image 250", "truncated")]
    labels = np.concatenate([labels.argmax(axis=1) for _, labels in batches])
    assert labels.tolist() == [n % 2 for n in range(300) if n not in (7, 250)]


@pytest.mark.parametrize("cache", [True, False])
def test_a_training_replaces_broken_images(cache):
    batches = batches_of(numbered_split(200, broken=[7, 150]), 50, cache=cache, shuffle=True)
    seen = epoch_of(batches)
    assert not {7, 150} & set(seen)
    assert len(seen) == 50 * len(batches)
    assert set(map(len, (images for images, _ in batches))) == {50}
    assert len(batches.broken) == 2


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("total", "allowed"), [(8, 2), (32, 8), (200, 10), (1200, 12)])
def test_few_broken_images_are_skipped_and_more_stop(cache, shuffle, total, allowed):
    few = batches_of(numbered_split(total, broken=range(1, 1 + 3 * allowed, 3)), 4, cache=cache, shuffle=shuffle)
    for epoch in range(3):  # uncached, not every epoch meets all
        few.epoch = epoch
        epoch_of(few)
    assert few.failure is None
    many = batches_of(numbered_split(total, broken=range(1, 2 + 3 * allowed, 3)), 4, cache=cache, shuffle=shuffle)
    with pytest.raises(TooManyBroken, match=f"{allowed + 1} of {total} images are broken, more than the {allowed} "):
        epoch_of(many)
    assert isinstance(many.failure, TooManyBroken)


def test_the_message_names_the_first_and_counts_the_rest():
    with pytest.raises(TooManyBroken) as caught:
        batches_of(numbered_split(100, broken=range(50, 63))).load()
    named = "; ".join(f"image {n}: truncated" for n in range(50, 55))
    assert str(caught.value).startswith(
        f"13 of 100 images are broken, more than the 10 that are skipped: {named}; and 8 more; repair "
    )


@pytest.mark.parametrize("cache", [True, False])
def test_a_training_needs_a_readable_image_of_each_class(cache):
    split = numbered_split(60, broken=[7, 50], classes=60)
    split = Split(np.where(split.labels == 7, 1, 0), split.names, split.reader)  # the one image of class 1
    with pytest.raises(TooManyBroken, match="every image of one class is broken: image 7: truncated; repair"):
        epoch_of(batches_of(split, 60, cache=cache, shuffle=True))
    assert len(epoch_of(batches_of(split, 60, cache=cache))) == 58  # a test goes on with the rest
    for total, says in ((1, "the only image is broken: image 0"), (2, "every image is broken: image 0")):
        with pytest.raises(TooManyBroken, match=says):
            epoch_of(batches_of(numbered_split(total, broken=range(total)), cache=cache))


@pytest.mark.parametrize("cache", [True, False])
def test_a_test_batch_of_broken_images_alone_is_empty(cache):
    batches = batches_of(numbered_split(9, broken=[8]), 4, cache=cache)
    images, labels = batches.batch(2)
    assert (images.shape, labels.shape) == ((0, 4, 4, 1), (0, 2))
    with pytest.raises(UserError, match="batch 2 is empty: image 8 and all others"):
        batches[2]  # for Keras, whose evaluate() would give a loss that is no number


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("augmentation", [AUGMENTATION, Augmentation(resized_crop=(0.3, 1.0), mixup=0.5), None])
def test_what_is_cached_does_not_matter(shuffle, augmentation):
    options = {"shuffle": shuffle, "augmentation": augmentation, "seed": 3}
    cached, read_anew, late = (
        batches_of(numbered_split(50, broken=[7, 31, 49]), 8, cache=cache, **options) for cache in (True, False, False)
    )
    late.epoch = 1  # a run resumed, which has not met the broken images yet
    epochs = [[list(batches), batches.on_epoch_end(), list(batches)][::2] for batches in (cached, read_anew)]
    for one, other in zip([*epochs[0][0], *epochs[0][1]], [*epochs[1][0], *epochs[1][1]], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    for one, other in zip(epochs[0][1], late, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(("count", "expected"), [(22, [8, 16]), (5, [5]), (16, [8, 16])])
def test_the_images_of_an_epoch_are_counted(count, expected):
    batches = batches_of(numbered_split(count), 8, shuffle=True)
    counted = np.cumsum([len(images) for images, _ in batches])
    assert [batches.images_in(done + 1) for done in range(len(batches))] == counted.tolist() == expected
    test = batches_of(numbered_split(count), 8)
    assert test.images_in(len(test)) == sum(len(images) for images, _ in test) == count


def test_images_are_decoded_once_if_they_are_cached():
    reads = []
    numbered = numbered_split(30)

    def read(index, smallest_side):
        reads.append(index)
        return numbered.read(index)

    split = Split(numbered.labels, numbered.names, read)
    batches = batches_of(split, cache=True)
    progress = []
    batches.load(lambda done, total: progress.append((done, total)))
    assert progress == sorted(progress)
    assert progress[-1] == (30, 30)
    epoch_of(batches)
    epoch_of(batches)
    assert sorted(reads) == list(range(30))


def test_batches_are_made_ahead():
    count, every, seen = 40, threading.Event(), []

    def slow(index, smallest_side):
        time.sleep(0.02)
        seen.append(index)
        if len(seen) == count:
            every.set()
        return np.zeros((4, 4, 1), np.uint8)

    split = Split(np.zeros(count, np.int64), ["a"] * count, slow)
    batches = batches_of(split, 8, cache=False, workers=8)
    batches[0]
    assert batches.seconds_waited > 0.02
    assert every.wait(60)  # though nobody has asked for the others
    assert 0 < batches.seconds_working < count * 0.02  # sleeping is no work
    batches.close()


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"label_smoothing": 1.0}, {"crop": 0.0}, {"seed": -1}, {"interpolation": "best"}],
)
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        batches_of(numbered_split(4), **options)


def test_files_go_all_the_way(tmp_path):
    for class_name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / class_name).mkdir()
        for number in range(60):
            Image.new("RGB", (40 + number, 50), colour).save(tmp_path / class_name / f"{number}.jpg", quality=95)
    (tmp_path / "red" / "7.jpg").write_bytes(b"")
    split = load_dataset(tmp_path, test_fraction=1.0).test
    batches = ImageBatches(split, 32, (16, 24, 3), 2, UNIT)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert images.shape == (119, 16, 24, 3)
    assert batches.broken == [("red/7.jpg", "empty file")]
    np.testing.assert_allclose(images[:, 8, 12, [2, 0]], labels, atol=0.02)


def test_images_are_decoded_at_their_full_size_for_a_test_alone():
    sides = []

    def read(index, smallest_side):
        sides.append(smallest_side)
        return np.zeros((90, 60, 3), np.uint8)

    split = Split(np.arange(4) % 2, ["a"] * 4, read)
    for augmentation, side in ((None, None), (Augmentation(), 16), (Augmentation(resized_crop=(0.25, 1.0)), 28)):
        next(iter(ImageBatches(split, 4, (14, 14, 3), 2, UNIT, Variation(augmentation))))
        assert set(sides) == {side}
        sides.clear()


@pytest.fixture(scope="module")
def photos():
    folder = os.environ.get("GROUPWISE_TEST_DATA")
    if not folder:
        pytest.skip("GROUPWISE_TEST_DATA names no folder with cifar10-images.zip and imagenet-100-photos.zip")
    return Path(folder)


def test_cifar_as_files(photos):
    dataset = load_dataset(photos / "cifar10-images.zip")
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (50_000, 10_000, 10)
    assert (dataset.image_size, dataset.channels) == ((32, 32), 3)
    batches = ImageBatches(dataset.test, 500, (32, 32, 3), 10, UNIT)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert (labels.sum(axis=0) == 1000).all()
    # The published means of CIFAR-10's channels.
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), [0.4914, 0.4822, 0.4465], atol=0.01)


def test_photos(photos):
    split = load_dataset(photos / "imagenet-100-photos.zip", test_fraction=1.0).test
    batches = ImageBatches(split, 25, (224, 224, 3), 100, UNIT)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert images.shape == (100, 224, 224, 3)
    np.testing.assert_array_equal(labels, np.eye(100))
    assert batches.broken == []
    for index, image in enumerate(images):
        np.testing.assert_array_equal(np.rint(image * 255), prepare_image(split.read(index), (224, 224)))
