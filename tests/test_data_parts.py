"""Parts of batches: one after the other they are, to the bit, the batch that one process makes."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from groupwise.data import (
    Augmentation,
    BrokenImage,
    Decoding,
    ImageBatches,
    Preprocessing,
    Split,
    TooManyBroken,
    Variation,
)
from groupwise.data.augmentation import flip_and_crop
from groupwise.data.making import BatchMaker
from groupwise.data.places import Order
from groupwise.errors import UserError

pytestmark = pytest.mark.once
AUGMENTATIONS = {
    "none": Augmentation(),
    "flip and crop": Augmentation(flip=True, crop_padding=2),
    "rand-augment": Augmentation(rand_augment={"num_ops": 2}),
    "erasing": Augmentation(erase=0.5),
    "resized crop": Augmentation(resized_crop=(0.2, 1.0), flip=True),
    "mixup": Augmentation(mixup=0.4),
    "cutmix": Augmentation(cutmix=1.0),
    "all": Augmentation(True, 1, (0.3, 1.0), {"num_ops": 1}, erase=0.3, mixup=0.2, cutmix=1.0),
}


def noise(count: int, broken: tuple[int, ...] = (), reads: Counter[int] | None = None) -> Split:
    """Images of noise, in three classes; those in broken cannot be read."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 11, 13, 3), np.uint8)

    def read(index: int, smallest_side: int | None) -> np.ndarray:
        if reads is not None:
            reads[index] += 1
        if index in broken:
            raise BrokenImage(f"image {index}", "truncated")
        return pixels[index]

    return Split(np.arange(count) % 3, [f"image {index}" for index in range(count)], read)


def batches_of(split: Split, batch_size: int, variation: Variation | None, decoding: Decoding) -> ImageBatches:
    return ImageBatches(split, batch_size, (8, 8, 3), 3, Preprocessing(), variation, decoding)


def epochs_of(batches: ImageBatches, count: int = 2) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of some epochs, as a loop over them all, from the first to the last."""
    for _ in range(count):
        for index in range(len(batches)):
            yield batches.batch(index)
        batches.on_epoch_end()
    batches.close()


def assert_parts_make_the_whole(
    split: Split, batch_size: int, variation: Variation | None, parts: int, cache: bool = False
) -> None:
    wholes = epochs_of(batches_of(split, batch_size, variation, Decoding(cache)))
    of_parts = [
        epochs_of(batches_of(split, batch_size, variation, Decoding(not cache, 1 + index % 2, (index, parts))))
        for index in range(parts)
    ]
    for whole, *pieces in zip(wholes, *of_parts, strict=True):
        for expected, given in zip(whole, zip(*pieces, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(given), expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.parametrize(("batch_size", "parts"), [(8, 2), (6, 2), (9, 3), (5, 5)])
def test_parts_of_a_training_are_slices_of_its_batches(augmentation: Augmentation, batch_size: int, parts: int) -> None:
    variation = Variation(augmentation, label_smoothing=0.1, shuffle=True, seed=3)
    split = noise(40, broken=(4, 17, 31))
    assert_parts_make_the_whole(split, batch_size, variation, parts)
    assert_parts_make_the_whole(split, batch_size, variation, parts, cache=True)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("variation", [None, Variation(AUGMENTATIONS["all"])])
def test_parts_of_a_test_hold_every_image_once(variation: Variation | None, parts: int) -> None:
    assert_parts_make_the_whole(noise(23, broken=(2, 22)), 5, variation, parts)


def test_a_part_reads_its_own_images_and_no_others() -> None:
    test, training = Counter[int](), Counter[int]()
    for index in range(3):
        list(epochs_of(batches_of(noise(20, reads=test), 8, None, Decoding(True, None, (index, 3)))))
        variation, decoding = Variation(Augmentation(), shuffle=True), Decoding(False, None, (index, 3))
        maker = BatchMaker(noise(18, reads=training), 6, (8, 8, 3), 3, Preprocessing(), variation, decoding)
        for batch in range(maker.division.steps):
            maker.make(0, batch)
    assert test == Counter(range(20))
    assert training == Counter(range(18))


def test_an_image_is_varied_by_its_place_in_the_epoch_alone() -> None:
    """Batches of another size hold the same images in the same order, each varied in the same way."""
    variation = Variation(AUGMENTATIONS["flip and crop"], shuffle=True, seed=9)
    of_size = [epochs_of(batches_of(noise(24), size, variation, Decoding())) for size in (24, 4)]
    whole, small = (np.concatenate([images for images, _ in batches]) for batches in of_size)
    np.testing.assert_array_equal(whole, small)


def test_a_place_has_the_same_random_numbers_wherever_they_are_drawn() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    variation = Variation(Augmentation(flip=True, crop_padding=1), shuffle=True)
    drawn = [
        [flip_and_crop(image, variation.augmentation, variation.generator(epoch, place)) for place in range(50)]
        for epoch in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (np.array(drawn[0]) != np.array(drawn[2])).any()


def test_steps_and_images_count_the_whole_batches() -> None:
    training, test = (
        batches_of(noise(22), 6, variation, Decoding(part=(1, 2))) for variation in (Variation(shuffle=True), None)
    )
    assert (training.steps, test.steps) == (3, 4)
    assert [training.images_in(count) for count in (1, 3)] == [6, 18]
    assert [test.images_in(count) for count in (1, 4)] == [6, 22]
    assert [len(images) for images, _ in epochs_of(training, 1)] == [3, 3, 3]
    assert [len(images) for images, _ in epochs_of(test, 1)] == [3, 3, 3, 2]


@pytest.mark.parametrize(
    ("count", "batch_size", "part", "says"),
    [
        (
            40,
            10,
            (0, 4),
            "batch_size=10: a batch cannot be divided into 4 equal parts; take a multiple of 4, such as 8",
        ),
        (40, 3, (0, 4), "such as 4"),
        (10, 64, (0, 4), "batch_size=64: the 10 images, one batch, cannot be .* such as 8"),
        (3, 64, (0, 4), r"part=\(0, 4\): 3 images are too few for 4 parts"),
        (40, 8, (2, 2), r"part=\(2, 2\): must be \(index, count\)"),
        (40, 8, (0, 0), r"part=\(0, 0\): must be"),
    ],
)
def test_a_training_that_cannot_be_shared_equally_is_refused(
    count: int, batch_size: int, part: tuple[int, int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        batches_of(noise(count), batch_size, Variation(shuffle=True), Decoding(part=part))


def test_an_empty_part_of_a_test_is_empty_and_no_broken_image() -> None:
    batches = batches_of(noise(9), 4, None, Decoding(part=(0, 4)))
    assert batches.batch(2)[0].shape == (0, 8, 8, 3)
    with pytest.raises(UserError, match="batch 2 is empty: it has fewer images than parts; use larger"):
        batches[2]


def test_a_training_of_broken_images_ends() -> None:
    batches = batches_of(noise(6, broken=tuple(range(6))), 4, Variation(shuffle=True), Decoding(cache=False))
    with pytest.raises(TooManyBroken):
        batches.batch(0)


def test_an_order_is_drawn_once_an_epoch_in_four_bytes_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(100_000, seed=54321)
    drawn = []
    default_rng = np.random.default_rng

    def noting(seed: tuple[int, ...]) -> np.random.Generator:
        if seed[0] == 54321:  # batches of other tests may still be made ahead
            drawn.append(seed)
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", noting)
    seen = [[order.image_at(epoch, place) for place in range(50)] for epoch in (0, 1, 0, 1, 2)]
    assert drawn == [(54321, epoch) for epoch in range(3)]
    assert seen[0] == seen[2] != seen[1] == seen[3] != seen[4]
    assert order._of_epoch(0).nbytes == 400_000
    assert sorted(order._of_epoch(0)) == list(range(100_000))
