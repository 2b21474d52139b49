"""Classes told apart by their names, however these are written; never by their places."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from groupwise.errors import UserError
from groupwise.texts import first_few, quoted


def normal_form(text: str) -> str:
    """Return a text in one Unicode normal form and without case: "É" as one character or two is "é"."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def loosest_form(text: str) -> str:
    """Return a class's name with nothing left that two people write differently: case, spaces, "_", "-"."""
    return re.sub(r"[\s_\-]+", " ", normal_form(text)).strip()


# How a name is written, from exactly the same to about the same.
FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda text: unicodedata.normalize("NFC", text),
    normal_form,
    loosest_form,
)


def some(names: Iterable[str]) -> str:
    """Return the first few names, quoted, and how many more there are."""
    return first_few(map(quoted, names))


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Return the place among the known names of each name that is known.

    A name that is written exactly so comes first, then one in another Unicode normal form, then one in another case,
    then one with other spaces, underscores or hyphens.

    Raises:
        UserError: a name may be one of several, or several names are one.

    Examples:
        >>> match_names(["golden_retriever", "Cat", "owl"], ["cat", "golden retriever"])
        {'golden_retriever': 1, 'Cat': 0}
    """
    places: dict[str, int] = {}
    for form in FORMS:
        by_form: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(known):
            by_form[form(name)].append(place)
        for name in names:
            found = by_form.get(form(name), []) if name not in places else []
            if len(found) > 1:
                raise UserError(
                    f"the class {quoted(name)} may be any of {some(known[place] for place in found)}: rename it"
                )
            places.update((name, place) for place in found)
    _refuse_twins(places, known)
    return {name: places[name] for name in names if name in places}


def _refuse_twins(places: Mapping[str, int], known: Sequence[str]) -> None:
    by_place: dict[int, list[str]] = defaultdict(list)
    for name, place in places.items():
        by_place[place].append(name)
    for place, twins in by_place.items():
        if len(twins) > 1:
            raise UserError(
                f"the classes {some(sorted(twins))} would all be {quoted(known[place])}: join them, or rename one"
            )
