"""Every mistake of `docs/bad_input.md` is answered as it says, in one sentence, and nothing is changed."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from spatialdata import SpatialData

import pixel2gene as p2g

DOCS = Path(__file__).parents[1] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bad_input", DOCS / "bad_input.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["bad_input"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = load()
PAGE = (DOCS / "bad_input.md").read_text()
# What is expected, or there is, or to be done.
HELPS = re.compile(
    r"expected|there (is|are)|it has|at least|choose|pass|give|run|name|leave|load|check|align|join|fit|copy|write|"
    r"keep|correct|add|link|subset|use|make|lower|bring|ask|exists"
)


@pytest.fixture(scope="module")
def given() -> Iterator[Any]:
    shared = TABLE.given()
    before = state(shared.sdata)
    yield shared
    assert state(shared.sdata) == before


def state(sdata: SpatialData) -> dict[str, object]:
    """All that a verb could have changed."""
    found: dict[str, object] = {"attrs": repr(sdata.attrs)}
    for kind, name, element in sdata.gen_elements():
        if kind == "tables":
            values = element.X.toarray() if hasattr(element.X, "toarray") else element.X
            found[name] = (
                values.tobytes(),
                repr(element.obs) + repr(element.var) + repr(element.uns),
                sorted(map(str, element.layers)),
                sorted(element.obsm),
            )
        elif kind in ("images", "labels"):
            found[name] = np.asarray(element.data).tobytes()
        else:
            found[name] = repr(element)
    return found


@pytest.mark.parametrize("case", TABLE.CASES, ids=[f"{case.function}: {case.what}" for case in TABLE.CASES])
@pytest.mark.filterwarnings("ignore")
def test_mistake(case: Any, given: Any, tmp_path: Path) -> None:
    changed = case.change(given.sdata)
    before = {name: (id(element), repr(element)) for _, name, element in changed.gen_elements()}
    attrs = repr(changed.attrs)
    try:
        with pytest.raises((ValueError, LookupError, OSError, TypeError)) as caught:
            case.call(TABLE.Given(changed, given.model, tmp_path))
    finally:
        plt.close("all")
    said = TABLE.message(caught.value, tmp_path)
    assert said.endswith(".") and "\n" not in said and 25 < len(said) < 600
    assert HELPS.search(said), said
    assert "object has no attribute" not in said and "not supported between" not in said
    assert TABLE.row(case, caught.value, tmp_path) in PAGE, f"run docs/bad_input.py: {said}"
    assert {name: (id(element), repr(element)) for _, name, element in changed.gen_elements()} == before
    assert repr(changed.attrs) == attrs


def test_every_public_function_has_its_mistakes() -> None:
    modules = {"tl": p2g.tl, "io": p2g.io, "datasets": p2g.datasets}
    verbs = {f"{name}.{verb}" for name, module in modules.items() for verb in module.__all__}
    assert verbs <= {case.function for case in TABLE.CASES}
    assert len(TABLE.CASES) >= 150
    assert PAGE.count("\n| ") - 2 * PAGE.count("\n## ") == len(TABLE.CASES)
