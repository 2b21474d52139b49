"""Augmentations do what they are named for, image by image, and the same again from the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupwise.data import Augmentation
from groupwise.data.augmentation import flip_and_crop, random_resized_crop
from groupwise.data.mixing import cut_mix, mix_up, random_erasing
from groupwise.data.rand_augment import OPERATIONS, rand_augment

pytestmark = pytest.mark.once


def random_images(*shape):
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def each(function, images, *arguments, seed=0):
    """Return what a function makes of each image, all by one generator."""
    generator = np.random.default_rng(seed)
    return np.stack([function(image, *arguments, generator) for image in images])


def of_pairs(function, images, labels):
    """Return what a function makes of each image and label and the next ones."""
    generator = np.random.default_rng(0)
    partners = np.roll(np.arange(len(images)), -1)
    mixed = [function(images[i], images[j], 1.0, generator) for i, j in enumerate(partners)]
    shares = np.array([[share] for _, share in mixed], np.float32)
    return np.stack([image for image, _ in mixed]), labels * (1 - shares) + labels[partners] * shares


def test_nothing_by_default():
    images = random_images(5, 6, 7, 3)
    np.testing.assert_array_equal(each(flip_and_crop, images, Augmentation()), images)


def test_flipping_mirrors_half_of_the_images():
    images = random_images(400, 4, 5, 3)
    flipped = each(flip_and_crop, images, Augmentation(flip=True))
    is_mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    is_same = (flipped == images).all(axis=(1, 2, 3))
    assert (is_mirrored ^ is_same).all()
    assert 150 < is_mirrored.sum() < 250


def test_cropping_shifts_by_at_most_the_padding_and_reflects():
    images = random_images(300, 6, 6, 1)
    shifted = each(flip_and_crop, images, Augmentation(crop_padding=2))
    seen = set()
    for image, result in zip(images[..., 0], shifted[..., 0], strict=True):
        reflected = np.pad(image, 2, mode="reflect")
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (reflected[top : top + 6, left : left + 6] == result).all()
        ]
        assert places
        seen.update(places)
    assert len(seen) == 25


@given(st.integers(1, 60), st.integers(1, 60), st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted), st.data())
def test_a_resized_crop_has_the_size_and_shows_nothing_else(height, width, area, data):
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = np.full((height, width, 3), 99, np.uint8)
    crop = random_resized_crop(image, (5, 7), tuple(area), generator, "bilinear")
    assert crop.shape == (5, 7, 3)
    assert (crop == 99).all()


def test_a_resized_crop_shows_a_part_of_the_right_area_and_ratio():
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    generator = np.random.default_rng(0)
    for _ in range(50):
        crop = random_resized_crop(image, (20, 20), (0.25, 0.5), generator, "nearest")
        height = 20 / 19 * (int(crop[-1, 0, 0]) - int(crop[0, 0, 0]))
        width = 20 / 19 * (int(crop[0, -1, 1]) - int(crop[0, 0, 1]))
        assert 0.22 < height * width / 200**2 < 0.55
        assert 0.7 < width / height < 1.4


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_varies_each_image_by_itself(channels):
    images = np.repeat(random_images(1, 16, 16, channels), 64, axis=0)

    def vary(image, generator):
        return rand_augment(image, generator, num_ops=1, magnitude=5)

    varied = each(vary, images)
    assert varied.shape == images.shape
    assert len(np.unique(varied.reshape(64, -1), axis=0)) > len(OPERATIONS) // 2
    np.testing.assert_array_equal(varied, each(vary, images))
    assert (varied != each(vary, images, seed=1)).any()


def test_mixup_blends_pairs_and_their_labels_alike():
    # Image n is all n, and so is the label's first column: both must be blended by the same weights.
    values = np.arange(32)
    images = np.broadcast_to(values[:, None, None, None], (32, 4, 4, 3)).astype(np.uint8)
    labels = np.stack([values, 31 - values], axis=1).astype(np.float32)
    mixed, targets = of_pairs(mix_up, images, labels)
    assert mixed.dtype == targets.dtype == np.float32
    np.testing.assert_allclose(mixed, np.broadcast_to(targets[:, :1, None, None], mixed.shape), rtol=1e-5)
    assert (np.abs(mixed - images) > 0.1).any()
    np.testing.assert_allclose(targets.sum(axis=1), 31, rtol=1e-5)


def test_cutmix_pastes_a_rectangle_and_weighs_the_labels_by_its_area():
    images = np.broadcast_to(np.arange(64)[:, None, None, None], (64, 24, 20, 1)).astype(np.uint8)
    labels = np.eye(64, dtype=np.float32)
    mixed, targets = of_pairs(cut_mix, images, labels)
    assert targets.dtype == np.float32
    for index in range(64):
        is_foreign = mixed[index, ..., 0] != index
        if is_foreign.any():
            rows, columns = (np.flatnonzero(is_foreign.any(axis=axis)) for axis in (1, 0))
            assert is_foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            other = int(mixed[index][is_foreign][0, 0])
            np.testing.assert_allclose(targets[index, other], is_foreign.mean(), rtol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    assert (mixed != images).any()


def test_erasing_fills_rectangles_with_the_colour():
    images = random_images(200, 12, 12, 3) // 2
    colour = np.array([200, 201, 202], np.uint8)
    erased = each(random_erasing, images, 0.5, colour)
    is_changed = (erased != images).any(axis=-1)
    assert (erased[is_changed] == colour).all()
    assert 70 < is_changed.any(axis=(1, 2)).sum() < 130
    assert 0.1 < is_changed[is_changed.any(axis=(1, 2))].mean() < 0.25


@pytest.mark.parametrize(
    "setting",
    [
        {"crop_padding": -1},
        {"resized_crop": (0.0, 1.0)},
        {"resized_crop": (0.9, 0.5)},
        {"mixup": -0.1},
        {"cutmix": -1.0},
        {"erase": 2.0},
        {"rand_augment": {"strength": 3}},
        {"rand_augment": {"magnitude": 11}},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Augmentation(**setting)
