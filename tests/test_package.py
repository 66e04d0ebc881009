from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import pixel2gene as p2g


def test_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "spatialdata", "squidpy", "pandas")
    code = f"import sys, pixel2gene.cli; print([m for m in {heavy} if m in sys.modules])"
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


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning, UserWarning])
def test_what_our_own_code_warns_of_is_an_error_in_tests(kind: type[Warning]) -> None:
    with pytest.raises(kind, match="old"):
        warnings.warn_explicit("old", kind, "_fit.py", 1, module="pixel2gene.tl._fit")
