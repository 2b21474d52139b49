"""What a network says of image files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupwise.data import BrokenImage
from groupwise.inference.evaluation import probabilities
from groupwise.inference.folding import Folding
from groupwise.inference.preprocessing import prepared_image
from groupwise.inference.saliency import Explainer
from groupwise.models.network import Network, RewrittenNetwork

PREDICTED_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image file.

    Attributes:
        path: the file.
        probabilities: float32, of the network's classes.
        heat_map: float32, (rows, columns): where it looked, from 0 to 1; None where that was not asked for.
    """

    path: Path
    probabilities: NDArray[np.float32]
    heat_map: NDArray[np.float32] | None = None


def predict_images(
    network: Network | RewrittenNetwork,
    paths: Sequence[Path],
    on_broken: Callable[[BrokenImage], Any],
    explain: bool = False,
    explained_class: int | None = None,
) -> Iterator[Prediction]:
    """Yield what the network says of each readable image file.

    Args:
        network: with preprocessing in its metadata.
        paths: image files.
        on_broken: told of each file that cannot be read.
        explain: whether to say where it looked, too.
        explained_class: for which class; None for each image's most likely one.

    Raises:
        UserError: where the network looked cannot be said.
    """
    model = Explainer(network) if explain else Folding(network, len(paths) // PREDICTED_AT_ONCE)
    pending: list[tuple[Path, NDArray[np.float32]]] = []
    for path in paths:
        try:
            pending.append((path, prepared_image(network, path)))
        except BrokenImage as error:
            on_broken(error)
            continue
        if len(pending) == PREDICTED_AT_ONCE:
            yield from _predict(model, pending, explained_class)
            pending = []
    yield from _predict(model, pending, explained_class)


def _predict(
    model: Folding | Explainer,
    pending: Sequence[tuple[Path, NDArray[np.float32]]],
    explained_class: int | None,
) -> Iterator[Prediction]:
    if not pending:
        return
    images = np.stack([image for _, image in pending])
    # A single image needs no filling up: there will be no second batch.
    batch_size = PREDICTED_AT_ONCE if len(pending) > 1 else 1
    maps: Iterable[NDArray[np.float32] | None] = [None] * len(pending)
    if isinstance(model, Explainer):
        logits, maps = model.explain(images, [explained_class] * len(pending), batch_size)
    else:
        logits = model.predict_logits(images, batch_size)
    for (path, _), values, heat in zip(pending, probabilities(logits), maps, strict=True):
        yield Prediction(path, values, heat)
