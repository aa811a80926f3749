"""Sphinx configuration of the documentation; `make docs` builds it.

The source directory is the root of the repository, so that links between
README.md, docs/, training/ and examples/ work here as they do on a code host.
"""

import os
import pathlib
import re
import sys
import textwrap

# TensorFlow's start-up log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from sphinx.util import inspect

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from keras_aspp.version import __version__  # noqa: E402

project = "keras_aspp"
author = "The keras_aspp authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "examples/*.md",
    "saved_models/*/README.md",
    "training/README.md",
]
exclude_patterns = [".*", "build", "docs/images", "runs"]
html_theme = "furo"
html_title = f"keras_aspp {version}"

# Links to headings, such as `backbones.md#supported-layers`.
myst_heading_anchors = 3

# Docstrings put code between single backticks, as Keras' do. This role links
# the names of the reference and shows everything else as code.
default_role = "py:obj"
autodoc_member_order = "bysource"
# Longer signatures get one argument per line.
python_maximum_signature_line_length = 80
autodoc_typehints_format = "short"
# Overridden methods would show Keras' docstrings, which are Markdown.
autodoc_inherit_docstrings = False
# `Attributes:` may list methods, which autodoc documents as well.
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    "Reference",
    "Source",
]

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\[([^\[\]]+)\]\((https?://[^)\s]+)\)")
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
_EXAMPLE = re.compile(r"^Examples?:\n(?=(    )?)", re.M)


def rewrite_markdown(app, what, name, obj, options, lines):
    """Rewrites a docstring's Markdown and `Example:` as reStructuredText."""
    # The default role would drop the dot of `.keras`.
    text = _CODE.sub(
        lambda m: m[0] if m[1][0].isalpha() else f"`{m[0]}`", "\n".join(lines)
    )
    text = _LINK.sub(r"`\1 <\2>`__", text)
    text = _FENCE.sub(lambda m: textwrap.indent(m[1], "    "), text)
    text = _EXAMPLE.sub(
        lambda m: ".. rubric:: Example\n\n" + ("::\n\n" if m[1] else ""), text
    )
    lines[:] = text.split("\n")


def whole_signature(app, what, name, obj, options, signature, returns):
    """Replaces the signature of Keras' `__new__` by that of `__init__`."""
    if what == "class" and signature == "(*args, **kwargs)":
        own = inspect.signature(obj.__init__, bound_method=True)
        text = inspect.stringify_signature(own, unqualified_typehints=True)
        return text.removesuffix(" -> None"), ""
    return None


def skip_member(app, what, name, obj, skip, options):
    """Skips methods that carry Keras' docstring, by `functools.wraps`."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.startswith("keras.src") else None


def setup(app):
    """Connects the hooks; the rewriting runs before napoleon."""
    app.connect("autodoc-process-docstring", rewrite_markdown, priority=100)
    app.connect("autodoc-process-signature", whole_signature)
    app.connect("autodoc-skip-member", skip_member)
