from __future__ import annotations

import subprocess
import sys

import pytest

import pixel2gene as p2g


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, pixel2gene; print([m for m in ('torch', 'spatialdata', 'squidpy', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_all_names_are_there() -> None:
    for name in p2g.__all__:
        assert getattr(p2g, name) is not None
    for module in (p2g.tl, p2g.pl, p2g.io, p2g.datasets):
        assert all(callable(getattr(module, name)) for name in module.__all__)
    assert set(p2g.__all__) <= set(dir(p2g))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pp'"):
        p2g.pp  # noqa: B018
