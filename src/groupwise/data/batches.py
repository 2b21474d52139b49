"""Batches of images for Keras: decoded, augmented and normalised ahead of whoever consumes them."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import keras

from groupwise.data.dataset import Split
from groupwise.data.making import Batch, BatchMaker
from groupwise.data.preprocessing import Preprocessing
from groupwise.data.samples import Decoding, Progress
from groupwise.data.variation import Variation
from groupwise.errors import UserError

AHEAD = 4  # batches that are made before they are asked for
AT_ONCE = 2  # batches that are made at once: the threads of one that ends go on with the next


class ImageBatches(keras.utils.PyDataset):
    """A split as batches (images, labels), for Model.fit, evaluate and predict on every backend.

    Batch i is a pair of float32 arrays: images (batch, height, width, channels), (image / 255 - mean) / std,
    and one-hot labels (batch, num_classes). It depends only on the arguments, the epoch and i; what augmentation makes
    of an image on its place in the epoch and, with mixup and CutMix, on its neighbour in the batch.

    With shuffle, which is for training, every epoch has its own order, all batches have batch_size images
    (what does not fill a last batch is left out of this epoch; a smaller split is one batch), and a broken
    image is replaced by another. Without, the batches hold every readable image once, in the split's
    order; the last one is smaller, as is one that lacks a broken image. Give such batches to fit() with
    shuffle=False: they are shuffled here.

    Where several processes share batches, each asks for a part of every batch (`Decoding.part`): its images, labels and
    augmentation are, to the bit, those of its slice of the whole batch. With shuffle all parts have as many images.
    `Decoding.pieces` gives every batch in several steps, as slices: what is called a batch below is one of these then.

    Args:
        split: the images.
        batch_size: images a batch, all its parts together.
        input_shape: (height, width, channels) of the images wanted, unless `variation` has another size for an epoch;
            the channels are 1 or 3, as the split has them.
        num_classes: the labels' length.
        preprocessing: of the images. For a test, which has no augmentation, every image is decoded at its full size, as
            published accuracies were measured; otherwise a large JPEG may be decoded at a part of it, which is faster.
        variation: how a training varies images, labels and their order; None for a test.
        decoding: on how many threads, and what stays in memory; None for what suits the machine. What stays is uint8,
            of `input_shape` unless `resized_crop` needs more, and is decoded all at once by load(), which len() and
            the first batch call.

    Attributes:
        batch_size: as given.
        epoch: which epoch's batches are given; fit() counts it up after the last of them. Set it, and `first`, to go on
            with an interrupted training.
        first: how many of the epoch's batches were given before; they are left out, this once.
        steps: batches of a whole epoch, the same for all parts.
        seconds_waited: how long all requests together waited for a batch that was not ready. An upper bound
            on what the processor waited: TensorFlow, and JAX far more so, ask while a step still computes.
        failure: the UserError that stopped the batches, else None. (TensorFlow wraps what is raised here.)

    Raises:
        ValueError: an argument is out of its range, or with shuffle the parts of a batch cannot be equal.
        TooManyBroken: from load(), len() and batches: more images are broken than `most_broken` allows, or all, or,
            with shuffle, all of a class.

    Examples:
        >>> import numpy as np
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
        self.batch_size = batch_size
        self._variation = variation or Variation()
        self._maker = BatchMaker(
            split, batch_size, input_shape, num_classes, preprocessing, self._variation, decoding or Decoding()
        )
        self._producers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="batches")
        self._pending: dict[tuple[int, int], Future[Batch]] = {}
        self.epoch = self.first = 0
        self.seconds_waited = 0.0
        self.failure: UserError | None = None
        self._reached_end = False

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The (name, reason) of every image found broken so far, in the split's order."""
        return self._maker.samples.broken

    @property
    def broken_places(self) -> list[int]:
        """The index in the split of every image found broken so far."""
        return self._maker.samples.broken_places

    @property
    def readable_places(self) -> list[int]:
        """The index in the split of every image of a test's batches, in their order, but for those found broken."""
        broken = set(self.broken_places)
        return [place for place in self._maker.division.places() if place not in broken]

    @property
    def seconds_working(self) -> float:
        """Processor time spent on making batches so far, all threads together, load() included."""
        return self._maker.samples.seconds_working

    def load(self, progress: Progress | None = None) -> None:
        """Decode everything that the cache is to hold; a second call does nothing.

        Args:
            progress: called now and then with the number of images decoded and that of all.
        """
        try:
            self._maker.samples.load(progress)
        except UserError as error:
            self.failure = error
            raise

    def images_in(self, batches: int) -> int:
        """Return how many images an epoch's first batches hold, all parts together, a test's broken ones included."""
        return self._maker.division.images_in(batches)

    def close(self) -> None:
        """End the threads; no batch can be had afterwards."""
        self._producers.shutdown(wait=False, cancel_futures=True)
        self._maker.samples.close()

    def __len__(self) -> int:
        """Return the batches that are left of the epoch."""
        return self.steps - self.first

    @property
    def steps(self) -> int:
        self.load()
        return self._maker.division.steps

    def __getitem__(self, index: int) -> Batch:
        """Batch number index of those that are left. Raises UserError where it is empty: Keras would make it a NaN."""
        images, labels = self.batch(index)
        if not len(images):
            raise UserError(f"batch {index} is empty: {self._maker.why_empty(self.first + index)}; use larger batches")
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
                self._pending[key] = self._producers.submit(self._maker.make, *key)
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
