"""Which images a network was trained on and which were held back: a record, and what it says of data that changed."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupwise.data.dataset import IDENTITY_BITS, Dataset, Identities, Split, SplitRule
from groupwise.data.images import BrokenImage
from groupwise.errors import UserError, argument

SIDES = ("train", "validation", "test")
NONE: Identities = np.zeros(0, np.uint64)
_BYTES = IDENTITY_BITS // 8


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """A data set's split as it was when a network was trained on it.

    Attributes:
        rule: that divided the images; None where the data set had test images of its own.
        images: "train", "test" and perhaps "validation" to the identities of their images, sorted.
        earlier: of what the weights that training began with had been trained on.
        unread: of images to train on that could not be read, so that they were not; sorted.
        validation_rule: that took the images for validation from those to train on; None where the data set had some of
            its own, or there are none.
    """

    rule: SplitRule | None
    images: Mapping[str, Identities]
    earlier: Identities = field(default_factory=lambda: NONE)
    unread: Identities = field(default_factory=lambda: NONE)
    validation_rule: SplitRule | None = None

    @property
    def trained(self) -> Identities:
        """The identities of all images that the network has learnt from."""
        return np.union1d(self.images["train"], self.earlier)

    def as_read(self, split: Split, broken: Sequence[int], is_first: bool) -> "SplitRecord":
        """Return the record with what could not be read apart: such files may be repaired or removed.

        Args:
            split: what is trained on.
            broken: the places in it of the images that could not be read.
            is_first: whether nothing was trained on before; otherwise images that were unread so far may still be so,
                and no others.
        """
        train = np.concatenate([self.images["train"], self.unread])
        found = split.take(np.array(broken, np.intp)).identities()
        gone = np.setdiff1d(self.unread, split.identities()) if len(self.unread) else NONE
        is_unread = np.isin(train, np.concatenate([found, gone]))
        if not is_first:
            is_unread &= np.isin(train, self.unread)
        return replace(
            self, images={**self.images, "train": np.sort(train[~is_unread])}, unread=np.sort(train[is_unread])
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON, six bytes an image in base 64."""
        sides = {**self.images, "earlier": self.earlier, "unread": self.unread}
        return {
            "rule": _plain(self.rule),
            "validation_rule": _plain(self.validation_rule),
            "counts": {side: len(images) for side, images in sides.items()},
            "images": {side: _encoded(images) for side, images in sides.items()},
        }

    @staticmethod
    def of(content: Any, place: str, remedy: str) -> "SplitRecord":
        """Return the record that `as_dict` gave.

        Args:
            content: what `as_dict` gave.
            place: where it was found.
            remedy: what can be done where it is damaged.

        Raises:
            UserError: it is.
        """
        try:
            rule, validation_rule = _rule_of(content["rule"]), _rule_of(content.get("validation_rule"))
            sides = {side: _decoded(text) for side, text in content["images"].items()}
            earlier, train, test = sides["earlier"], sides["train"], sides["test"]
            images = {**{side: sides[side] for side in SIDES if side in sides}, "train": train, "test": test}
            return SplitRecord(rule, images, earlier, sides.get("unread", NONE), validation_rule)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{place}: the record in it of the images that were trained on is damaged: {remedy}"
            ) from error


def _plain(rule: SplitRule | None) -> dict[str, float] | None:
    return None if rule is None else {"seed": rule.seed, "test_fraction": rule.share}


def _rule_of(content: Any) -> SplitRule | None:
    return None if content is None else SplitRule(int(content["seed"]), float(content["test_fraction"]))


def _encoded(identities: Identities) -> str:
    high_bytes_first = identities.astype(">u8").view(np.uint8).reshape(-1, 8)
    return base64.b64encode(high_bytes_first[:, -_BYTES:].tobytes()).decode()


def _decoded(text: str) -> Identities:
    values = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, _BYTES)
    padded = np.concatenate([np.zeros((len(values), 8 - _BYTES), np.uint8), values], axis=1)
    return np.sort(padded.view(">u8")[:, 0].astype(np.uint64))


def record_of(dataset: Dataset, earlier: SplitRecord | None = None) -> SplitRecord:
    """Return the record of a training on a data set, from weights that had an earlier one."""
    images = {side: np.sort(split.identities()) for side, split in dataset.splits.items()}
    rule = None if dataset.undivided is None else dataset.rule
    trained = NONE if earlier is None else earlier.trained
    return SplitRecord(rule, images, trained, validation_rule=dataset.validation_rule)


def divided_as_before(dataset: Dataset, record: SplitRecord) -> Dataset:
    """Return a data set divided as the recorded one was, where it has no test images of its own.

    What was trained on stays out of the test.
    """
    if dataset.undivided is None:
        return dataset
    return dataset.divided(record.rule or dataset.rule, record.trained)


def changes_since(dataset: Dataset, record: SplitRecord) -> list[str]:
    """Return sentences on what is other than when the network was trained; read what may have been copied.

    They count the images that came and went, and those that are tested on although they were trained on: moved from
    one side to the other, copied, or tested on by request.
    """
    now = {side: split.identities() for side, split in dataset.splits.items()}
    said = []
    everything, recorded = np.concatenate(list(now.values())), np.concatenate([*record.images.values(), record.unread])
    if np.isin(record.images["train"], everything).any():
        added, removed = _beyond(everything, recorded), _beyond(recorded, everything)
        if added or removed:
            parts = [_counted(count, what) for count, what in ((added, "added"), (removed, "removed")) if count]
            said.append(f"{dataset.name} has changed since the model was trained: {' and '.join(parts)}")
    elif dataset.undivided is not None:
        known = "class, name and size" if dataset.undivided.size else "pixels"
        said.append(f"{dataset.name} is new to the model: by their {known}, none of its images was trained on")
    # An image of the same class, name and size may lie on either side from the beginning.
    seen = np.isin(now["test"], record.trained) & ~np.isin(now["test"], record.images["test"])
    # What is still trained on was copied, or is another image of the same name and size.
    doubtful = seen & np.isin(now["test"], now["train"])
    count_seen = (seen & ~doubtful).sum() + _are_copies(dataset.test, np.flatnonzero(doubtful), dataset.train).sum()
    if count_seen:
        count = f"{count_seen:,} of the {len(seen):,} images that are tested on"
        said.append(f"{count} were trained on: the accuracy is no measure of what the model does with new images")
    return said


def copies_in(dataset: Dataset) -> list[str]:
    """Return a sentence if images of the data set's own test are among those to train on; read those that may be."""
    count = _are_copies(dataset.test, np.arange(len(dataset.test)), dataset.train).sum()
    if not count:
        return []
    return [f"{count:,} of the {len(dataset.test):,} images to test on are also among those to train on"]


def trained_in(split: Split, train: Split, record: SplitRecord) -> NDArray[np.bool_]:
    """Return which images of other data are trained on, (n,); read those that may be.

    Args:
        split: the images.
        train: what a run trains on.
        record: of it, and of what its weights were trained on before.
    """
    identities = split.identities()
    is_trained = np.isin(identities, record.trained)
    doubtful = np.flatnonzero(is_trained & np.isin(identities, train.identities()))
    is_trained[doubtful] = _are_copies(split, doubtful, train)
    return is_trained


def _are_copies(split: Split, indices: NDArray[np.intp], train: Split) -> NDArray[np.bool_]:
    """Return which of these images of a split are also among those to train on."""
    if not len(indices):
        return np.zeros(0, bool)
    places = dict(zip(train.identities().tolist(), range(len(train)), strict=True))
    known = [places.get(identity) for identity in split.identities()[indices].tolist()]
    pairs = zip(indices.tolist(), known, strict=True)
    return np.array([place is not None and _is_copy(split, index, train, place) for index, place in pairs])


def _is_copy(split: Split, index: int, train: Split, place: int) -> bool:
    try:
        return np.array_equal(split.read(index), train.read(place))
    except BrokenImage:
        return False


def held_to(dataset: Dataset, record: SplitRecord) -> tuple[Dataset, list[str]]:
    """Return a data set with the recorded images alone, on their sides, and sentences on what is other.

    Where images that could not be read are gone others stand twice, as they did in their place: epochs stay as long.

    Raises:
        UserError: images to train on are gone, all of a side are, or the data set's own splits are others.
    """
    again = f"begin a new run, from this one's weights with {argument('weights')}"
    had_validation = "validation" in record.images and record.validation_rule is None
    if (dataset.undivided is None) != (record.rule is None) or (dataset.validation is not None) != had_validation:
        raise UserError(f"{dataset.name} has other splits of its own than when the run began: {again}")
    kept: dict[str, Split] = {}
    gone = {}
    sides = {**record.images, "train": np.concatenate([record.images["train"], record.unread])}
    for side, images in sides.items():
        split = _with_side(dataset, side, record)
        identities = split.identities()
        kept[side] = split.take(np.flatnonzero(np.isin(identities, images)))
        gone[side] = _beyond(record.images[side], identities)
        if not len(kept[side]):
            raise UserError(f"{dataset.name} holds none of the run's {side} images any more: {again}")
    if gone["train"]:
        count = f"{gone['train']:,} of the run's images to train on"
        raise UserError(f"{dataset.name} lacks {count}: put them back, or {again}")
    said = []
    present = sum(map(len, dataset.splits.values()))
    added = present - sum(len(split) for split in kept.values())
    removed = sum(gone.values())
    if added:
        said.append(f"{_counted(added, 'added to')} {dataset.name} since: left out; to train on all, {again}")
    if removed:
        said.append(f"{_counted(removed, 'removed from')} {dataset.name} since, which were tested on")
    length = max(len(sides["train"]), len(kept["train"]))
    train = kept["train"].take(np.resize(np.arange(len(kept["train"])), length))
    held = replace(dataset, train=train, test=kept["test"], validation=kept.get("validation"))
    return replace(held, rule=record.rule or dataset.rule, validation_rule=record.validation_rule), said


def _with_side(dataset: Dataset, side: str, record: SplitRecord) -> Split:
    """Return the images of a data set, not divided for validation, among which a side of the record is."""
    if dataset.undivided is not None:
        return dataset.undivided
    split: Split = getattr(dataset, "train" if side == "validation" and record.validation_rule else side)
    return split


def _beyond(some: Identities, others: Identities) -> int:
    """Return how many are in the first and not in the second, copies counted."""
    counts = Counter(some.tolist())
    counts.subtract(others.tolist())
    return sum(count for count in counts.values() if count > 0)


def _counted(count: int, what: str) -> str:
    return f"{count:,} image was {what}" if count == 1 else f"{count:,} images were {what}"
