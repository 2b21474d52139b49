"""One batch, or one part of it: its images read, varied, mixed and normalised by many threads."""

import math
import time
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.augmentation import Augmentation
from groupwise.data.dataset import Split
from groupwise.data.images import ImageArray
from groupwise.data.places import Division, Order
from groupwise.data.preprocessing import Preprocessing
from groupwise.data.samples import Decoding, Samples
from groupwise.data.variation import Variation, Varying

Batch: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]

LEAST_PIXELS = 2**18  # that are handed to a thread, where they need not be decoded: 256 images of 32x32


class _Varied(NamedTuple):
    image: ImageArray
    label: int
    generator: Generator


class _Sized:
    """What makes images of one size: how they are varied, and normalised."""

    def __init__(
        self, size: tuple[int, int], channels: int, augmentation: Augmentation, preprocessing: Preprocessing
    ) -> None:
        self.shape, pixels = (*size, channels), math.prod(size)
        deviations = np.broadcast_to(np.asarray(preprocessing.std, np.float32), (channels,))
        means = np.broadcast_to(np.asarray(preprocessing.mean, np.float32), (channels,))
        fill = np.rint(255 * means).astype(np.uint8)
        self.varying = Varying(augmentation, size, preprocessing.interpolation, fill)
        # Normalising is x * scale + shift, by whole images: ten times as fast as by pixels of three.
        self._scale, self._shift = (np.tile(values, pixels) for values in (1 / (255 * deviations), -means / deviations))
        self.least = LEAST_PIXELS // pixels

    def normalise(self, pixels: ImageArray | NDArray[np.float32], image: NDArray[np.float32]) -> None:
        """Write an image, in 0..255, normalised to where it belongs."""
        values = image.reshape(-1)
        np.multiply(pixels.reshape(-1), self._scale, out=values)
        values += self._shift


class BatchMaker:
    """Makes any batch of any epoch; the arguments are ImageBatches's.

    Attributes:
        division: of the places into batches.
        samples: the images, by their places in the split.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        preprocessing: Preprocessing,
        variation: Variation,
        decoding: Decoding,
    ) -> None:
        self._split, self._variation, self._shape = split, variation, input_shape
        self.division = Division(len(split), batch_size, variation.shuffle, decoding.part, decoding.pieces)
        self._order = Order(len(split), variation.seed if variation.shuffle else None)
        self._augmentation, channels = variation.augmentation or Augmentation(), input_shape[2]
        self._of_size = cache(lambda size: _Sized(size, channels, self._augmentation, preprocessing))
        smoothing = variation.label_smoothing
        self._one_hot = np.eye(num_classes, dtype=np.float32) * (1 - smoothing) + smoothing / num_classes
        self.samples = self._make_samples(preprocessing, decoding)

    def make(self, epoch: int, index: int) -> Batch:
        """Return this part of a batch of an epoch, without what is broken of a test.

        Raises:
            TooManyBroken: too much is.
        """
        started = time.thread_time()
        places, whole = self.division.part_of(index), self.division.batch(index)
        of_size = self._of_size(self._variation.size_in(epoch) or self._shape[:2])
        images = np.empty((len(places), *of_size.shape), np.float32)
        targets = np.empty((len(places), len(self._one_hot)), np.float32)
        is_there = np.zeros(len(places), bool)

        def fill(chunk: Sequence[int]) -> None:
            varied = [self._varied(epoch, place, of_size.varying) for place in chunk]
            for number, own in enumerate(varied):
                position = chunk[number] - places.start
                if own is not None and 0 <= position < len(places):
                    neighbour = number ^ 1
                    partner = varied[neighbour] if self._augmentation.mixes and neighbour < len(varied) else None
                    targets[position] = self._finish(own, partner, of_size, images[position])
                    is_there[position] = True

        wanted = places
        if self._augmentation.mixes and places:
            # Neighbours in a batch are partners, the last of an odd one has none: no other image is looked at.
            start, stop = places.start - whole.start, places.stop - whole.start
            wanted = whole[start - start % 2 : stop + stop % 2]
        self.samples.in_chunks(fill, wanted, of_size.least if self.samples.in_memory else 1)
        self.samples.spent(time.thread_time() - started)
        return (images, targets) if is_there.all() else (images[is_there], targets[is_there])

    def why_empty(self, index: int) -> str:
        """Return a clause on why a part of a batch holds no image."""
        places = self.division.part_of(index)
        if not places:
            return "it has fewer images than parts"
        return f"{self._split.names[places[0]]} and all others of it are broken"

    def _make_samples(self, preprocessing: Preprocessing, decoding: Decoding) -> Samples:
        size, augmentation = self._shape[:2], self._variation.augmentation
        needed = None if self._variation.shuffle else self.division.places()
        if augmentation is not None and augmentation.resized_crop is not None:
            side = math.ceil(max(size) / augmentation.resized_crop[0] ** 0.5)
            return Samples(self._split, lambda image: image, side, decoding, needed)
        side = None if augmentation is None else math.ceil(max(size) / preprocessing.crop)
        return Samples(self._split, partial(preprocessing.fit, size=size), side, decoding, needed)

    def _varied(self, epoch: int, place: int, varying: Varying) -> _Varied | None:
        """Return an image, varied by itself; of a training another one where it is broken, of a test None."""
        generator = self._variation.generator(epoch, place)
        index = self._order.image_at(epoch, place)
        image = self.samples.image(index)
        while image is None:
            if not self._variation.shuffle:
                return None
            self.samples.refuse_too_many()
            index = int(generator.integers(len(self._split)))
            image = self.samples.image(index)
        return _Varied(varying.vary(image, generator), int(self._split.labels[index]), generator)

    def _finish(
        self, own: _Varied, partner: _Varied | None, of_size: _Sized, image: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Write an image, perhaps mixed, normalised to where it belongs; return its target."""
        pixels: ImageArray | NDArray[np.float32] = own.image
        target: NDArray[np.float32] = self._one_hot[own.label]
        if partner is not None:
            pixels, share = of_size.varying.mix(own.image, partner.image, own.generator)
            target = target * np.float32(1 - share) + self._one_hot[partner.label] * np.float32(share)
        of_size.normalise(pixels, image)
        return target
