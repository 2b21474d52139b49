"""ShuffleNet v1 and v2 as their authors at megvii published them, in PyTorch.

Written from the description of the published networks, for the names of their parameters and the order of their
channels; nothing in them is taken from groupwise.
"""

from typing import Any

import torch
from torch import nn

V1_WIDTHS = {
    (3, "0.5"): (12, 120, 240, 480),
    (3, "1.0"): (24, 240, 480, 960),
    (3, "1.5"): (24, 360, 720, 1440),
    (3, "2.0"): (48, 480, 960, 1920),
    (8, "0.5"): (16, 192, 384, 768),
    (8, "1.0"): (24, 384, 768, 1536),
    (8, "1.5"): (24, 576, 1152, 2304),
    (8, "2.0"): (48, 768, 1536, 3072),
}
V2_WIDTHS = {
    "0.5": (24, 48, 96, 192, 1024),
    "1.0": (24, 116, 232, 464, 1024),
    "1.5": (24, 176, 352, 704, 1024),
    "2.0": (24, 244, 488, 976, 2048),
}
DEPTHS = (4, 8, 4)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, strides: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, strides, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class UnitV1(nn.Module):
    """Grouped 1x1, depthwise 3x3, shuffle, grouped 1x1."""

    def __init__(self, inputs: int, outputs: int, groups: int, strides: int, is_first: bool) -> None:
        super().__init__()
        self.groups, self.strides, middle = groups, strides, outputs // 4
        branch = outputs - inputs if strides == 2 else outputs
        self.branch_main_1 = nn.Sequential(
            *_conv_bn_relu(inputs, middle, 1, groups=1 if is_first else groups),
            *_conv_bn_relu(middle, middle, 3, strides, groups=middle)[:2],
        )
        self.branch_main_2 = nn.Sequential(*_conv_bn_relu(middle, branch, 1, groups=groups)[:2])

    def forward(self, x: Any) -> Any:
        branch = self.branch_main_1(x)
        batch, channels, height, width = branch.shape
        branch = branch.reshape(batch, channels // self.groups, self.groups, height, width).transpose(1, 2)
        branch = self.branch_main_2(branch.reshape(batch, channels, height, width))
        if self.strides == 1:
            return torch.relu(x + branch)
        return torch.relu(torch.cat([nn.functional.avg_pool2d(x, 3, 2, 1), branch], 1))


class UnitV2(nn.Module):
    """Even channels pass by, odd ones go through 1x1, depthwise 3x3, 1x1; with strides, all channels do both."""

    def __init__(self, inputs: int, outputs: int, strides: int) -> None:
        super().__init__()
        self.strides, middle = strides, outputs // 2
        inputs = inputs if strides == 2 else inputs // 2
        self.branch_main = nn.Sequential(
            *_conv_bn_relu(inputs, middle, 1),
            *_conv_bn_relu(middle, middle, 3, strides, groups=middle)[:2],
            *_conv_bn_relu(middle, outputs - inputs, 1),
        )
        if strides == 2:
            self.branch_proj = nn.Sequential(
                *_conv_bn_relu(inputs, inputs, 3, 2, groups=inputs)[:2], *_conv_bn_relu(inputs, inputs, 1)
            )

    def forward(self, x: Any) -> Any:
        if self.strides == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], 1)


class Network(nn.Module):
    """Either version: `groups` for the first one, None for the second."""

    def __init__(self, size: str, groups: int | None) -> None:
        super().__init__()
        stem, *widths = V2_WIDTHS[size] if groups is None else V1_WIDTHS[groups, size]
        self.first_conv = nn.Sequential(*_conv_bn_relu(3, stem, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units: list[nn.Module] = []
        inputs = stem
        for outputs, depth in zip(widths, DEPTHS, strict=False):
            for index in range(depth):
                strides = 2 if index == 0 else 1
                if groups is None:
                    units.append(UnitV2(inputs, outputs, strides))
                else:
                    units.append(UnitV1(inputs, outputs, groups, strides, is_first=not units))
                inputs = outputs
        self.features = nn.Sequential(*units)
        if groups is None:
            self.conv_last = nn.Sequential(*_conv_bn_relu(inputs, widths[3], 1))
        self.classifier = nn.Sequential(nn.Linear(widths[-1], 1000, bias=False))

    def forward(self, x: Any) -> Any:
        x = self.features(self.maxpool(self.first_conv(x)))
        if hasattr(self, "conv_last"):
            x = self.conv_last(x)
        return self.classifier(x.mean(dim=(2, 3)))
