"""What a network says of a split: its logits, and the counts made of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.data import Dataset, ImageBatches
from groupwise.inference.folding import Folding
from groupwise.inference.matching import match_classes
from groupwise.inference.outputs import predict_logits
from groupwise.inference.preprocessing import make_batches
from groupwise.models.network import Network, RewrittenNetwork

TOP = 5
MOST_KEPT = 2**26
"""Numbers of all logits together, up to which they are kept: 256 MB, as of 67,000 images of 1,000 classes."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network says of each of some images.

    Attributes:
        logits: float32, (n, classes).
        labels: int64, (n,): the classes that the images are said to be of.
        places: int64, (n,): where they stand in their split.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return what several processes found, each of its part of the images, in the split's order."""
    places = np.concatenate([part.places for part in parts])
    order = np.argsort(places, kind="stable")
    logits, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("logits", "labels"))
    return Outputs(logits[order], labels[order], places[order])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a network tells classes apart.

    Attributes:
        confusion: int64, (classes, classes): images of the row's class that were taken for the column's.
        loss: the mean cross-entropy, in nats.
        top1, top5: the share of images whose class is the first, or among the first five.
        outputs: of each image that this process looked at; None where these are of several splits, or more than
            `MOST_KEPT` numbers.
    """

    confusion: NDArray[np.int64]
    loss: float
    top1: float
    top5: float
    outputs: Outputs | None = None

    @property
    def count(self) -> int:
        """How many images there were."""
        return int(self.confusion.sum())

    def per_class(self) -> list[tuple[int, float, float]]:
        """Return (images, recall, precision) of every class; NaN where a share is of nothing."""
        right = np.diag(self.confusion)
        images, taken = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        shares = [np.where(total > 0, right / np.maximum(total, 1), np.nan) for total in (images, taken)]
        return list(zip(images.tolist(), shares[0].tolist(), shares[1].tolist(), strict=True))

    def as_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return it as data for JSON, the classes by name; None where a share is of nothing."""
        classes = [
            {"class": name, "images": images, "recall": _or_none(recall), "precision": _or_none(precision)}
            for name, (images, recall, precision) in zip(class_names, self.per_class(), strict=True)
        ]
        return {
            "images": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "classes": classes,
            "confusion": self.confusion.tolist(),
        }


def _or_none(share: float) -> float | None:
    return None if math.isnan(share) else share


def evaluate(
    model: keras.Model,
    batches: ImageBatches,
    folds: bool = False,
    mirrors: bool = False,
    predict: Callable[[NDArray[np.float32], int], NDArray[np.float32]] | None = None,
) -> Evaluation:
    """Return the evaluation of a model that gives logits (batch, classes) on all images of unshuffled batches.

    Args:
        folds: whether many batches may be worth a copy with batch norms folded (`Folding`).
        mirrors: whether the logits of an image are the mean of its own and those of its mirror image, for twice the
            time: what training with flipped images had in view.
        predict: what gives the logits for at most so many images instead of the model.

    Raises:
        TooManyBroken: too many of the images cannot be read.
    """
    logits, labels = [], []
    folding = Folding(model, len(batches) if folds else 0)
    for index in range(len(batches)):
        images, one_hot = batches.batch(index)
        found = (predict or folding.predict_logits)(images, batches.batch_size)
        if mirrors:
            again = predict or partial(predict_logits, folding.model)
            mirrored = again(np.ascontiguousarray(images[:, :, ::-1]), batches.batch_size)
            found = (found + mirrored) * np.float32(0.5)
        logits.append(found)
        labels.append(one_hot)
    found, classes = np.concatenate(logits), np.concatenate(labels).argmax(axis=1)
    evaluation = evaluation_of(found, classes)
    if found.size > MOST_KEPT:
        return evaluation
    return replace(evaluation, outputs=Outputs(found, classes, np.array(batches.readable_places, np.int64)))


def merged(parts: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of all images, of which each of some evaluations saw a part, perhaps an empty one."""
    parts = [part for part in parts if part.count]
    if len(parts) == 1:
        return parts[0]
    counts = [part.count for part in parts]
    loss = float(np.average([part.loss for part in parts], weights=counts))
    # By whole images: of two epochs with equally many right ones neither is the better, however they are divided.
    top1, top5 = (
        sum(round(getattr(part, name) * part.count) for part in parts) / sum(counts) for name in ("top1", "top5")
    )
    return Evaluation(np.sum([part.confusion for part in parts], axis=0), loss, top1, top5)


def accuracy(network: Network | RewrittenNetwork, dataset: Dataset, batch_size: int) -> float:
    """Return the share of a data set's test images whose class a network names first.

    Raises:
        UserError: the data has classes that the network does not know, or too many of its images are broken.
    """
    split, _ = match_classes(network, dataset)
    batches = make_batches(split, network, batch_size)
    try:
        return evaluate(network, batches).top1
    finally:
        batches.close()


def evaluation_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Evaluation:
    """Return the evaluation of logits (n, classes) against classes (n,); of no images loss and shares are NaN."""
    classes = logits.shape[1]
    if not len(labels):
        return Evaluation(np.zeros((classes, classes), np.int64), math.nan, math.nan, math.nan)
    own = logits[np.arange(len(labels)), labels]
    with np.errstate(invalid="ignore", over="ignore"):  # the loss then says that a logit is infinite
        largest = logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss = float((log_sums - own).mean())
    # A logit that is not a number is never among the first.
    ranks = np.where(np.isfinite(own), (logits > own[:, None]).sum(axis=1), classes)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    return Evaluation(
        confusion,
        loss=loss,
        top1=float((ranks == 0).mean()),
        top5=float((ranks < TOP).mean()),
    )


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of logits (n, classes)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def most_likely(values: NDArray[np.float32], count: int = TOP) -> list[tuple[int, float]]:
    """Return the (class, probability) of an image's most likely classes, the first one first."""
    return [(int(index), float(values[index])) for index in np.argsort(-values, kind="stable")[:count]]
