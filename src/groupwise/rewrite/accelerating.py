"""`accelerate` and `fuse`: the same model of faster layers, trained or to be trained."""

import keras

from groupwise.rewrite import drop_ins, handmade
from groupwise.rewrite.carrying import without_permutations
from groupwise.rewrite.rebuild import Rewriter


def accelerate(model: keras.Model) -> keras.Model:
    """Return the same model with our convolutions, batch norms and pools in place of Keras's.

    Grouped convolutions that are written by hand become one layer too: a convolution for each slice of the channels and
    their concatenation; depthwise convolution, reshape and sum, where the sum is over each group's channels, be the
    groups contiguous or strided. What pads, adds or applies ReLU beside a layer becomes part of it.

    Args:
        model: functional or sequential; models within it, shared layers, several inputs and outputs are followed. It
            is left as it is.

    Returns:
        A new model with the same weights, moving statistics and layers' names, compiled anew where the old one was
        (with a fresh optimizer). Outputs agree to 1e-5; it trains as the old one does. `report_of` says what was
        replaced, and what was left and why.

    Raises:
        UserError: a ValueError, where the model is no graph of layers, or a layer cannot be made anew.

    Examples:
        >>> inputs = keras.Input((56, 56, 64))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(64, 3, groups=32, name="conv")(inputs))
        >>> type(accelerate(model).get_layer("conv")).__name__
        'GroupedConv2D'
    """
    rules = (
        handmade.split_and_concatenated,
        handmade.depthwise_and_sum,
        drop_ins.norm_and_activation,
        drop_ins.padded_convolution,
        drop_ins.convolution_and_activation,
        drop_ins.drop_in,
    )
    return without_permutations(Rewriter(rules, drop_ins.within).rewrite(model))


def fuse(model: keras.Model) -> keras.Model:
    """Return the same model with batch norm, the shortcut's addition and ReLU, or convolution and ReLU, in one layer.

    No weight changes and the model can be trained; `fold_batch_norm` goes further, for inference. Arguments, result
    and errors are `accelerate`'s.

    Examples:
        >>> inputs = keras.Input((8, 8, 4))
        >>> x = keras.layers.BatchNormalization(name="norm")(inputs)
        >>> fused = fuse(keras.Model(inputs, keras.layers.ReLU()(x)))
        >>> [layer.name for layer in fused.layers[1:]]
        ['norm']
    """
    return Rewriter((drop_ins.norm_and_activation, drop_ins.convolution_and_activation)).rewrite(model)
