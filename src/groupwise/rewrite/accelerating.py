"""`accelerate` and `fuse`: the same model of faster layers, trained or to be trained."""

from functools import partial

import keras

from groupwise import backends
from groupwise.models.steps import objections
from groupwise.rewrite import drop_ins, handmade
from groupwise.rewrite.carrying import without_permutations
from groupwise.rewrite.changes import report_of
from groupwise.rewrite.rebuild import Rewriter, record_gone
from groupwise.running.graph import Graph, models_within
from groupwise.running.joining import joins


def accelerate(model: keras.Model) -> keras.Model:
    """Return the same model with our convolutions, batch norms and pools in place of Keras's.

    Grouped convolutions that are written by hand become one layer too: a convolution for each slice of the channels and
    their concatenation; depthwise convolution, reshape and sum, where the sum is over each group's channels, be the
    groups contiguous or strided. What pads, adds or applies ReLU beside a layer stays a layer, and both run in one
    call.

    Args:
        model: functional or sequential; models within it, shared layers, several inputs and outputs are followed. It
            is left as it is.

    Returns:
        A new model of the same class: the same inputs, outputs and layers by name, types, weights and all other state,
        what is frozen, and compiled as the old one was, its optimizer's state included. Outputs agree to 1e-5; it
        trains as the old one does, on PyTorch without Python between the operations. `report_of` says what was
        replaced, what was left and why, what could not be kept, and which steps run.

    Raises:
        UserError: a ValueError, where the model is no graph of layers, or a layer cannot be made anew.

    Examples:
        >>> inputs = keras.Input((56, 56, 64))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(64, 3, groups=32, name="conv")(inputs))
        >>> type(accelerate(model).get_layer("conv")).__name__
        'GroupedConv2D'
    """
    rules = (handmade.split_and_concatenated, handmade.depthwise_and_sum, drop_ins.drop_in)
    rewritten = Rewriter(rules, drop_ins.within, joins=True).rewrite(model)
    made = record_gone(model, without_permutations(rewritten))
    report_of(made).note(_steps(made))
    return made


def _steps(model: keras.Model) -> str:
    """Return which steps run: where the framework does not trace them itself, and where there is something to train."""
    if backends.active.step is None:
        return ""
    as_keras = "; ".join(f"{kind}: {reason}" for kind, reason in objections(model).items())
    if as_keras:
        return f"Steps that run as Keras runs them, with its Python: {as_keras}."
    return "fit, evaluate and predict run what is recorded of their first steps, without Python between the operations."


def fuse(model: keras.Model) -> keras.Model:
    """Return the same model that runs batch norm, the shortcut's addition and ReLU, or convolution and ReLU, as one.

    The layers and their names stay; the calls are made as one where the model runs on arrays. No weight changes and the
    model can be trained; `fold_batch_norm` goes further, for inference. Arguments, result and errors are
    `accelerate`'s.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> x = keras.layers.BatchNormalization(name="norm")(inputs)
        >>> from groupwise.rewrite import report_of
        >>> fused = fuse(keras.Model(inputs, keras.layers.ReLU(name="relu")(x)))
        >>> [type(layer).__module__.split(".")[0] for layer in fused.layers[1:]]
        ['groupwise', 'keras']
        >>> print(report_of(fused))
        norm  BatchNormalization, ReLU -> one call
    """
    leaders = {id(join.head.operation) for part in models_within(model) for join in joins(Graph(part))}
    rewritten = Rewriter((partial(drop_ins.drop_in, leaders=leaders),), joins=True).rewrite(model)
    return record_gone(model, rewritten)
