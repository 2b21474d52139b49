"""tensorpack's ShuffleNet v1, in PyTorch: TensorFlow's padding, the inverse shuffle, [pool, branch]; its weight file.

Written from the description of the published network; nothing in it is taken from groupwise.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

WIDTHS = {
    (3, 1.0): (24, 240, 480, 960),
    (4, 1.0): (24, 272, 544, 1088),
    (8, 1.0): (24, 384, 768, 1536),
    (3, 0.5): (12, 120, 240, 480),
    (4, 0.5): (12, 144, 272, 544),
    (8, 0.5): (16, 192, 384, 768),
}
DEPTHS = (4, 8, 4)


def same(x: Any, kernel: int, strides: int, value: float = 0.0) -> Any:
    """Pad as TensorFlow does for "SAME": what is odd goes to the right and below."""
    sides = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // strides) - 1) * strides + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return nn.functional.pad(x, sides, value=value)


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, inputs: int, outputs: int, groups: int, strides: int) -> None:
        super().__init__()
        self.groups, self.strides, middle = groups, strides, outputs // 4
        branch = outputs - inputs if strides == 2 else outputs
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=groups if inputs > 24 else 1, bias=False)
        self.conv1_bn = nn.BatchNorm2d(middle)
        self.dconv = nn.Conv2d(middle, middle, 3, strides, groups=middle, bias=False)
        self.dconv_bn = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, branch, 1, groups=groups, bias=False)
        self.conv2_bn = nn.BatchNorm2d(branch)

    def forward(self, x: Any) -> Any:
        branch = torch.relu(self.conv1_bn(self.conv1(x)))
        batch, channels, height, width = branch.shape
        branch = branch.reshape(batch, channels // self.groups, self.groups, height, width).transpose(1, 2)
        branch = branch.reshape(batch, channels, height, width)
        branch = self.dconv_bn(self.dconv(same(branch, 3, self.strides)))
        branch = self.conv2_bn(self.conv2(branch))
        if self.strides == 1:
            return torch.relu(x + branch)
        ones = nn.functional.avg_pool2d(same(torch.ones_like(x), 3, 2), 3, 2)
        return torch.cat([nn.functional.avg_pool2d(same(x, 3, 2), 3, 2) / ones, torch.relu(branch)], 1)


class Network(nn.Module):
    """For images of any size."""

    def __init__(self, groups: int, ratio: float) -> None:
        super().__init__()
        stem, *widths = WIDTHS[groups, ratio]
        self.conv1 = nn.Conv2d(3, stem, 3, 2, bias=False)
        self.conv1_bn = nn.BatchNorm2d(stem)
        inputs = stem
        for stage, (outputs, depth) in enumerate(zip(widths, DEPTHS, strict=True), start=2):
            units = []
            for index in range(depth):
                units.append(Unit(inputs, outputs, groups, 2 if index == 0 else 1))
                inputs = outputs
            self.add_module(f"stage{stage}", nn.Sequential(*units))
        self.linear = nn.Linear(inputs, 1000)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.conv1_bn(self.conv1(same(x, 3, 2))))
        x = nn.functional.max_pool2d(same(x, 3, 2, float("-inf")), 3, 2)
        return self.linear(self.stage4(self.stage3(self.stage2(x))).mean(dim=(2, 3)))


def write(network: Network, path: Path) -> Path:
    """Write the weights as tensorpack's .npz: scopes parted by /, kernels in TensorFlow's order, ending in :0."""
    roles = {"weight": "gamma", "bias": "beta", "running_mean": "mean/EMA", "running_var": "variance/EMA"}
    arrays = {}
    for key, tensor in network.state_dict().items():
        *scopes, role = key.split(".")
        if role == "num_batches_tracked":
            continue
        value = tensor.numpy()
        if scopes[0].startswith("stage"):
            scopes[1] = f"block{scopes[1]}"
        if scopes[-1] == "conv1_bn":
            scopes[-1:] = ["conv1", "bn"]
        if value.ndim == 4:
            value, role = value.transpose(2, 3, 0, 1) if scopes[-1] == "dconv" else value.transpose(2, 3, 1, 0), "W"
        elif scopes[-1] == "linear":
            value, role = (value.T, "W") if value.ndim == 2 else (value, "b")
        else:
            role = roles[role]
        arrays["/".join([*scopes, role]) + ":0"] = np.ascontiguousarray(value)
    np.savez(path, **arrays)
    return path
