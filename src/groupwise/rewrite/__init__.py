"""Rewrites of Keras models, exact unless they say otherwise: faster layers, another form, another structure."""

from groupwise.rewrite.accelerating import accelerate, fuse
from groupwise.rewrite.changes import Report, report_of
from groupwise.rewrite.folding import fold_batch_norm
from groupwise.rewrite.forms import to_form
from groupwise.rewrite.speed import Speed, measure
from groupwise.rewrite.structures import dense_to_grouped, dense_to_separable, grouped_to_dense, separable_to_dense

__all__ = [
    "Report",
    "Speed",
    "accelerate",
    "dense_to_grouped",
    "dense_to_separable",
    "fold_batch_norm",
    "fuse",
    "grouped_to_dense",
    "measure",
    "report_of",
    "separable_to_dense",
    "to_form",
]
