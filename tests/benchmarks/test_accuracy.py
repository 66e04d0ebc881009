"""The scoreboard runs, and keeps what it found."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import typer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.usefixtures("short_default")
def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    accuracy = importlib.import_module("accuracy")
    out = tmp_path / "table.json"
    accuracy.table(out, data="hd", tasks="fill half,denoise", method="-paper,-oracle", seeds=1, side=384, genes=8)
    rows = json.loads(out.read_text())["rows"]
    score = {(row["task"], row["method"]): row["score"] for row in rows}
    assert score["fill half", "gene mean"] == 0
    assert 0 < score["denoise", "raw counts"] < score["denoise", "smoothing"] < 1
    assert {"out_of_fold", "unmeasured"} <= rows[-2].keys()
    assert "share of oracle" not in (printed := capsys.readouterr().out)
    assert "best other" in printed

    accuracy.table(out, data="hd", tasks="fill half", method="kNN,default", seeds=1, side=384, genes=8, resume=True)
    assert json.loads(out.read_text())["rows"] == rows
    with pytest.raises(typer.BadParameter, match="was made with"):
        accuracy.table(out, data="hd", tasks="fill half", method="kNN", seeds=1, side=384, genes=9, resume=True)
