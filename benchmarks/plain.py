"""The networks for images of 32x32 in plain PyTorch, as one writes them there: the peers of their training step.

    network = like(groupwise.models.create("groupnet_cifar10"))  # ours, on PyTorch

A module stands under the name of the layer of ours that it is: `stage1_unit1.conv` is `stage1_unit1_conv`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import torch
from torch import nn

RELU = partial(nn.ReLU, inplace=True)
GROUP_WIDTH = 64
TOLERANCE = 1e-4


def unit(
    channels: int,
    filters: int,
    kernel: int,
    activation: Callable[[], nn.Module] | None = RELU,
    strides: int = 1,
    groups: int = 1,
    pool: bool = False,
) -> nn.Sequential:
    """Return convolution, perhaps a 2x2 pool, batch norm and activation."""
    padding = (kernel - 1) // 2
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(channels, filters, kernel, strides, padding, groups=groups, bias=False)
    if pool:
        parts["pool"] = nn.MaxPool2d(2)
    parts["bn"] = nn.BatchNorm2d(filters)
    if activation:
        parts["activation"] = activation()
    return nn.Sequential(parts)


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Return x with its channels shuffled, in channels_last memory: twice as fast there as PyTorch's own."""
    grouped = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1))
    return grouped.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


class Residual(nn.Sequential):
    """x + activation(norm(grouped 3x3(x))), the channels perhaps shuffled before."""

    def __init__(self, channels: int, shuffle: bool) -> None:
        groups = channels // GROUP_WIDTH
        super().__init__(OrderedDict(unit(channels, channels, 3, nn.SiLU, groups=groups).named_children()))
        self.groups = groups if shuffle else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(shuffled(x, self.groups) if self.groups > 1 else x)


class Scaled(nn.Linear):
    """A dense layer without bias whose outputs are divided by 8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 8


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, and the shortcut beside them."""

    def __init__(self, channels: int, filters: int, strides: int, cardinality: int, width: int) -> None:
        super().__init__()
        inner = filters // 256 * cardinality * width
        self.reduce = unit(channels, inner, 1)
        self.spatial = unit(inner, inner, 3, strides=strides, groups=cardinality)
        self.expand = unit(inner, filters, 1, None)
        self.shortcut = unit(channels, filters, 1, None, strides) if channels != filters else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x), inplace=True)


def groupnet() -> nn.Sequential:
    """Return `groupnet_cifar10`."""
    return nn.Sequential(
        OrderedDict(
            stem=unit(3, 24, 2, nn.SiLU),
            stage1_unit1=unit(24, 64, 3, nn.SiLU, pool=True),
            stage1_unit2=unit(64, 64, 3, nn.SiLU),
            stage1_pool=nn.MaxPool2d(2),
            stage2_unit1=unit(64, 256, 3, nn.SiLU),
            stage2_unit2=Residual(256, shuffle=True),
            stage2_pool=nn.MaxPool2d(2),
            stage3_unit1=unit(256, 512, 1, nn.SiLU),
            stage3_unit2=Residual(512, shuffle=False),
            stage3_unit3=Residual(512, shuffle=True),
            pool=nn.AdaptiveMaxPool2d(1),
            flat=nn.Flatten(),
            head=Scaled(512, 10, bias=False),
        )
    )


def resnext(blocks: int, cardinality: int, width: int) -> nn.Sequential:
    """Return a CIFAR ResNeXt of three stages of `blocks` blocks."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=unit(3, 64, 3))
    channels = 64
    for stage, filters in enumerate((256, 512, 1024), 1):
        for index in range(1, blocks + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            parts[f"stage{stage}_unit{index}"] = Bottleneck(channels, filters, strides, cardinality, width)
            channels = filters
    parts.update(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(channels, 10))
    return nn.Sequential(parts)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "groupnet_cifar10": groupnet,
    "resnext20_16x4d_cifar10": partial(resnext, 2, 16, 4),
}


def like(model: keras.Model) -> nn.Module:
    """Return the plain network of a model of ours on PyTorch, with its weights, in channels_last memory.

    Raises:
        AssertionError: it is another network: its parameters are not as many, or its outputs differ.
    """
    network = NETWORKS[model.name]().to(memory_format=torch.channels_last)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            _copy(model.get_layer(name.replace(".", "_")).get_weights(), module)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == sum(math.prod(weight.shape) for weight in model.trainable_weights), (
        f"{model.name}: has {count} parameters here"
    )
    images = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    ours = model.predict_on_batch(images)
    with torch.inference_mode():
        theirs = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    difference = np.abs(ours - theirs).max() / np.abs(ours).max()
    assert difference <= TOLERANCE, f"{model.name}: outputs differ by {difference:.1e} of the largest"
    return network


def _copy(weights: list[np.ndarray], module: nn.Module) -> None:
    """Give a module the weights of one of our layers; kernels are (HW)IO there and OI(HW) here."""
    named = [getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
    for tensor, weight in zip([tensor for tensor in named if tensor is not None], weights, strict=True):
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[weight.ndim]
        tensor.data.copy_(torch.from_numpy(weight.transpose(axes)))
