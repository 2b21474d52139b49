"""A file of published weights, opened: whose names it has, what network it belongs to, and its values in ours."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError, call
from groupwise.machine import usable_cores
from groupwise.texts import first_few
from groupwise.weights.edits import edits_of
from groupwise.weights.keys import LISTED, recognise
from groupwise.weights.locating import locate
from groupwise.weights.naming import unit_starts
from groupwise.weights.publishers import arguments_of
from groupwise.weights.reading import WeightFile, open_weights
from groupwise.weights.slots import Array, Edit, Shape, Slot, give, slots_of


class Published:
    """Weights that someone published, their keys understood.

    Attributes:
        source: as the user named it.
        file: the open file.
        config: what the hub says of it, empty for other files.
        publisher: whose names the layers have: "timm", "torchvision", "pytorchcv", "legacy", ...
        stem: the file's name without its ending.
        note: a sentence where the file holds other weights besides, or something else, else None.
    """

    def __init__(self, source: str, file: WeightFile, config: Mapping[str, Any], family: str) -> None:
        """Recognise the naming.

        Args:
            family: of the network that the weights are for.

        Raises:
            UserError: the names are unknown, or another family's.
        """
        self.source, self.file, self.config, self.stem = source, file, config, file.path.stem
        self._family = family
        self._naming, self._keys, beside = recognise(source, family, file.shapes)
        self.publisher = self._naming.publisher
        self.note = "; ".join(note for note in (file.note, beside) if note) or None

    def shape(self, slot: str) -> Shape | None:
        """Return the shape of what the file has for a slot of a first unit or outside the stages, else None."""
        layer, role = slot.rsplit(".", 1)
        key = self._find(layer, role, {})
        return None if key is None else self.file.shapes[key]

    def widths(self, part: str) -> set[int]:
        """Return how many output channels a part of the units has in the file."""
        ending = f".{self._naming.parts[part]}.weight"
        shapes = [self.file.shapes[file_key] for key, file_key in self._keys.items() if key.endswith(ending)]
        return {shape[0 if self.file.layout == "OIHW" else -1] for shape in shapes}

    @property
    def num_classes(self) -> int | None:
        """How many classes the file's head tells apart; None where it has no head."""
        shape = self.shape("head.weight")
        if shape is None:
            return None
        return shape[0] if self.file.layout == "OIHW" else shape[-1]

    def arguments(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `create` in which the file's network differs from the one with the `own` ones."""
        return arguments_of(self, self._family, own)

    def load(self, network: keras.Model, complete: keras.Model | None = None) -> str | None:
        """Give a network the file's values; nothing is changed before all keys and shapes are found to fit.

        Args:
            network: built with the arguments that the file's network has.
            complete: the whole network where `network` is a part of it: what only the whole one has is left unread.

        Returns:
            A sentence where the head was left fresh, since the file has no head or one of another size; else None.

        Raises:
            UserError: keys are missing, unexpected or have other shapes; the message lists them.
        """
        slots = slots_of(network)
        whole = network if complete is None else complete
        expected = [slot for slot in slots_of(whole) if slot.layer != "head" or self.num_classes is not None]
        edits = edits_of(self.publisher, self._family, whole)
        found = self._match(expected, edits)
        classes = next((slot.variable.shape[-1] for slot in slots if slot.name == "head.weight"), None)
        note = None
        if classes not in (None, self.num_classes):
            note = f"the head is fresh: {classes} classes here, {self.num_classes or 'none'} in {self.source}"
        wanted = [slot for slot in slots if not (note and slot.layer == "head")]

        def value(slot: Slot) -> Array:
            return self._value(slot, found[slot.name], edits.get(slot.name))

        # Reading and reordering release Python's lock: two threads took 0.6 of one's time.
        with ThreadPoolExecutor(usable_cores()) as pool:
            step = 4 * usable_cores()
            for start in range(0, len(wanted), step):
                batch = wanted[start : start + step]
                for slot, array in zip(batch, pool.map(value, batch), strict=True):
                    give(slot.variable, array)
        return note

    def _value(self, slot: Slot, key: str, edit: Edit | None) -> Array:
        array = self.file.read(key)
        if edit is None or edit.stored_shape is None:
            array = slot.from_file(array, self.file.layout)
        return array if edit is None else np.ascontiguousarray(edit.change(array))

    def _match(self, slots: Iterable[Slot], edits: Mapping[str, Edit]) -> dict[str, str]:
        """Return the file's key of every slot. Raises UserError where keys and slots do not fit each other."""
        starts = unit_starts(slot.layer for slot in slots)
        found: dict[str, str] = {}
        missing: list[str] = []
        misshapen: list[str] = []
        for slot in slots:
            key = self._find(slot.layer, slot.role, starts)
            if key is None:
                names = self._naming.candidates(slot.layer, starts)
                missing.append(f"{names[0]}.{slot.role}" if names else f"{slot.name} (ours)")
                continue
            found[slot.name] = key
            edit = edits.get(slot.name)
            expected = (edit and edit.stored_shape) or slot.stored_shape(self.file.layout)
            if not self._fits(slot, self.file.shapes[key], expected):
                misshapen.append(f"{key} {_text(self.file.shapes[key])} instead of {_text(expected)}")
        taken = set(found.values())
        unexpected = [key for key in self._keys.values() if key not in taken]
        self._refuse(missing, unexpected, misshapen)
        return found

    def _fits(self, slot: Slot, shape: Shape, expected: Shape) -> bool:
        """Return whether a file's shape is the expected one, up to the number of classes in the head."""
        if slot.kind == "dense":
            # Some publishers write a dense layer as a 1x1 convolution.
            shape = shape[:2] if shape[2:] == (1, 1) else shape[2:] if shape[:-2] == (1, 1) else shape
        if slot.layer == "head":
            classes = self.num_classes or 0
            expected = (classes, *expected[1:]) if self.file.layout == "OIHW" else (*expected[:-1], classes)
        return shape == expected

    def _refuse(self, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        texts = [f"{len(keys)} {what}: {first_few(keys, LISTED)}" for what, keys in problems.items() if keys]
        if texts:
            raise UserError(
                f"{self.source} ({self.publisher}'s names) does not fit this network; keys {'; '.join(texts)}. "
                f"Choose the network that the weights belong to ({call('models.list_models')} lists the names)"
            )

    def _find(self, layer: str, role: str, starts: Mapping[int, int]) -> str | None:
        keys = (self._keys.get(f"{name}.{role}") for name in self._naming.candidates(layer, starts))
        return next((key for key in keys if key is not None), None)


@contextlib.contextmanager
def open_published(source: str | Path, family: str) -> Iterator[Published]:
    """Find and open a source of weights for a network of a family, and close it again.

    Args:
        source: as for `locate`.
        family: `Variant.family` of the network.

    Raises:
        UserError: the source cannot be had or read, or its names are not those of this family.
    """
    path, config = locate(source)
    with open_weights(path) as file:
        yield Published(str(source), file, config, family)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"
