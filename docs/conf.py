"""Sphinx configuration."""

from importlib.metadata import version as installed_version
from typing import Any

from sphinx.ext.napoleon import NumpyDocstring

project = "pixel2gene"
author = "The pixel2gene developers"
copyright = f"2026, {author}"
version = release = installed_version("pixel2gene").split(".dev")[0]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = "pixel2gene"
html_theme_options = {"use_download_button": False}


def _parse_returns_section(self: NumpyDocstring, section: str) -> list[str]:
    # Types stand in the signature, so the section is prose; napoleon would take its first line for a type.
    return self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))


def setup(app: Any) -> None:
    """Patch napoleon."""
    NumpyDocstring._parse_returns_section = _parse_returns_section
