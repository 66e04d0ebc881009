"""Borders of tiles and windows do not show, and would without halo or overlap; embeddings are compared."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pixel2gene.core.stain import Stain, fit_stain
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


@pytest.mark.usefixtures("short_default")
def test_embeddings_are_compared_on_the_same_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    encoders = importlib.import_module("encoders")
    out = tmp_path / "accuracy.json"
    few = {"data": "hd", "tasks": "fill half", "side": 384, "genes": 8}
    encoders.accuracy(out, embeddings="scales 1-2", **few)
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["default", "scales 1-2"]
    assert rows[0]["units"] == rows[1]["units"] and rows[0]["score"] != rows[1]["score"]
    printed = capsys.readouterr().out.splitlines()[-1].split()
    assert [float(value) for value in printed[-2:]] == [
        pytest.approx(value, abs=1e-3) for value in (rows[0]["score"], rows[1]["score"] - rows[0]["score"])
    ]


def test_a_restained_image_has_other_dyes_of_another_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    encoders = importlib.import_module("encoders")
    image = paint((256, 256), 0.5, 1).image
    tissue = image.mean(axis=0) < 190

    def stain(pixels: NDArray[np.uint8]) -> Stain:
        values = pixels.astype(np.float32)
        return fit_stain(values[:, tissue], values.reshape(3, -1)[:, ::101])

    own, strong = stain(image), stain(encoders.restained(strength=1.5)(image))
    np.testing.assert_allclose(strong.strength / own.strength, 1.5, rtol=0.1)
    turned = stain(encoders.restained(turn=0.25)(image))
    assert np.degrees(np.arccos((turned.dyes * own.dyes).sum(axis=0).clip(-1, 1))).min() > 8
    same = encoders.restained()(image)
    assert np.abs(same.astype(int) - image).max() <= 1
