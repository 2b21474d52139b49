"""What sets each publisher's networks apart beside their names: arguments of the network, and its input."""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from groupwise.data.preprocessing import Preprocessing
from groupwise.errors import UserError
from groupwise.layers import reduced_width
from groupwise.weights.channel_orders import CONVENTIONS, POOL_FIRST, Convention, exchange
from groupwise.weights.slots import Shape


class Facts(Protocol):
    """What is known of an opened file before the network is built."""

    publisher: str
    stem: str

    def shape(self, slot: str) -> Shape | None:
        """Return the shape of what the file has for a slot, None where it has nothing."""

    def widths(self, part: str) -> set[int]:
        """Return how many output channels a part has in the file's units."""


def arguments_of(facts: Facts, family: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `groupwise.models.create` in which the published network differs from ours.

    Args:
        facts: of the file.
        family: `Variant.family`.
        own: the arguments of the variant that is asked for.
    """
    arguments: dict[str, Any] = {}
    publisher = facts.publisher
    if publisher == "legacy":
        arguments["ceiling_pool"] = True
    if family in ("ResNet", "SE-ResNet"):
        arguments |= _resnet_arguments(facts, own)
    if family == "ShuffleNet v1":
        arguments |= _shuffle_arguments(facts, own)
    if family == "ShuffleNet v2":
        arguments |= _split_arguments(publisher)
    if family == "MobileNet v1":
        arguments["activation"] = "relu6" if publisher == "timm" else "relu"
    if publisher == "keras.applications":
        arguments["epsilon"] = 1.001e-5
    if publisher == "lukemelas":
        arguments |= {"padding": "same", "epsilon": 1e-3}
    return arguments


def _resnet_arguments(facts: Facts, own: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if own.get("bottlenecks"):
        # pytorchcv's resnet50 and resnet50b have the same names and shapes: only the file's name tells them apart.
        is_b = re.search(r"resnet\d+b", facts.stem) is not None
        arguments["stride_first"] = facts.publisher == "legacy" or (facts.publisher == "pytorchcv" and not is_b)
    else:
        arguments["relu_before_squeeze"] = facts.publisher == "legacy"
    shape, ratio = facts.shape("stage1_unit1_squeeze.reduce.weight"), own["squeeze_ratio"]
    if ratio and shape is not None and shape[0] == reduced_width(shape[1], ratio, divisor=8):
        # timm rounds to multiples of 8; others do not.
        exact = reduced_width(shape[1], ratio)
        arguments["squeeze_divisor"] = 1 if shape[0] == exact else 8
    return arguments


def _shuffle_arguments(facts: Facts, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the publisher's order of joining, and its shuffle where no order of channels makes up for another one."""
    arguments: dict[str, Any] = {"pool_first": facts.publisher in POOL_FIRST}
    if facts.publisher == "tensorpack":
        arguments["padding"] = "same"
    source = CONVENTIONS[facts.publisher]
    target = Convention(own.get("shuffle", "paper"), own.get("shuffle_after_depthwise", False))
    if any(exchange(own["groups"], width, source, target) is None for width in facts.widths("compress_conv")):
        arguments["shuffle"] = source.shuffle
    return arguments


def _split_arguments(publisher: str) -> dict[str, Any]:
    """Return what sets the forms of ShuffleNet v2 apart."""
    return {
        "shuffle": "inverse" if publisher == "megvii" else "paper",
        "keep_width": publisher in ("megvii", "pytorchcv, v2b"),
        "pool_padding": [[0, 1], [0, 1]] if publisher == "pytorchcv" else [[1, 1], [1, 1]],
    }


def input_of(
    publisher: str, family: str, config: Mapping[str, Any], size: tuple[int, int]
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return in what the images that weights expect differ from the variant's, and their (height, width) in pixels.

    Args:
        publisher: of the weights.
        family: of the network.
        config: timm's, as the hub has it; what it says comes first.
        size: (height, width) of the variant's own images.

    Raises:
        UserError: the configuration is damaged.
    """
    changes: dict[str, Any] = {}
    if publisher == "lukemelas":
        # TensorFlow's recipe: the short side becomes 32 pixels longer than the crop, and the two largest are smaller.
        side = {300: 280, 380: 300}.get(size[0], size[0])
        size = (side, side)
        changes = {"mean": 3 * (127 / 255,), "std": 3 * (128 / 255,), "interpolation": "bicubic", "offset": "down"}
        changes["crop"] = side / (side + 32)
    elif publisher == "megvii":
        # Pixels from 0 to 255 as they are.
        changes = {"mean": 3 * (0.0,), "std": 3 * (1 / 255,)}
    elif publisher.startswith("pytorchcv") and not family.startswith("CIFAR"):
        # One recipe for all of its networks.
        changes = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        changes |= {"interpolation": "bilinear", "crop": 0.875}
    elif publisher == "timm" and family == "MobileNet v1":
        changes = {"mean": 3 * (0.5,), "std": 3 * (0.5,), "interpolation": "bicubic"}
    elif publisher == "tensorpack":
        changes = {"interpolation": "bicubic", "offset": "down"}
    try:
        timm, shape = _configured(config.get("pretrained_cfg", config))
    except (TypeError, ValueError) as error:
        raise UserError(f"the weights' config.json is damaged: {error}") from error
    return {**changes, **timm}, shape or size


def _configured(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return what timm's configuration says of images. Raises TypeError or ValueError where it makes no sense."""
    changes: dict[str, Any] = {}
    for name in ("mean", "std"):
        if name in config:
            red, green, blue = (float(value) for value in config[name])
            changes[name] = (red, green, blue)
    if "interpolation" in config:
        # "random" is a habit of training; timm then tests with bicubic.
        changes["interpolation"] = config["interpolation"] if config["interpolation"] != "random" else "bicubic"
    if "crop_pct" in config:
        changes["crop"] = float(config["crop_pct"])
    Preprocessing(**changes)  # which checks them
    if "input_size" not in config:
        return changes, None
    _, height, width = (int(value) for value in config["input_size"])
    return changes, (height, width)
