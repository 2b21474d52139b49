"""A network that looks at many images: with its batch norms folded, once that is seen to give the same."""

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.inference.outputs import predict_logits
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.rewrite import fold_batch_norm

WORTH_FOLDING = 32
"""Batches: what a folded network saves of fewer, its own tracing and compiling costs."""
_TOLERANCE = 1e-5


class Folding:
    """A model, and from its third batch on perhaps the same one with batch norms folded into convolutions.

    That is one of ours, on TensorFlow or JAX, for many batches, if both agree on the second batch to 1e-5. On PyTorch a
    recorded prediction folds by itself.
    """

    def __init__(self, model: keras.Model, batches: int) -> None:
        """Remember a model, and how many batches it is to look at."""
        is_ours = isinstance(model, Network | RewrittenNetwork) and keras.backend.backend() != "torch"
        self.model = model
        self._compares_at = 1 if is_ours and batches >= WORTH_FOLDING else -1
        self._batch = 0

    def predict_logits(self, images: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        """Return the outputs for the next batch, as `outputs.predict_logits` does."""
        logits = predict_logits(self.model, images, batch_size)
        if self._batch == self._compares_at:
            folded = fold_batch_norm(self.model)
            others, most = predict_logits(folded, images, batch_size), np.abs(logits).max(initial=1)
            if np.allclose(others, logits, rtol=0, atol=_TOLERANCE * most, equal_nan=True):
                self.model = folded
        self._batch += 1
        return logits
