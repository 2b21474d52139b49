"""Published weights: where they are found, whose names they have, and their way into our networks."""

from groupwise.weights.imagenet import class_names_of, distinct_names, imagenet_classes, wordnet_ids
from groupwise.weights.locating import is_source
from groupwise.weights.published import Published, open_published
from groupwise.weights.publishers import input_of
from groupwise.weights.slots import give

__all__ = [
    "Published",
    "class_names_of",
    "distinct_names",
    "give",
    "imagenet_classes",
    "input_of",
    "is_source",
    "open_published",
    "wordnet_ids",
]
