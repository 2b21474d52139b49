"""`fold_batch_norm`: in inference a batch norm is a factor and a summand, which the convolution before it takes on."""

from typing import Any

import keras
import numpy as np

from groupwise.layers.twins import described, objection, ours_for
from groupwise.rewrite.changes import Change, Gone, Left
from groupwise.rewrite.copying import Values, config_of, copied, marked
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, NORMS, SEPARABLE, within
from groupwise.rewrite.rebuild import Replacement, Rewriter, apply, record_gone
from groupwise.running.graph import Graph, Node, Tensor, is_plain

_FOLDABLE = (*DENSE, *DEPTHWISE, *SEPARABLE, keras.layers.Dense)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return the same model for inference, each batch norm folded into the convolution or dense layer before it.

    The convolution then also adds the shortcut and applies the ReLU or ReLU6 that follow, in one call of the C core
    where that runs (as with `fuse`). It bears the batch norm's name, since it gives its value.

    Args:
        model: functional or sequential; it is left as it is.

    Returns:
        A new model, not to be trained: its moving statistics have become weights, and what the old weights cost by
        their regularisers is a constant. Outputs agree to 1e-5. `report_of` names the batch norms that stay, and why,
        and the convolutions whose own values are gone.

    Raises:
        UserError: a ValueError, where the model is no graph of layers.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
        >>> x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="norm")(x))
        >>> folded = fold_batch_norm(keras.Model(inputs, x))
        >>> [(layer.name, type(layer).__name__) for layer in folded.layers[1:]]
        [('norm', 'GroupedConv2D'), ('relu', 'ReLU')]
    """
    return record_gone(model, Rewriter((_fold, _stays), within, joins=True).rewrite(model))


def _fold(rewriter: Rewriter, graph: Graph, node: Node) -> Replacement | Left | None:
    """Fold the batch norm that alone reads a convolution into it."""
    layer, after = node.operation, graph.after(node)
    if after is None or type(after.operation) not in NORMS or type(layer) not in _FOLDABLE:
        return None
    norm, residual = after.operation, after.arguments.kwargs.get("residual")
    objection_to = _objection(rewriter, node, after)
    if objection_to:
        return Left(norm.name, "BatchNormalization", objection_to)
    kind = keras.layers.Dense if type(layer) is keras.layers.Dense else ours_for(type(layer))
    settings = {
        "name": norm.name,
        "trainable": norm.trainable,
        "use_bias": True,
        "activation": config_of(norm).get("activation"),
        "activity_regularizer": norm.activity_regularizer,
        **{name: None for name in layer.get_config() if name.endswith("_constraint")},
        **_penalties(layer, norm),
    }
    values = _folded(layer, norm)

    def build(new: Any) -> Tensor:
        rewriter.report.note("For inference: the moving statistics have become weights.")
        keywords = {} if residual is None else {"residual": new(residual)}
        return apply(marked(norm, copied(layer, kind, **settings)), values, new(node.input_tensors[0]), **keywords)

    what = ["bias", *["sum"] * (residual is not None), *_activation_of(norm)]
    change = Change(norm.name, f"{described(layer)}, {norm.name}", f"{kind.__name__} with {', '.join(what)}")
    reads = [node.input_tensors[0]] + ([] if residual is None else [residual])
    gone = Gone(layer.name, f"batch norm {norm.name!r} has become part of it, and gives its name")
    return Replacement([node, after], build, [change], reads, gone=[gone])


def _objection(rewriter: Rewriter, node: Node, after: Node) -> str | None:
    """Return why the batch norm called in `after` cannot become part of the layer called in `node`."""
    layer, norm = node.operation, after.operation
    if not rewriter.is_used_once(layer) or not rewriter.is_used_once(norm):
        return "it is shared, or the layer before it"
    if not is_plain(node):
        return f"{layer.name} is called with more than one tensor"
    axis = len(after.outputs[0].shape) - 1
    if norm.axis not in (-1, axis) or getattr(layer, "data_format", "channels_last") != "channels_last":
        return "its channels do not come last"
    if layer.activation is not keras.activations.linear:
        return f"{layer.name} has an activation of its own"
    if layer.compute_dtype != norm.compute_dtype:
        return f"it computes in {norm.compute_dtype}, and {layer.name} in {layer.compute_dtype}"
    if layer.activity_regularizer is not None:
        return f"the outputs of {layer.name} are penalised"
    if norm.trainable < layer.trainable and _penalised(layer):
        return f"it is frozen, and the weights of {layer.name} are not, and penalised"
    others = [value for name, value in after.arguments.kwargs.items() if name != "residual"]
    is_known = all(value is None or value is False for value in others) and len(after.arguments.args) == 1
    adds_to_dense = type(layer) is keras.layers.Dense and after.arguments.kwargs.get("residual") is not None
    if not is_known or adds_to_dense or after.arguments.args[0] is not node.outputs[0]:
        return "it is called with something else than a convolution's outputs"
    return objection(layer)


@keras.saving.register_keras_serializable("groupwise")
class FixedPenalty(keras.regularizers.Regularizer):
    """What weights cost before they became others: the same whatever they are now.

    Args:
        value: the penalty.

    Examples:
        >>> float(FixedPenalty(0.5)([1.0, 2.0]))
        0.5
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, weights: Any) -> Any:
        return keras.ops.convert_to_tensor(self.value, "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"value": self.value}


def _penalties(layer: Any, norm: Any) -> dict[str, Any]:
    """Return the regularisers of the layer that both become: what both cost now, on its last kernel."""
    names = [name for name in layer.get_config() if name.endswith("_regularizer") and name != "activity_regularizer"]
    penalised = _penalised(layer) + _penalised(norm)
    total = sum(float(keras.ops.convert_to_numpy(v.regularizer(v))) for v in penalised)
    kernel = next(name for kind in ("pointwise", "depthwise", "kernel") if (name := f"{kind}_regularizer") in names)
    return {**dict.fromkeys(names), kernel: FixedPenalty(total) if penalised else None}


def _penalised(layer: Any) -> list[Any]:
    return [weight for weight in layer.trainable_weights if weight.regularizer is not None]


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
    """Name a batch norm that no layer leads to that could take it on."""
    if type(node.operation) not in NORMS:
        return None
    before = graph.before(node)
    if before is not None and type(before.operation) in _FOLDABLE:
        return None  # _fold has said why
    return Left(node.operation.name, "BatchNormalization", "no convolution or dense layer leads to it alone")
