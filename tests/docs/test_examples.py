"""The examples in the docstrings of public functions run, and there is one for each."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from spatialdata import SpatialData

import pixel2gene as p2g

PUBLIC: dict[str, Callable[..., Any]] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in (p2g.tl, p2g.pl, p2g.datasets, p2g.io)
    for name in module.__all__
} | {"encoders": p2g.encoders, "Model": p2g.Model}


@pytest.mark.usefixtures("short_default")
@pytest.mark.parametrize("name", PUBLIC)
def test_example(
    name: str, embedded: SpatialData, fitted: p2g.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert "Examples\n--------\n>>> " in text, f"{name} has no example."
    names = {"p2g": p2g, "np": np, "sdata": embedded, "model": fitted}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    found: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=found.append)
    plt.close("all")
    assert not found, "".join(found)
