"""Code in the README and in docs/ runs, page by page and from the top; what is not run could be called as written."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from spatialdata import SpatialData, deepcopy, read_zarr
from typer.main import get_command

import pixel2gene as p2g
from pixel2gene.cli import app

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("CONTRIBUTING.md", "README.md"))]
PAGES.append(ROOT / "tutorials" / "README.md")
MODULES = {"p2g": "pixel2gene", "spatialdata_io": "spatialdata_io"}
# A comment on the line before says of some code that it is not run, and why.
_FENCE = re.compile(r"^(?P<mark><!-- not run: [^\n]* -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
_COMMAND = re.compile(r"\bpixel2gene +(?P<name>[a-z]+)(?P<rest>[^`\n|>\"]*)")


@dataclasses.dataclass(frozen=True)
class Block:
    language: str
    code: str
    runs: bool


def blocks(text: str) -> list[Block]:
    return [Block(m["language"], m["code"], m["mark"] is None) for m in _FENCE.finditer(text)]


def python(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text()) if block.language == "python"]


def check_calls(code: str) -> None:
    """Raise unless the code is Python whose calls of this package and of spatialdata-io take what they are given."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        root, *path = ast.unparse(node.func).split(".")
        if root not in MODULES:
            continue
        function: Any = import_module(MODULES[root])
        for name in path:
            function = getattr(function, name)
        given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(function).bind_partial(*node.args, **given)


@pytest.fixture(scope="module")
def slide(embedded_once: SpatialData) -> SpatialData:
    """A slide of which a gene has the name that pages use."""
    sdata = deepcopy(embedded_once)
    sdata["counts"].var_names = ["ERBB2", *sdata["counts"].var_names[1:]]
    return sdata


@pytest.fixture(scope="module")
def model(fitted_once: p2g.Model) -> p2g.Model:
    genes = ["ERBB2", *fitted_once.genes[1:]]
    return dataclasses.replace(fitted_once, genes=genes, scores=fitted_once.scores.set_axis(genes))


@pytest.mark.usefixtures("short_default")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.runs for b in python(page))], ids=lambda page: page.name
)
def test_python_runs(
    page: Path, slide: SpatialData, model: p2g.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = partial(p2g.datasets.simulate, size=(512, 512), n_genes=8)
    monkeypatch.setattr(p2g.datasets, "simulate", tiny)
    slide.write("slide.zarr")
    names: dict[str, Any] = {"p2g": p2g, "sdata": read_zarr("slide.zarr"), "model": model}
    for block in python(page):
        if block.runs:
            exec(compile(block.code, str(page), "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_not_run_could_be(page: Path) -> None:
    for block in python(page):
        check_calls(block.code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_readers_that_tutorials_name(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        for block in blocks("".join(cell["source"]) + "\n"):
            if block.language == "python":
                check_calls(block.code)


def commands() -> Iterator[tuple[str, str, str]]:
    for path in [*PAGES, *NOTEBOOKS]:
        for found in _COMMAND.finditer(path.read_text()):
            yield path.name, found["name"], found["rest"]


def test_commands_have_their_options() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for page, name, rest in commands():
        options = {option for option in shlex.split(rest.split("#")[0]) if option.startswith("--")} - {"--help"}
        if name in known:
            seen += 1
            allowed = {option for parameter in known[name].params for option in parameter.opts}
            assert options <= allowed, f"{page}: {name} has no {options - allowed}."
        else:
            assert not options, f"{page}: there is no command {name}."
    assert seen > 10
