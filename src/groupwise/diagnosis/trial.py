"""A model tried on data: batches as it wants them, and what its first epoch reaches."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import keras_private
from groupwise.data import Augmentation, Dataset, ImageBatches, Preprocessing, Split, Variation
from groupwise.diagnosis.observing import around, fresh, kept
from groupwise.diagnosis.outputs import loss_of
from groupwise.diagnosis.subject import BATCHES, Subject, scale_of
from groupwise.errors import UserError
from groupwise.frameworks import FRAMEWORKS
from groupwise.inference.matching import with_classes
from groupwise.models.steps import run_recorded

RATE, MOMENTUM = 0.02, 0.9  # of SGD, where the model has no optimizer


@dataclass(frozen=True)
class Trial:
    """A data set as a model wants it.

    Attributes:
        model: from images to classes. dataset: with the model's classes, if it knows their names.
        batch_size: images a batch.
    """

    model: keras.Model
    dataset: Dataset
    batch_size: int

    @classmethod
    def of(cls, model: keras.Model, dataset: Dataset, batch_size: int) -> "Trial":
        """Return the trial of a model on a data set.

        Raises:
            UserError: the model takes no images, or knows other classes.
        """
        inputs: list[Any] = model.inputs or []
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] not in (1, 3):
            raise UserError(f"model {model.name!r}: takes no images of 1 or 3 channels, the last axis, to try data on")
        names = _metadata(model).get("class_names")
        return cls(model, dataset if names is None else with_classes(dataset, names), batch_size)

    def some(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return the batches that a diagnosis looks at: of images to train on, in an order drawn once.

        Labels are as the loss that the model was compiled with wants them, else one-hot.
        """
        batches = self._batches(self.dataset.train, shuffle=True)
        try:
            pairs = [batches[place] for place in range(min(BATCHES, len(batches)))]
        finally:
            batches.close()
        loss = keras_private.compile_arguments(self.model).get("loss") if self.model.compiled else None
        is_sparse = _of_one_hot(loss) is not loss
        return [(images, labels.argmax(axis=1) if is_sparse else labels) for images, labels in pairs]

    def accuracy_after(self, epochs: int) -> float:
        """Return the accuracy on the test images after some epochs; the model's values stay what they are."""
        subject = Subject(self.model, self.some(), is_random=False)
        model = around(self.model)
        run_recorded(model)
        optimizer = keras.optimizers.SGD(RATE, MOMENTUM) if subject.optimizer is None else fresh(subject.optimizer)
        batches, tests = self._batches(self.dataset.train, shuffle=True), self._batches(self.dataset.test)
        try:
            with kept(self.model):
                is_jitted = FRAMEWORKS[keras.backend.backend()].compiles_training
                model.compile(optimizer, _of_one_hot(loss_of(subject, self.model.outputs[0])), jit_compile=is_jitted)
                model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
                pairs = [tests[place] for place in range(len(tests))]
                hits = [model.predict_on_batch(images).argmax(1) == labels.argmax(1) for images, labels in pairs]
        finally:
            batches.close()
            tests.close()
        return float(np.concatenate(hits).mean())

    def _batches(self, split: Split, shuffle: bool = False) -> ImageBatches:
        height, width, channels = self._shape()
        return ImageBatches(
            split.with_channels(channels),
            self.batch_size,
            (height, width, channels),
            len(self.dataset.class_names),
            self._preprocessing(channels),
            Variation(Augmentation(), shuffle=True) if shuffle else None,
        )

    def _shape(self) -> tuple[int, int, int]:
        height, width, channels = self.model.inputs[0].shape[1:]
        if height is None or width is None:
            height, width = self.dataset.train.read(0).shape[:2]
        return height, width, channels

    def _preprocessing(self, channels: int) -> Preprocessing:
        """Return how the images are prepared: as the metadata say, else for what the model's own layers expect."""
        content = _metadata(self.model).get("preprocessing")
        if content is not None:
            return Preprocessing.of(content, channels)
        if scale_of(self.model) > 1:
            return Preprocessing(mean=(0.0,), std=(1 / 255,), crop=1.0)
        return Preprocessing(mean=(0.5,), std=(0.5,), crop=1.0)


def _metadata(model: keras.Model) -> dict[str, Any]:
    """Return what one of our networks knows of its classes and images; nothing of others."""
    metadata = getattr(model, "metadata", None)
    return metadata if isinstance(metadata, dict) else {}


def _of_one_hot(loss: Any) -> Any:
    """Return a loss that takes labels as the batches have them."""
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return keras.losses.CategoricalCrossentropy(from_logits=loss.from_logits)
    return "categorical_crossentropy" if loss == "sparse_categorical_crossentropy" else loss
