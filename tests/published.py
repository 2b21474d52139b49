"""Small files of weights, as someone might have published them."""

from pathlib import Path
from typing import Any

import numpy as np

from groupwise import models
from groupwise.weights.naming import NAMINGS, unit_starts
from groupwise.weights.slots import slots_of


def pytorchcv_file(path: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write an .npz in pytorchcv's names, kernels in Keras's order, for one of our networks; return its path.

    Args:
        name: of the network.
        seed: of the random values.
        changes: by key, another array, or None to leave the key out.
    """
    generator = np.random.default_rng(seed)
    family = models.find(name).family
    naming = next(naming for naming in NAMINGS if naming.publisher == "pytorchcv" and family in naming.families)
    slots = slots_of(models.create(name))
    starts = unit_starts(slot.layer for slot in slots)
    arrays: dict[str, Any] = {}
    for slot in slots:
        shape = tuple(slot.variable.shape)
        deviation = np.prod(shape[:-1]) ** -0.5
        values = generator.uniform(0.5, 1, shape) if len(shape) == 1 else generator.normal(0, deviation, shape)
        arrays[f"{naming.candidates(slot.layer, starts)[-1]}.{slot.role}"] = values.astype("float32")
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path
