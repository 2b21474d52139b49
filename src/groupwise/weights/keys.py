"""Which of a file's keys are a network's, whose names these are, and what stands before them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from groupwise.errors import UserError, call
from groupwise.texts import first_few
from groupwise.weights.naming import NAMINGS, Naming

ROLES = {
    "weight": ("weight", "kernel", "depthwise_kernel", "gamma", "W"),
    "bias": ("bias", "beta", "b"),
    "running_mean": ("running_mean", "moving_mean", "mean.EMA"),
    "running_var": ("running_var", "moving_variance", "variance.EMA"),
}
"""PyTorch's words for the last part of a key, and what Keras and tensorpack call the same."""

COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Of batch norm, of averaged weights and of a profiler (thop): no weights, wherever they stand."""

WRAPPERS = ("", "module", "_orig_mod", "model", "net", "network", "backbone")
"""What `DataParallel`, `torch.compile` and training programs (Lightning's) call the one network within them."""

LISTED = 8  # names in a sentence


class Recognised(NamedTuple):
    """A file's keys, understood.

    Attributes:
        naming: whose names they are.
        keys: from canonical keys to the file's.
        note: a sentence where the file holds something else besides, else None.
    """

    naming: Naming
    keys: dict[str, str]
    note: str | None


def recognise(source: str, family: str, keys: Iterable[str]) -> Recognised:
    """Find a network of a family among a file's keys, also where it is a part of something larger.

    Of several, averaged weights (EMA) are taken, as timm does, and else the one in a plain wrapper.

    Raises:
        UserError: the names are unknown or another family's, or it is unclear which network is meant.
    """
    canonical = canonical_keys(keys)
    modules = list(dict.fromkeys(key.rsplit(".", 1)[0] for key in canonical))
    likeness = {naming: naming.likeness(modules) for naming in NAMINGS}
    namings: dict[str, Naming] = {}
    for naming in (naming for naming in NAMINGS if family in naming.families):
        for prefix, count in likeness[naming].items():
            if prefix not in namings or count > likeness[namings[prefix]][prefix]:
                namings[prefix] = naming
    if not namings:
        _refuse(source, family, modules, likeness)
    chosen = _choose(source, list(namings))
    others = [prefix for prefix in namings if prefix != chosen]
    inner = [prefix for prefix in others if _is_below(prefix, chosen)]
    own = {key for key in canonical if _is_below(key, chosen) and not any(_is_below(key, other) for other in inner)}
    unread = [key for key in canonical if key not in own and not any(_is_below(key, other) for other in others)]
    notes = []
    if others:
        what = "averaged weights" if _is_averaged(chosen) else "weights"
        notes.append(f"the {what} below {_shown(chosen)} are taken, not those below {', '.join(map(_shown, others))}")
    if unread:
        left = first_few((canonical[key] for key in unread), LISTED)
        notes.append(f"left unread, since it lies beside the network: {left}")
    start = len(chosen) + 1 if chosen else 0
    return Recognised(
        namings[chosen], {key[start:]: canonical[key] for key in canonical if key in own}, "; ".join(notes) or None
    )


def canonical_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return {canonical key: file's key}: with dots, with PyTorch's word at the end, and without counters.

    Examples:
        >>> canonical_keys(["fc.weight", "bn1.num_batches_tracked"])
        {'fc.weight': 'fc.weight'}
        >>> canonical_keys(["conv1/bn/mean/EMA", "conv1/W"])
        {'conv1.bn.running_mean': 'conv1/bn/mean/EMA', 'conv1.weight': 'conv1/W'}
    """
    names = {key.replace("/", "."): key for key in keys}
    return {_canonical(name): key for name, key in names.items() if name.rsplit(".", 1)[-1] not in COUNTERS}


def _canonical(name: str) -> str:
    for role, synonyms in ROLES.items():
        for synonym in synonyms:
            if name.endswith(f".{synonym}"):
                return f"{name.removesuffix(synonym)}{role}"
    return name


def _choose(source: str, prefixes: list[str]) -> str:
    """Return below which prefix the network is that is meant."""
    likely = [prefix for prefix in prefixes if _is_averaged(prefix)] or prefixes
    if len(likely) > 1:
        likely = [prefix for prefix in likely if all(part in WRAPPERS for part in prefix.split("."))]
    if len(likely) == 1:
        return likely[0]
    raise UserError(
        f"{source} holds several networks of this kind, below {', '.join(map(_shown, prefixes))}: save a file of the "
        "one that is meant"
    )


def _is_averaged(prefix: str) -> bool:
    return any("ema" in part.split("_") for part in prefix.split("."))


def _is_below(key: str, prefix: str) -> bool:
    return not prefix or key.startswith(f"{prefix}.")


def _shown(prefix: str) -> str:
    return f"{prefix}." if prefix else "no prefix"


def _refuse(source: str, family: str, modules: Iterable[str], likeness: Mapping[Naming, Counter[str]]) -> None:
    """Say whose names a file has instead, or that they are unknown."""
    other = max(NAMINGS, key=lambda naming: max(likeness[naming].values(), default=0))
    if likeness[other]:
        raise UserError(
            f"{source} holds a network of {' or '.join(other.families)} in {other.publisher}'s names, not {family}: "
            f"choose the network that the weights belong to ({call('models.list_models')} lists the names)"
        )
    publishers = dict.fromkeys(naming.publisher for naming in NAMINGS if family in naming.families)
    raise UserError(
        f"{source} has unknown names ({first_few(sorted(modules), LISTED)}): {family} is read in the names of "
        f"{', '.join(publishers) or 'no publisher'}"
    )
