"""Commands for workflows: JSON alone on stdout, messages on stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from click.testing import Result
from spatialdata import SpatialData, deepcopy, read_zarr
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation
from typer.testing import CliRunner

import pixel2gene as p2g
from pixel2gene.cli import app

runner = CliRunner()


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments])


def summary(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    # Alone on stdout, and without NaN, which is no JSON.
    found: dict[str, Any] = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    return found


@pytest.fixture(scope="module")
def store(embedded_once: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tissue and embedding, and two regions."""
    sdata = deepcopy(embedded_once)
    regions = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 300, 768), shapely.box(300, 0, 768, 768)])
    systems = get_transformation(sdata["he"], get_all=True)
    sdata["regions"] = ShapesModel.parse(regions, transformations=dict(systems))
    path = tmp_path_factory.mktemp("cli") / "slide.zarr"
    sdata.write(path)
    return path


@pytest.fixture(scope="module")
def model(fitted_once: p2g.Model, store: Path) -> Path:
    path = store.with_name("m.p2g")
    fitted_once.save(path)
    return path


@pytest.mark.usefixtures("short_default")
def test_one_command_after_the_other(store: Path, fitted_once: p2g.Model, tmp_path: Path) -> None:
    genes = fitted_once.genes[:3]
    out, model = tmp_path / "out.zarr", tmp_path / "m.p2g"
    options = [option for gene in genes for option in ("--genes", gene)]
    assert summary("fit", store, "--out", model, "--folds", 2, *options)["slides"] == ["slide"]
    assert p2g.Model.load(model).genes == genes
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    predicted = summary("predict", store, model, "--out", out, "--genes", genes[0])
    assert predicted["added"] == ["predicted", "predicted_map", "predicted_superpixels", "predicted_trust"]
    assert predicted["record"]["verb"] == "predict"
    assert predicted["genes"] == 1
    assert summary("denoise", out, model)["genes"] == 3
    aggregated = summary("aggregate", out, "denoised", "regions")
    assert aggregated["added"] == ["denoised_regions"]

    again = read_zarr(out)
    assert again["predicted"].shape == (predicted["units"], 1)
    assert again["denoised_regions"].n_obs == aggregated["units"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_predict_embeds_a_slide_as_the_model_expects_it(model: Path, tmp_path: Path) -> None:
    sdata = p2g.datasets.simulate(size=(256, 256), n_genes=5, seed=8)
    sdata.write(tmp_path / "new.zarr")
    predicted = summary("predict", tmp_path / "new.zarr", model, "--key-added", "filled", "--genes", "GENE0001")
    assert not predicted["record"]["trained_on_this_slide"]
    lazy = summary("predict", tmp_path / "new.zarr", model, "--key-added", "later", "--lazy")
    assert "later_latent" in lazy["added"] and "later_map" not in lazy["added"]
    again = read_zarr(tmp_path / "new.zarr")
    assert {"he_tissue", "he_embedding", "filled_map"} <= {name for _, name, _ in again.gen_elements()}


def test_info_of_a_store(store: Path) -> None:
    found = summary("info", store)
    assert found["images"]["he"]["mpp"] == pytest.approx(0.5)
    assert found["images"]["he"]["shape"] == [3, 768, 768]
    assert "mpp" not in found["images"]["he_embedding"]
    counts = read_zarr(store)["counts"]
    assert (found["tables"]["counts"]["units"], found["tables"]["counts"]["genes"]) == counts.shape
    assert found["tables"]["counts"]["annotates"] == ["square_008um"]
    assert found["results"]["he_embedding"]["encoder"]["name"] == "lite0"
    assert found["results"]["he_tissue"]["mpp"] == 0.5
    text = run("info", store)
    assert text.exit_code == 0
    assert "mpp: 0.5" in text.stdout


def test_info_says_why_an_image_has_no_pixel_size(tmp_path: Path) -> None:
    from spatialdata.models import Image2DModel

    picture = Image2DModel.parse(np.zeros((3, 64, 64), np.uint8), dims=("c", "y", "x"))
    SpatialData(images={"he": picture}).write(tmp_path / "bare.zarr")
    assert "pass mpp=" in summary("info", tmp_path / "bare.zarr")["images"]["he"]["problem"]


def test_info_of_a_model(model: Path, fitted_once: p2g.Model) -> None:
    found = summary("info", model)
    assert found["genes"] == fitted_once.genes
    assert found["encoder"] == fitted_once.encoder
    assert found["pearson"] == pytest.approx(fitted_once.scores["pearson"].tolist(), nan_ok=True)
    assert run("info", model).stdout.strip() == str(fitted_once.card()).strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "no.zarr", "{model}"], "There is no store at no.zarr"),
        (["predict", "{store}", "no.p2g"], "No model at no.p2g"),
        (["predict", "{store}", "{model}", "--genes", "nope"], "The model lacks ['nope']"),
        (["predict", "{store}", "{model}", "--out", "{store}"], "is the input itself"),
        (["denoise", "{store}", "{model}", "--table-key", "nope"], "No 'nope' among the tables; there are ['counts']"),
        (["aggregate", "{store}", "nope", "regions"], "nope"),
        (["fit", "{store}", "--out", "{model}"], "pass --overwrite"),
        (["fit", "{store}", "{store}", "--out", "m"], "named by their stores"),
        (["fit", "{store}", "--out", "m", "--recipe", "nope"], "There is no recipe 'nope'"),
        (["fit", "{store}", "--out", "m", "--encoder", "uni"], "was made by 'lite0', not 'uni'"),
        (["run", "{store}", "--out", ""], "which is no name of a store"),
        (["run", "{store}", "--out", "/"], "which is no name of a store"),
        (["info", "{folder}"], "is no SpatialData zarr store"),
    ],
)
def test_errors_are_one_sentence_on_stderr(store: Path, model: Path, arguments: list[str], message: str) -> None:
    result = run(*(one.format(store=store, model=model, folder=store.parent) for one in arguments), "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_use_has_an_exit_code_of_its_own() -> None:
    assert run("predict").exit_code == 2
