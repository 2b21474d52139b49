"""The names of the classes that weights tell apart."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

IMAGENET_CLASSES = 1000
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@cache
def imagenet_classes() -> dict[str, str]:
    """Return the names of ImageNet's 1,000 classes by their WordNet ids, in the order of a network's outputs.

    Examples:
        >>> list(imagenet_classes().items())[1]
        ('n01443537', 'goldfish')
    """
    lines = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def class_names_of(config: Mapping[str, Any], num_classes: int | None, family: str) -> list[str] | None:
    """Return the names of a file's classes: those that timm's configuration has, else ImageNet's or CIFAR-10's.

    Args:
        config: timm's, as the hub has it.
        num_classes: of the file's head. family: of the network.
    """
    labels = config.get("label_names", config.get("pretrained_cfg", config).get("label_names"))
    if isinstance(labels, list) and len(labels) == num_classes and len(set(map(str, labels))) == num_classes:
        return [str(label) for label in labels]
    if num_classes == IMAGENET_CLASSES:
        return list(imagenet_classes().values())
    return list(CIFAR10) if family == "CIFAR ResNeXt" and num_classes == len(CIFAR10) else None
