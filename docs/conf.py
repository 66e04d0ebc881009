"""Sphinx configuration. Building the pages runs the tutorials: an error in one of them is an error of the build."""

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import NumpyDocstring

ROOT = Path(__file__).resolve().parents[1]

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
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages: their pages are not asked, so that the build needs no network.
    ("py:.*", r"(?!pixel2gene).*"),
    # What a model is made of, and aliases.
    ("py:class", r"pixel2gene\.core\.(ensemble|trust|model\.TrainingSlide|regression\.History).*"),
    ("py:class", r"pixel2gene\.(pl\._raster\.Crop|core\.alignment\.Floats)"),
]

autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # progress bars
# The tutorial of real data shows its code alone where there are none.
os.environ.setdefault("PIXEL2GENE_DATA", str(ROOT.parent / "shared" / "data"))
if not (Path(os.environ["PIXEL2GENE_DATA"]) / "her2st").is_dir():
    nb_execution_excludepatterns = ["8_her2st.ipynb"]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "sphinx_book_theme"
html_title = "pixel2gene"
html_static_path = ["_static"]
html_css_files = ["pages.css"]


def _parse_returns_section(self: NumpyDocstring, section: str) -> list[str]:
    # Types stand in the signature, so the section is prose; napoleon would take its first line for a type.
    return self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))


# Tutorials lie beside this folder, where users look for them, but Sphinx reads one folder.
shutil.rmtree(ROOT / "docs" / "tutorials", ignore_errors=True)
shutil.copytree(ROOT / "tutorials", ROOT / "docs" / "tutorials")


def _links_of_tutorials(app: Any, document: str, source: list[str]) -> None:
    before, after = ("../docs/", "../") if document.startswith("tutorials/") else ("../tutorials/", "tutorials/")
    source[0] = source[0].replace(f"]({before}", f"]({after}")


def setup(app: Any) -> None:
    """Patch napoleon, and the links of the tutorials."""
    NumpyDocstring._parse_returns_section = _parse_returns_section
    app.connect("source-read", _links_of_tutorials)
