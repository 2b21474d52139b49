"""Batches of images for Keras: decoded, augmented and normalised ahead of whoever consumes them."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import keras
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.augmentation import Augmentation, flip_and_crop, random_resized_crop
from groupwise.data.dataset import Split
from groupwise.data.images import ImageArray
from groupwise.data.mixing import cut_mix, mix_up, random_erasing
from groupwise.data.preprocessing import Preprocessing
from groupwise.data.rand_augment import rand_augment
from groupwise.data.samples import Decoding, Progress, Samples
from groupwise.errors import UserError

Batch: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]

AHEAD = 4  # batches that are made before they are asked for
CROP_TRIES = 10


@dataclass(frozen=True)
class Variation:
    """How a training varies what it sees; a test varies nothing.

    Attributes:
        augmentation: how images are varied; None for a test.
        label_smoothing: the share of each label that is spread evenly over all classes, in [0, 1).
        shuffle: whether each epoch has a random order.
        seed: 0 or more; settles order and augmentation.

    Raises:
        ValueError: a value is out of its range.
    """

    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: a share lies in 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a seed is 0 or more")


class ImageBatches(keras.utils.PyDataset):
    """A split as batches (images, labels), for Model.fit, evaluate and predict on every backend.

    Batch i is a pair of float32 arrays: images (batch, height, width, channels), (image / 255 - mean) / std,
    and one-hot labels (batch, num_classes). It depends only on the arguments, the epoch and i.

    With shuffle, which is for training, every epoch has its own order, all batches have batch_size images
    (what does not fill a last batch is left out of this epoch; a smaller split is one batch), and a broken
    image is replaced by another. Without, the batches hold every readable image once, in the split's
    order; the last one is smaller, as is one that lacks a broken image. Give such batches to fit() with
    shuffle=False: they are shuffled here.

    Args:
        split: the images.
        batch_size: images a batch.
        input_shape: (height, width, channels) of the images wanted; the channels are 1 or 3, as the split has them.
        num_classes: the labels' length.
        preprocessing: of the images. For a test, which has no augmentation, every image is decoded at its full size, as
            published accuracies were measured; otherwise a large JPEG may be decoded at a part of it, which is faster.
        variation: how a training varies images, labels and their order; None for a test.
        decoding: on how many threads, and what stays in memory; None for what suits the machine. What stays is uint8,
            at the size wanted unless `resized_crop` needs more, and is decoded all at once by load(), which len() and
            the first batch call.

    Attributes:
        batch_size: as given.
        epoch: which epoch's batches are given; fit() counts it up after the last of them. Set it, and `first`, to go on
            with an interrupted training.
        first: how many of the epoch's batches were given before; they are left out, this once.
        steps: batches of a whole epoch.
        seconds_waited: how long all requests together waited for a batch that was not ready. An upper bound
            on what the processor waited: TensorFlow, and JAX far more so, ask while a step still computes.
        failure: the UserError that stopped the batches, else None. (TensorFlow wraps what is raised here.)

    Raises:
        ValueError: an argument is out of its range.
        TooManyBroken: from load(), len() and batches: more images are broken than `most_broken` allows, or all, or,
            with shuffle, all of a class.

    Examples:
        >>> split = Split(np.arange(10) % 2, ["a"] * 10, lambda index, side: np.zeros((8, 8, 1), np.uint8))
        >>> batches = ImageBatches(split, 4, (8, 8, 1), 2, Preprocessing(mean=(0.5,), std=(0.25,)))
        >>> [images.shape for images, labels in batches]
        [(4, 8, 8, 1), (4, 8, 8, 1), (2, 8, 8, 1)]
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        preprocessing: Preprocessing,
        variation: Variation | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(workers=1)  # no threads of Keras's: these batches are made ahead by their own
        if not len(split):
            raise ValueError("the split has 0 images: batches need at least one")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: a batch has at least one image")
        self._split = split
        self.batch_size = batch_size
        *size, channels = input_shape
        self._image_size: tuple[int, int] = (size[0], size[1])
        self._preprocessing = preprocessing
        self._variation = variation or Variation()
        self._augmentation = self._variation.augmentation or Augmentation()
        # Normalising is x * scale + shift, by whole rows: eight times as fast as by pixels of three.
        deviations = np.broadcast_to(np.asarray(preprocessing.std, np.float32), (channels,))
        means = np.broadcast_to(np.asarray(preprocessing.mean, np.float32), (channels,))
        self._scale = np.tile(1 / (255 * deviations), self._image_size[1])
        self._shift = np.tile(-means / deviations, self._image_size[1])
        self._fill = np.rint(255 * means).astype(np.uint8)
        labels = np.eye(num_classes, dtype=np.float32)
        smoothing = self._variation.label_smoothing
        self._one_hot = labels * (1 - smoothing) + smoothing / num_classes
        self._samples = self._make_samples(decoding or Decoding())
        self._producer = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pending: dict[tuple[int, int], Future[Batch]] = {}
        self.epoch = self.first = 0
        self.seconds_waited = 0.0
        self.failure: UserError | None = None
        self._seconds_mixing = 0.0
        self._reached_end = False

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The (name, reason) of every image found broken so far, in the split's order."""
        return self._samples.broken

    @property
    def broken_places(self) -> list[int]:
        """The index in the split of every image found broken so far."""
        return self._samples.broken_places

    @property
    def seconds_working(self) -> float:
        """Processor time spent on making batches so far, all threads together, load() included."""
        return self._seconds_mixing + self._samples.seconds_working

    def load(self, progress: Progress | None = None) -> None:
        """Decode everything that the cache is to hold; a second call does nothing.

        Args:
            progress: called now and then with the number of images decoded and that of all.
        """
        try:
            self._samples.load(progress)
        except UserError as error:
            self.failure = error
            raise

    def images_in(self, batches: int) -> int:
        """Return how many images an epoch's first batches hold, the broken ones of a test included."""
        return min(batches * self.batch_size, len(self._split))

    def close(self) -> None:
        """End the threads; no batch can be had afterwards."""
        self._producer.shutdown(wait=False, cancel_futures=True)
        self._samples.close()

    def __len__(self) -> int:
        """Return the batches that are left of the epoch."""
        return self.steps - self.first

    @property
    def steps(self) -> int:
        self.load()
        count = len(self._split)
        return max(1, count // self.batch_size) if self._variation.shuffle else math.ceil(count / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """Batch number index of those that are left. Raises UserError where it is empty: Keras would make it a NaN."""
        images, labels = self.batch(index)
        if not len(images):
            named = self._split.names[index * self.batch_size]
            raise UserError(f"batch {index} is empty: {named} and all others of it are broken; use larger batches")
        return images, labels

    def batch(self, index: int) -> Batch:
        """Batch number index of those that are left, also if it is empty."""
        count = self.steps
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index}: there are {len(self)}")
        index += self.first
        started = time.perf_counter()
        self._reached_end = index == count - 1
        last = count if not self._variation.shuffle else 2 * count  # a training goes on with the next epoch
        wanted = [
            (self.epoch + position // count, position % count)
            for position in range(index, min(index + 1 + AHEAD, last))
        ]
        for key in self._pending.keys() - set(wanted):
            self._pending.pop(key).cancel()
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._producer.submit(self._make_batch, *key)
        try:
            return self._pending.pop(wanted[0]).result()
        except UserError as error:
            self.failure = error
            raise
        finally:
            self.seconds_waited += time.perf_counter() - started

    def on_epoch_end(self) -> None:
        """Let the next epoch have another order; `fit` calls it.

        On JAX and PyTorch fit() also looks at a first batch before it starts; that is not counted as an epoch.
        """
        if self._reached_end:
            self.epoch, self.first = self.epoch + 1, 0
        self._reached_end = False

    def _make_samples(self, decoding: Decoding) -> Samples:
        largest = max(self._image_size)
        area = self._augmentation.resized_crop
        if area is not None:
            side = math.ceil(largest / area[0] ** 0.5)
            return Samples(self._split, lambda image: image, side, decoding, self._variation.shuffle)
        prepare = partial(self._preprocessing.fit, size=self._image_size)
        side = None if self._variation.augmentation is None else math.ceil(largest / self._preprocessing.crop)
        return Samples(self._split, prepare, side, decoding, self._variation.shuffle)

    def _make_batch(self, epoch: int, index: int) -> Batch:
        started = time.thread_time()
        # Of all images, whichever are known to be broken by now: what is cached must not matter.
        indices = np.arange(len(self._split))
        if self._variation.shuffle:
            indices = np.random.default_rng((self._variation.seed, epoch)).permutation(indices)
        indices = indices[index * self.batch_size : (index + 1) * self.batch_size]
        generator = np.random.default_rng((self._variation.seed, epoch, index))
        images, labels = self._read(indices, generator)
        varied, targets = self._augment(images, self._one_hot[labels], generator)
        rows = varied.reshape(*varied.shape[:2], len(self._scale))
        normalised = np.multiply(rows, self._scale, dtype=np.float32)
        normalised += self._shift
        self._seconds_mixing += time.thread_time() - started
        return normalised.reshape(varied.shape), targets

    def _augment(
        self, images: ImageArray, targets: NDArray[np.float32], generator: Generator
    ) -> tuple[ImageArray | NDArray[np.float32], NDArray[np.float32]]:
        augmentation = self._augmentation
        if augmentation.flip or augmentation.crop_padding:
            images = flip_and_crop(images, augmentation, generator)
        if augmentation.rand_augment is not None:
            images = rand_augment(images, generator, **augmentation.rand_augment)
        if augmentation.erase:
            images = random_erasing(images, augmentation.erase, self._fill, generator)
        if augmentation.mixup and (not augmentation.cutmix or generator.random() < 0.5):
            return mix_up(images, targets, augmentation.mixup, generator)
        if augmentation.cutmix:
            return cut_mix(images, targets, augmentation.cutmix, generator)
        return images, targets

    def _read(self, indices: NDArray[np.intp], generator: Generator) -> tuple[ImageArray, NDArray[np.int64]]:
        finish = None
        area = self._augmentation.resized_crop
        if area is not None:
            # Drawn before the threads start, so that it does not matter which of them is the first.
            draws = generator.random((len(indices), CROP_TRIES, 4))

            def finish(position: int, image: ImageArray) -> ImageArray:
                return random_resized_crop(
                    image, self._image_size, area, draws[position], self._preprocessing.interpolation
                )

        chosen = [int(index) for index in indices]
        images = self._samples.read(chosen, finish)
        if self._variation.shuffle:
            while any(image is None for image in images):
                chosen = [
                    index if image is not None else int(generator.integers(len(self._split)))
                    for index, image in zip(chosen, images, strict=True)
                ]
                images = self._samples.read(chosen, finish)
        kept = [(index, image) for index, image in zip(chosen, images, strict=True) if image is not None]
        if not kept:
            return np.empty((0, *self._image_size, len(self._fill)), np.uint8), np.empty(0, np.int64)
        return np.stack([image for _, image in kept]), self._split.labels[[index for index, _ in kept]]
