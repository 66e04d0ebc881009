"""Borders of tiles and windows do not show, and would without halo or overlap."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from pixel2gene.datasets._paint import paint
from pixel2gene.spatial import raster

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    encoders = importlib.import_module("encoders")
    for module in (raster, encoders):
        monkeypatch.setattr(module, "ENCODED", 24)
    monkeypatch.setattr(encoders, "EDGE", 8)
    pixels = paint((576, 576), 0.5, 0).image
    rows = [
        encoders.measure(pixels, "lite0", encoders.lite0(**seen), overlap)
        for seen, overlap in (({}, 0.0), ({"halo": 0, "window": 224}, 0.5), ({"halo": 0}, 0.0))
    ]
    *hidden, shown = (row["seam"] for row in rows)
    assert all(1 / 1.02 < value < 1.02 for value in hidden), hidden
    assert shown > 1.05
