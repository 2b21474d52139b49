"""A file of published weights, opened: whose names it has, what network it belongs to, and its values in ours."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError
from groupwise.machine import usable_cores
from groupwise.weights.edits import edits_of
from groupwise.weights.files import WeightFile, open_weights
from groupwise.weights.naming import NAMINGS, Naming, unit_starts
from groupwise.weights.publishers import arguments_of
from groupwise.weights.slots import Array, Edit, Shape, Slot, give, slots_of
from groupwise.weights.sources import locate

ROLES = {
    "weight": ("weight", "kernel", "depthwise_kernel", "gamma", "W"),
    "bias": ("bias", "beta", "b"),
    "running_mean": ("running_mean", "moving_mean", "mean.EMA"),
    "running_var": ("running_var", "moving_variance", "variance.EMA"),
}
"""PyTorch's words for the last part of a key, and what Keras and tensorpack call the same."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every key."""

NO_WEIGHTS = ("num_batches_tracked",)
LISTED = 8


class Published:
    """Weights that someone published, their keys understood.

    Attributes:
        source: as the user named it.
        file: the open file. config: what the hub says of it, empty for other files.
        publisher: whose names the layers have: "timm", "torchvision", "pytorchcv", "legacy", ...
        stem: the file's name without its ending.
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
        self._keys = canonical_keys(file.shapes)
        self._naming = _recognise(source, family, self._keys)
        self.publisher = self._naming.publisher

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
        texts = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems.items() if keys]
        if texts:
            raise UserError(
                f"{self.source} ({self.publisher}'s names) does not fit this network; keys {'; '.join(texts)}. "
                "Choose the network that the weights belong to (`groupwise models` lists the names)"
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


def canonical_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return {canonical key: file's key}: without prefixes, with dots, and with PyTorch's word at the end.

    Examples:
        >>> canonical_keys(["module.fc.weight", "module.bn1.num_batches_tracked"])
        {'fc.weight': 'module.fc.weight'}
        >>> canonical_keys(["conv1/bn/mean/EMA", "conv1/W"])
        {'conv1.bn.running_mean': 'conv1/bn/mean/EMA', 'conv1.weight': 'conv1/W'}
    """
    names = {key.replace("/", "."): key for key in keys if key.rsplit(".", 1)[-1] not in NO_WEIGHTS}
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = {name.removeprefix(prefix): key for name, key in names.items()}
    return {_canonical(name): key for name, key in names.items()}


def _canonical(name: str) -> str:
    for role, synonyms in ROLES.items():
        for synonym in synonyms:
            if name.endswith(f".{synonym}"):
                return f"{name.removesuffix(synonym)}{role}"
    return name


def _recognise(source: str, family: str, keys: Iterable[str]) -> Naming:
    """Return the naming of this family that a file's keys follow."""
    modules = {key.rsplit(".", 1)[0] for key in keys}
    likeness = {naming: naming.likeness(modules) for naming in NAMINGS}

    def best(namings: Iterable[Naming]) -> Naming | None:
        likely = max(namings, key=likeness.__getitem__, default=None)
        return likely if likely is not None and likeness[likely] else None

    own = best(naming for naming in NAMINGS if family in naming.families)
    if own is not None:
        return own
    other = best(NAMINGS)
    if other is not None:
        raise UserError(
            f"{source} holds a network of {' or '.join(other.families)} in {other.publisher}'s names, not {family}: "
            "choose the network that the weights belong to (`groupwise models` lists the names)"
        )
    publishers = dict.fromkeys(naming.publisher for naming in NAMINGS if family in naming.families)
    raise UserError(
        f"{source} has unknown names ({_listed(sorted(modules))}): {family} is read in the names of "
        f"{', '.join(publishers) or 'no publisher'}"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"
