"""Classes are found by their names, however these are written."""

import pytest

from groupwise.data.classes import match_names, some
from groupwise.errors import UserError

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("names", "known", "places"),
    [
        (["b", "a"], ["a", "b"], {"b": 1, "a": 0}),
        (["CAT", "Dog"], ["cat", "dog", "owl"], {"CAT": 0, "Dog": 1}),
        (["cafe\u0301"], ["tea", "Caf\u00e9"], {"cafe\u0301": 1}),
        (["golden_retriever", "red-fox"], ["golden retriever", "red fox"], {"golden_retriever": 0, "red-fox": 1}),
        (["cat", "Cat"], ["Cat", "cat"], {"cat": 1, "Cat": 0}),  # exactly comes first
        (["owl", "0"], ["cat", "dog"], {}),
    ],
)
def test_classes_are_matched_by_name(names, known, places):
    assert match_names(names, known) == places


@pytest.mark.parametrize(
    ("names", "known", "says"),
    [
        (["CAT"], ["cat", "Cat"], "'CAT' may be any of 'cat', 'Cat'"),
        (["crane"], ["crane", "owl", "crane"], "may be any of 'crane', 'crane'"),
        (["cat", "Cat"], ["cat", "dog"], "'Cat', 'cat' would all be 'cat'"),
    ],
)
def test_names_that_may_be_several_classes_are_refused(names, known, says):
    with pytest.raises(UserError, match=says):
        match_names(names, known)


def test_names_are_shown_as_they_are():
    shown = some(["\u00e9\u3000", "cat's", "\x1b[31m", "caf\udce9", "caf\udcc3\udca9", "more"])
    assert shown == "'\u00e9\u3000', \"cat's\", '\\x1b[31m', 'caf\\xe9', 'caf\u00e9' and 1 more"
