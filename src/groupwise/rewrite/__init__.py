"""Exact rewrites of Keras models: faster layers, another form, convolution and batch norm in one."""

from groupwise.rewrite.accelerating import accelerate as accelerate
from groupwise.rewrite.accelerating import fuse as fuse
from groupwise.rewrite.forms import to_form as to_form
from groupwise.rewrite.report import report_of as report_of
