"""Where a network looked: Grad-CAM, exact and without differentiation."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError, call
from groupwise.inference.outputs import predict_outputs

POOLINGS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)


class Explainer:
    """A network that gives, in one forward pass, its logits and the map of where it looked for a class.

    This is Grad-CAM (arXiv 1610.02391, section 3): the last features, each channel weighted by the mean over all
    pixels of the class's gradient to it, are added, and only what speaks for the class is kept. A network that ends
    in a global pooling and one dense layer has these weights at hand, save a factor that all channels share: they
    are the dense layer's column of the class. Each pixel has the same part in a channel's mean, and one pixel alone
    has all of a channel's maximum.

    Args:
        network: ends in a global average or maximum pooling named "pool", perhaps dropout, a dense layer without
            activation named "head", and perhaps a `Rescaling`, as all of `groupwise.models` with a head do.

    Raises:
        UserError: the network ends otherwise.

    Examples:
        >>> from groupwise.models import create
        >>> images = np.ones((2, 28, 28, 1), np.float32)
        >>> logits, maps = Explainer(create("mnist_cnn")).explain(images, classes=[3, 7])
        >>> logits.shape, maps.shape
        ((2, 10), (2, 7, 7))
    """

    def __init__(self, network: keras.Model) -> None:
        pool, head, *scales = _ending(network)
        self._model = keras.Model(network.input, [pool.input, network.outputs[0]])
        weights = np.asarray(keras.ops.convert_to_numpy(head.kernel), np.float32)
        for scale in scales:
            weights = weights * np.asarray(scale.scale, np.float32)
        self._weights = weights

    def explain(
        self, images: NDArray[np.float32], classes: Sequence[int | None] | None = None, batch_size: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (n, classes), and maps (n, height, width) of the last features' size.

        A map is 1 where most speaks for the class, and 0 where nothing does; all of it where nothing does anywhere.

        Args:
            images: (n, height, width, channels), preprocessed.
            classes: of which class each image's map is; None, for an image or for all, is the most likely one.
            batch_size: what fewer images are filled up to, as `predict_logits` does.
        """
        features, logits = predict_outputs(self._model, images, batch_size or len(images))
        chosen = logits.argmax(axis=1)
        for place, explained in enumerate(classes or ()):
            chosen[place] = chosen[place] if explained is None else explained
        maps = np.maximum(np.einsum("nhwc,nc->nhw", features, self._weights.T[chosen]), 0)
        peaks = maps.max(axis=(1, 2), keepdims=True)
        return logits, np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)


def _ending(network: keras.Model) -> list[Any]:
    """Return the layers "pool" and "head", and the `Rescaling` after them if there is one."""
    names = [layer.name for layer in network.layers]
    last = network.layers[names.index("pool") :] if "pool" in names else []
    layers = [layer for layer in last if not isinstance(layer, keras.layers.Dropout)]
    kinds = (POOLINGS, keras.layers.Dense, keras.layers.Rescaling)
    fits = (
        2 <= len(layers) <= 3
        and all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=False))
        and (layers[0].data_format, layers[0].keepdims) == ("channels_last", False)
        and (layers[1].name, layers[1].activation) == ("head", keras.activations.linear)
        and _is_chain(network, last)
    )
    if not fits:
        raise UserError(
            f"model {network.name!r}: where it looked cannot be said, since it does not end in a global pooling 'pool' "
            "and a dense layer 'head' without activation; use a network that "
            f"{call('models.list_models')} lists, with its own head"
        )
    return layers


def _is_chain(network: keras.Model, layers: Sequence[Any]) -> bool:
    """Return whether each layer's output goes into the next one, and the last one's is all that the network gives."""
    try:
        linked = all(after.input is before.output for before, after in pairwise(layers))
        return linked and len(network.outputs) == 1 and network.outputs[0] is layers[-1].output
    except (AttributeError, ValueError):  # Keras's, of a layer that is used twice
        return False
