"""The names of the classes that weights tell apart."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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


def wordnet_ids(class_names: Sequence[str]) -> list[str | None]:
    """Return each class's WordNet id: of ImageNet's 1,000 classes, or where the names are ids; else None.

    ImageNet's classes are known by their order, whichever of their names a publisher gives them.

    Examples:
        >>> wordnet_ids(["n01443537", "goldfish"])
        ['n01443537', None]
    """
    classes = imagenet_classes()
    if len(class_names) == IMAGENET_CLASSES:
        pairs = zip(class_names, classes.values(), strict=True)
        if sum(_first_name(name) == _first_name(own) for name, own in pairs) > IMAGENET_CLASSES / 2:
            return list(classes)
    return [name if re.fullmatch(r"n\d{8}", name) else None for name in class_names]


def _first_name(name: str) -> str:
    """Return "crane" of "crane (bird)", and "great white shark" of "great_white_shark, Carcharodon carcharias"."""
    return re.split(r"[,(]", name)[0].replace("_", " ").strip().lower()


def distinct_names(class_names: Sequence[str]) -> list[str]:
    """Return names of which no two are alike: ImageNet has a bird and a machine called crane.

    Examples:
        >>> distinct_names(["crane", "dog", "crane"])
        ['crane (0)', 'dog', 'crane (2)']
    """
    counts, ids = Counter(class_names), wordnet_ids(class_names)
    return [
        f"{name} ({place if ids[place] is None else ids[place]})" if counts[name] > 1 else name
        for place, name in enumerate(class_names)
    ]


def class_names_of(config: Mapping[str, Any], num_classes: int | None, family: str) -> list[str] | None:
    """Return the names of a file's classes: those that timm's configuration has, else ImageNet's or CIFAR-10's.

    Args:
        config: timm's, as the hub has it.
        num_classes: of the file's head.
        family: of the network.
    """
    labels = config.get("label_names", config.get("pretrained_cfg", config).get("label_names"))
    if isinstance(labels, list) and len(labels) == num_classes and len(set(map(str, labels))) == num_classes:
        return [str(label) for label in labels]
    if num_classes == IMAGENET_CLASSES:
        return list(imagenet_classes().values())
    return list(CIFAR10) if family == "CIFAR ResNeXt" and num_classes == len(CIFAR10) else None
