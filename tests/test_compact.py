"""The compact network for 32x32 images: what it promises."""

import keras
import numpy as np

from groupwise import models


def test_it_is_compact_and_grouped() -> None:
    network = models.create("groupnet_cifar10")
    description = models.describe(network)
    # By hand: 31*31*24*12 + 31*31*64*216 + 15*15*64*576 + 7*7*256*(576 + 576) + 3*3*512*(256 + 576 + 576) + 512*10
    assert description.macs == 42_799_904 <= 50_000_000
    assert description.trainable_parameters == 1_076_304
    groups = [layer.groups for layer in network.layers if getattr(layer, "groups", 1) > 1 and hasattr(layer, "kernel")]
    assert groups == [4, 8, 8]


def test_every_group_meets_every_other() -> None:
    """A change of one channel before the last two residual units reaches all eight groups after them."""
    network = models.create("groupnet_cifar10", features=("stage2", "stage3"))
    inner = network.get_layer("stage3_unit1_bn").output
    tail = keras.Model(inner, network.output["stage3"])
    features = np.random.default_rng(0).uniform(0.1, 1, (1, 3, 3, 512)).astype("float32")
    changed = features.copy()
    changed[..., 0] += 1
    difference = np.abs(keras.ops.convert_to_numpy(tail(changed)) - keras.ops.convert_to_numpy(tail(features))).reshape(
        9, 8, 64
    )
    assert (difference.max(axis=(0, 2)) > 0).all()
