"""Rewrites of Keras models, exact unless they say otherwise: faster layers, another form, another structure."""

from groupwise.rewrite.accelerating import accelerate as accelerate
from groupwise.rewrite.accelerating import fuse as fuse
from groupwise.rewrite.changes import Report as Report
from groupwise.rewrite.changes import report_of as report_of
from groupwise.rewrite.folding import fold_batch_norm as fold_batch_norm
from groupwise.rewrite.forms import to_form as to_form
from groupwise.rewrite.speed import Speed as Speed
from groupwise.rewrite.speed import measure as measure
from groupwise.rewrite.structures import dense_to_grouped as dense_to_grouped
from groupwise.rewrite.structures import dense_to_separable as dense_to_separable
from groupwise.rewrite.structures import grouped_to_dense as grouped_to_dense
from groupwise.rewrite.structures import separable_to_dense as separable_to_dense
