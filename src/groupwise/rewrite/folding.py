"""`fold_batch_norm`: in inference a batch norm is a factor and a summand, which the convolution before it takes on."""

from typing import Any

import keras
import numpy as np

from groupwise.rewrite.accelerating import fuse
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, NORMS, OURS, SEPARABLE, described, is_plain, objection, within
from groupwise.rewrite.graph import Graph, Node, Tensor
from groupwise.rewrite.rebuild import Replacement, Rewriter, Values, apply
from groupwise.rewrite.report import Change, Left, report_of

_FOLDABLE = (*DENSE, *DEPTHWISE, *SEPARABLE, keras.layers.Dense)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return the same model for inference, each batch norm folded into the convolution or dense layer before it.

    The convolution then also adds the shortcut and applies the ReLU or ReLU6 that follow, in one call of the C core
    where that runs (`fuse` joins them first).

    Args:
        model: functional or sequential; it is left as it is.

    Returns:
        A new model, not to be trained: its moving statistics have become weights. Outputs agree to 1e-5. `report_of`
        names the batch norms that stay, and why.

    Raises:
        UserError: a ValueError, where the model is no graph of layers.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
        >>> folded = fold_batch_norm(keras.Model(inputs, keras.layers.ReLU()(keras.layers.BatchNormalization()(x))))
        >>> [layer.name for layer in folded.layers[1:]]
        ['conv']
    """
    rewritten = Rewriter((_fold, _stays), within).rewrite(fuse(model))
    if report_of(rewritten).changes:
        report_of(rewritten).notes.append("For inference: the moving statistics have become weights.")
    return rewritten


def _fold(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | None:
    """Fold the batch norm that alone reads a convolution into it."""
    layer, after = node.operation, graph.after(node)
    if after is None or type(after.operation) not in NORMS or not _can_take(rewriter, node):
        return None
    norm = after.operation
    if not rewriter.is_used_once(norm) or norm.axis not in (-1, len(after.outputs[0].shape) - 1):
        return None
    residual = after.arguments.kwargs.get("residual")
    others = [value for name, value in after.arguments.kwargs.items() if name != "residual"]
    is_known = all(value is None or value is False for value in others)
    if len(after.arguments.args) != 1 or not is_known or after.arguments.args[0] is not node.outputs[0]:
        return None
    is_dense = type(layer) is keras.layers.Dense
    if is_dense and residual is not None:
        return None
    config = {**layer.get_config(), "use_bias": True, "activation": norm.get_config().get("activation")}
    values = _folded(layer, norm)
    kind = keras.layers.Dense if is_dense else OURS.get(type(layer), type(layer))

    def build(new: Any) -> Tensor:
        keywords = {} if residual is None else {"residual": new(residual)}
        return apply(kind.from_config(config), values, new(node.input_tensors[0]), **keywords)

    what = ["bias", *["sum"] * (residual is not None), *_activation_of(norm)]
    change = Change(layer.name, f"{described(layer)}, {norm.name}", f"{kind.__name__} with {', '.join(what)}")
    reads = [node.input_tensors[0]] + ([] if residual is None else [residual])
    return Replacement([node, after], build, [change], reads)


def _can_take(rewriter: Rewriter, node: Node) -> bool:
    layer = node.operation
    if type(layer) not in _FOLDABLE or not rewriter.is_used_once(layer) or not is_plain(node) or objection(layer):
        return False
    is_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return is_last and layer.activation is keras.activations.linear


def _folded(layer: Any, norm: Any) -> Values:
    """Return the weights of a layer that does what its batch norm did: in float64, on the way."""
    statistics = _by_name(norm)
    scale = statistics.get("gamma", 1.0) / np.sqrt(statistics["moving_variance"] + norm.epsilon)
    *kernels, last = layer.get_weights()[: len(layer.get_weights()) - layer.use_bias]
    bias = layer.get_weights()[-1].astype("float64") if layer.use_bias else 0.0
    factor = scale.reshape(last.shape[2:]) if type(layer) in DEPTHWISE else scale
    bias = (bias - statistics["moving_mean"]) * scale + statistics.get("beta", 0.0)
    return [*kernels, (last * factor).astype(last.dtype), bias.astype(last.dtype)]


def _by_name(norm: Any) -> dict[str, np.ndarray]:
    return {
        variable.name: keras.ops.convert_to_numpy(variable).astype("float64")
        for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        if variable is not None
    }


def _activation_of(norm: Any) -> list[str]:
    name = norm.get_config().get("activation") or "linear"
    return [] if name == "linear" else [name if isinstance(name, str) else "activation"]


def _stays(rewriter: Rewriter, graph: Graph, node: Node) -> Left | None:
    """Name a batch norm that is not folded."""
    if type(node.operation) not in NORMS:
        return None
    return Left(node.operation.name, "BatchNormalization", "no convolution or dense layer leads to it alone")
