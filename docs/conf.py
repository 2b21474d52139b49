"""Sphinx makes the documentation's site of the pages beside this file: see `.ci/docs`."""

project = "groupwise"
author = "the groupwise authors"
project_copyright = "the groupwise authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]

# Links to headings are checked down to this level.
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

# Docstrings write `name` in one backtick: a link where the name is documented, code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "groupwise"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
