"""Networks with published weights: what the weights expect of network and images, and the network that fits them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from groupwise import keras_private, models
from groupwise.data.preprocessing import Preprocessing
from groupwise.models.form_weights import in_form
from groupwise.models.network import Network, without_values
from groupwise.models.registry import Variant
from groupwise.weights import Published, class_names_of, give, input_of, open_published


@dataclass(frozen=True)
class Origin:
    """What published weights expect of the network that takes them.

    Attributes:
        publisher: whose names the file has.
        arguments: of `create`, where the published network differs from the variant.
        preprocessing: of its images.
        image_size: (height, width) of its images, in pixels.
        num_classes: of its head; None where the file has none.
        class_names: of these classes, where they are known.
    """

    publisher: str
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing
    image_size: tuple[int, int]
    num_classes: int | None
    class_names: Sequence[str] | None


def create_pretrained(
    name: str,
    source: str | Path,
    num_classes: int | None = None,
    input_shape: Sequence[int | None] | None = None,
    include_top: bool = True,
    features: Sequence[str] | None = None,
    dtype: str | None = None,
    **arguments: Any,
) -> tuple[Network, str | None]:
    """Return `create`'s network with published weights, and a note or None.

    The note says where the head was left fresh, and what else the file holds.
    """
    variant = models.find(name)
    with open_published(source, variant.family) as published:
        origin = origin_of(published, variant, arguments)
        with without_values():
            network = models.create(
                name,
                num_classes if num_classes is not None else origin.num_classes,
                input_shape or (*origin.image_size, variant.input_shape[2]),
                include_top,
                features,
                dtype,
                **origin.arguments,
            )
        fresh_head = _load(network, published)
    network.metadata["preprocessing"] = origin.preprocessing.as_dict()
    network.metadata["weights"] = {"source": str(source), "publisher": origin.publisher}
    has_head = include_top and features is None and fresh_head is None
    if origin.class_names is not None and has_head:
        network.metadata["class_names"] = list(origin.class_names)
    return network, _joined(fresh_head, published.note)


@dataclass(frozen=True)
class Loaded:
    """What a file gave a network.

    Attributes:
        fresh_head: why the head stayed fresh; None where it did not.
        beside: what else the file holds; None where that is nothing.
        class_names: of the file's head, where they are known.
    """

    fresh_head: str | None
    beside: str | None
    class_names: Sequence[str] | None


def load_pretrained(network: Network, source: str | Path) -> Loaded:
    """Give a network published weights, and return what they are.

    Args:
        network: made by `create` with the arguments that `read_origin` says.
        source: as for `create`.
    """
    family = models.find(network.architecture["name"]).family
    with open_published(source, family) as published:
        names = class_names_of(published.config, published.num_classes, family)
        return Loaded(_load(network, published), published.note, names)


def read_origin(name: str, source: str | Path, **arguments: Any) -> Origin:
    """Return what a source of weights expects of the named network; `arguments` are the caller's own of `create`."""
    variant = models.find(name)
    with open_published(source, variant.family) as published:
        return origin_of(published, variant, arguments)


def _joined(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None


def _load(network: Network, published: Published) -> str | None:
    """Load weights into a network in any of ResNeXt's forms, of which files know the third, or into a part of one."""
    architecture = network.architecture
    form = architecture.get("form", "c")
    if form != "c":
        with without_values():
            grouped = models.create(**{**architecture, "form": "c"})
        note = _load(grouped, published)
        for variable, value in zip(network.weights, in_form(grouped, form).get_weights(), strict=True):
            give(variable, value)
    else:
        complete = None
        if not architecture["include_top"] or architecture["features"] is not None:
            with without_values():
                complete = models.create(**{**architecture, "include_top": True, "features": None})
        note = published.load(network, complete)
    for variable in network.variables:
        # A fresh head, and the seeds of dropout.
        if keras_private.held_value(variable) is None:
            keras_private.initialize(variable)
    return note


def origin_of(published: Published, variant: Variant, given: Mapping[str, Any]) -> Origin:
    """Return what an opened file expects of a variant's network.

    Args:
        given: the caller's own arguments of `create`, which come before the publisher's.
    """
    declared = models.variants().get(published.config.get("architecture", ""), variant)
    # timm's tf_efficientnet_lite0 and efficientnet_lite0 have the same names and shapes: the hub says which it is.
    own = declared if declared.name.removeprefix("tf_") == variant.name.removeprefix("tf_") else variant
    differing = {name: value for name, value in own.arguments.items() if variant.arguments.get(name) != value}
    arguments = {**differing, **published.arguments({**own.arguments, **given})}
    if variant.takes("use_bias") and published.num_classes is not None:
        arguments["use_bias"] = published.shape("head.bias") is not None
    changes, image_size = input_of(published.publisher, variant.family, published.config, own.input_shape[:2])
    return Origin(
        published.publisher,
        {**arguments, **given},
        replace(own.preprocessing, **changes),
        image_size,
        published.num_classes,
        class_names_of(published.config, published.num_classes, variant.family),
    )
