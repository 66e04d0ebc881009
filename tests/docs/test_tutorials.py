"""Tutorials as they are kept: without outputs, on every list. They are run when the pages are built (docs/conf.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def test_all_are_listed() -> None:
    assert len(NOTEBOOKS) == 8
    overview, contents = ((ROOT / name).read_text() for name in ("tutorials/README.md", "docs/index.md"))
    for notebook in NOTEBOOKS:
        assert f"({notebook.name})" in overview
        assert f"\ntutorials/{notebook.stem}\n" in contents


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    text = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
    assert "**You will learn**" in text and "## Before you believe it" in text
    assert "**simulated**" in text or "**real**" in text
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
