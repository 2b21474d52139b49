"""Classes of data and of networks, matched by name or by WordNet id, never by position."""

from collections.abc import Sequence

from groupwise.data import Dataset, Split
from groupwise.data.classes import match_names, some
from groupwise.errors import UserError, argument
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.texts import did_you_mean, nearest, quoted
from groupwise.weights import imagenet_classes


def match_classes(network: Network | RewrittenNetwork, dataset: Dataset) -> tuple[Split, str | None]:
    """Return the test split with the network's classes, and a note on names that are written in another way.

    Classes are matched by name, or by ImageNet's WordNet id, never by position; the data may have fewer.

    Raises:
        UserError: the data has classes that the network does not know, or that may be several.
    """
    matched, note = among_classes(dataset, network.metadata["class_names"])
    return matched.test, note


def among_classes(dataset: Dataset, known: Sequence[str]) -> tuple[Dataset, str | None]:
    """Return a data set to test on with the classes that a model knows, and a note as `match_classes` does.

    Raises:
        UserError: it has others, or some that may be several.
    """
    places = places_of(dataset.class_names, known)
    unknown = [name for name in dataset.class_names if name not in places]
    if unknown:
        numbers = "; its labels are numbers: the classes' names are needed" if "".join(unknown).isdecimal() else ""
        raise UserError(
            f"{dataset.name} has classes that the model does not know: {some(unknown)}{numbers}. It knows {some(known)}"
        )
    note = None
    ids = _ids(known)
    other = {name: known[place] for name, place in places.items() if name != known[place] and name not in ids}
    if other:
        name, twin = next(iter(other.items()))
        more = f", and {len(other) - 1} more that are written in another way" if len(other) > 1 else ""
        note = f"the class {quoted(name)} is the model's {quoted(twin)}{more}"
    return dataset.relabelled(known, [places[name] for name in dataset.class_names]), note


def with_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Return a data set to train on, its classes in this order and written in this way.

    Raises:
        UserError: it has others, or lacks some.
    """
    places = places_of(dataset.class_names, class_names)
    extra = [name for name in dataset.class_names if name not in places]
    taken = set(places.values())
    missing = [name for place, name in enumerate(class_names) if place not in taken]
    if extra or missing:
        says = [f"{some(extra)} {'is' if len(extra) == 1 else 'are'} new"] * bool(extra)
        says += [f"it lacks {some(missing)}"] * bool(missing)
        raise UserError(f"{dataset.name} has other classes than the model: {'; '.join(says)}")
    return dataset.relabelled(class_names, [places[name] for name in dataset.class_names])


def places_of(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Return the place of each known name, or of its WordNet id where the known names are ImageNet's.

    Raises:
        UserError: a name may be one of several (two of ImageNet's classes are called crane), or several names are one.
    """
    ids = _ids(known)
    by_id = {name: ids[name] for name in names if name in ids}
    return {**match_names([name for name in names if name not in ids], known), **by_id}


def place_of(name: str, class_names: Sequence[str], ids: Sequence[str | None]) -> int:
    """Return the place of the class that a user names: by its name, WordNet id or index.

    Args:
        name: the user's.
        class_names, ids: of a network's classes, in their order; `groupwise.weights.wordnet_ids` has the ids.

    Raises:
        UserError: there is none, with the nearest names, or there are two of the name.
    """
    named = argument("explained_class", name)
    places = [place for place, known in enumerate(class_names) if known == name]
    if len(places) > 1:
        choices = " or ".join(str(ids[place] or place) for place in places)
        raise UserError(f"{named}: {len(places)} classes have this name; say which one: {choices}")
    if places:
        return places[0]
    if name in ids:
        return ids.index(name)
    if name.isdecimal() and int(name) < len(class_names):
        return int(name)
    hint = did_you_mean(nearest(name, class_names, count=3))
    hint = hint or f"the model has {len(class_names)} classes, none like it"
    raise UserError(f"{named}: there is no such class; {hint}")


def _ids(known: Sequence[str]) -> dict[str, int]:
    """Return the places of ImageNet's classes by their WordNet ids; empty where the known ones are not ImageNet's."""
    classes = imagenet_classes()
    return {name: place for place, name in enumerate(classes)} if list(classes.values()) == list(known) else {}
