"""The curve is printed, and kept."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest

from pixel2gene.core.regression import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    transfer = importlib.import_module("transfer")
    short = partial(transfer.pixel2gene, recipe=Recipe(folds=3, max_checks=3, hidden=(16,)))
    monkeypatch.setattr(transfer, "pixel2gene", short)
    out = tmp_path / "curve.json"
    transfer.main(out, data="hd", shares="20", seeds=1, side=384, genes=8)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["share"], row["column"]) for row in rows] == [
        (0, transfer.WITH),
        (20, transfer.WITHOUT),
        (20, transfer.WITH),
    ]
    assert all(-1 < row["score"] < 1 for row in rows)
    assert "% measured" in capsys.readouterr().out
