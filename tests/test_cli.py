from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from typer.testing import CliRunner

import pixel2gene as p2g
from pixel2gene.cli import app

runner = CliRunner()


@pytest.mark.usefixtures("short_default")
def test_demo_writes_store_model_and_figure(tmp_path: Path) -> None:
    result = runner.invoke(app, ["demo", "--folder", str(tmp_path), "--side", "768", "--genes", "30"])
    assert result.exit_code == 0, result.output
    raw, denoised = (float(re.search(rf"{name} .*(\d\.\d+)", result.output)[1]) for name in ("raw counts", "denoised"))
    assert denoised > raw
    assert {"predicted", "denoised", "held_back"} <= set(read_zarr(tmp_path / "pixel2gene-demo.zarr").tables)
    assert p2g.Model.load(tmp_path / "pixel2gene-demo.p2g").genes
    assert (tmp_path / "pixel2gene-demo.png").stat().st_size > 10_000
    assert "All 30 genes of the model" in " ".join((tmp_path / "pixel2gene-demo.html").read_text("utf-8").split())


@pytest.fixture
def store(embedded: SpatialData, tmp_path: Path) -> Path:
    del embedded["he_tissue"], embedded["he_embedding"]
    embedded.attrs.pop("pixel2gene")
    path = tmp_path / "slide.zarr"
    embedded.write(path)
    return path


@pytest.mark.usefixtures("short_default")
def test_run_leaves_the_input_alone_and_resumes(store: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    arguments = [
        "run",
        str(store),
        "--out",
        str(tmp_path / "out.zarr"),
        "--report-gene",
        "nope",
        "--gene",
        "{}",
        "--gene",
        "{}",
    ]
    genes = read_zarr(store)["counts"].var_names[:2].tolist()
    arguments[-3], arguments[-1] = genes
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert list(read_zarr(tmp_path / "out.zarr")["predicted"].var_names) == genes
    assert set(pd.read_csv(tmp_path / "out.scores.csv")["gene"]) == set(genes)
    page = (tmp_path / "out.html").read_text("utf-8")
    assert "<title>out " in page and "nope." in page

    again = runner.invoke(app, [*arguments, "--json"])
    assert again.exit_code == 0, again.output
    assert "Embed the H&E" in result.stderr
    assert "Embed the H&E" not in again.output
    written = json.loads(again.stdout)
    assert (written["scores"], written["report"]) == (str(tmp_path / "out.scores.csv"), str(tmp_path / "out.html"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "nope"], "No 'nope' among the tables"),
        (["--image", "nope"], "No 'nope' among the images"),
        (["--mpp", "2.0"], "disagrees by over 5 %"),
    ],
)
def test_run_says_what_is_wrong(store: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["run", str(store), "--out", str(tmp_path / "out.zarr"), *arguments])
    assert result.exit_code == 1
    assert message in result.stderr


def test_demo_says_what_is_wrong(tmp_path: Path) -> None:
    result = runner.invoke(app, ["demo", "--folder", str(tmp_path), "--side", "100"])
    assert result.exit_code == 1
    assert "give at least 256 pixels a side" in result.stderr


def test_run_refuses_a_missing_store_and_its_own_input(store: Path, tmp_path: Path) -> None:
    missing = runner.invoke(app, ["run", str(tmp_path / "no.zarr"), "--out", str(tmp_path / "out.zarr")])
    assert missing.exit_code == 1
    assert "There is no store" in missing.stderr
    same = runner.invoke(app, ["run", str(store), "--out", str(store)])
    assert same.exit_code == 1
    assert "is the input itself" in same.stderr
