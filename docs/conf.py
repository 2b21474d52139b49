"""Sphinx makes the documentation's site of the pages beside this file: see `.ci/docs`."""

import inspect
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.util.inspect import signature, stringify_signature

from groupwise import __version__ as release

project = "groupwise"
author = "the groupwise authors"
project_copyright = "the groupwise authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Links to headings are checked down to this level.
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_maximum_signature_line_length = 88
# Docstrings write `name` between single backticks.
default_role = "py:name"

html_theme = "furo"
html_title = f"groupwise {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


class Name(PyXRefRole):
    """Code as it is written; a link where it is the name of something that is documented."""

    def process_link(
        self, env: Any, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        _, target = super().process_link(env, refnode, has_explicit_title, title, target)
        return title, target


def show_what_is_taken(
    app: Sphinx, what: str, name: str, value: Any, options: Any, shown: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show the arguments of `__init__` for Keras's layers, whose `__new__` takes any."""
    if what == "class" and shown == "(*args, **kwargs)":
        taken = signature(value.__init__, bound_method=True).replace(return_annotation=inspect.Signature.empty)
        return stringify_signature(taken, unqualified_typehints=True), returns
    return shown, returns


def setup(app: Sphinx) -> None:
    app.add_role_to_domain("py", "name", Name())
    app.connect("autodoc-process-signature", show_what_is_taken)
