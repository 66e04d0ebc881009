"""Numbers are sound where latents have tails: many rare morphologies, and a real slide; small, and few steps."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pixel2gene.core.regression import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = Path(os.environ.get("PIXEL2GENE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def real_size(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("real_size")


def assert_sound(row: dict[str, Any]) -> None:
    assert row["finite"]
    for name, value in row.items():
        if name.endswith(("_total_min", "_total_max")) and not name.startswith("aggregated"):
            assert value == pytest.approx(1, abs=0.02), name
        if name.endswith("_largest"):
            assert value < 2, name
    # The mean over the members, summed up over spots by another way.
    assert row.get("aggregated_total_min", 1) > 0.97 and row.get("aggregated_total_max", 1) < 1.03


@pytest.mark.parametrize("spots", [False, True])
def test_rare_morphologies(real_size: ModuleType, spots: bool) -> None:
    sdata = real_size.rare_slide(112, 12, spots=spots, seed=1)
    row = real_size.row_of(sdata, 0, None, recipe=Recipe(max_checks=6))
    assert_sound(row)
    # Spots leave rare morphologies unseen, between them.
    assert row["told"] == [] or (spots and all("superpixels or more" in one for one in row["told"]))


@pytest.mark.skipif(not (SHARED / "visium_mouse_brain").exists(), reason="the real Visium slide is not here")
def test_a_real_slide(real_size: ModuleType) -> None:
    """Half of it; genes of one place, and the most abundant ones."""
    counts, sdata = real_size.read_mouse(left=1000)
    genes = ["Ttr", "Car8", "Pcp2", "Mbp", "Bc1", "mt-Co1", "Hbb-bs", "Ptgds", "Slc17a7", "Gng13"]
    other = real_size.put_counts(sdata, counts, genes, 0)
    row = real_size.row_of(sdata, 0, other, recipe=Recipe(max_checks=6))
    assert_sound(row)
    assert row["told"] == []
    assert row["x_explained"] > 0.8 and row["expected_explained"] > 0.6
