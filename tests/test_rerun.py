"""What a result records is enough to make it again."""

from __future__ import annotations

import json
import re
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from spatialdata import SpatialData, deepcopy, read_zarr
from typer.testing import CliRunner

import pixel2gene as p2g
from pixel2gene.cli import app
from pixel2gene.cli.rerun import repeat
from pixel2gene.cli.stores import write_store
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.repetition import differences, recorded_steps, require_same_inputs, without_results

runner = CliRunner()
SHORT = Recipe(folds=2, hidden=(8,), max_checks=1)


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rerun") / "slide.zarr"
    p2g.datasets.simulate(size=(256, 320), n_genes=6, counts_per_superpixel=60, measured=1.0, seed=3).write(path)
    return path


@pytest.fixture(scope="module")
def by_verbs(slide: Path) -> Path:
    """Made in Python, with a recipe of its own and two models."""
    sdata = read_zarr(slide)
    path = slide.with_name("verbs.zarr")
    sdata.write(path)
    sdata = read_zarr(path)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    for seed, key in enumerate(("predicted", "other")):
        genes = pd.Index(sdata["counts"].var_names[: 2 + seed])
        model = p2g.tl.fit(
            sdata, "counts", image_key="he", genes=genes, recipe=SHORT, seed=np.int64(seed), progress=False
        )
        p2g.tl.predict(sdata, model, lazy=key == "other", key_added=key, progress=False)
    p2g.tl.denoise(sdata, model, min_score=np.float32(-1), progress=False)
    p2g.tl.aggregate(sdata, "other", "square_008um", progress=False)
    return path


@pytest.mark.usefixtures("short_default")
def test_run_is_repeated_bit_for_bit(slide: Path, tmp_path: Path) -> None:
    gene = read_zarr(slide)["counts"].var_names[0]
    done = run("run", slide, "--out", tmp_path / "out.zarr", "--seed", 5, "--gene", gene)
    assert done.exit_code == 0, done.output
    again = run("rerun", tmp_path / "out.zarr", "--out", tmp_path / "again.zarr")
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("The same, bit for bit: ") and "Warning" not in again.stderr
    first, second = (p2g.Model.load(tmp_path / f"{name}.p2g") for name in ("out", "again"))
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    assert first.fitted == second.fitted and first.fitted["arguments"]["seed"] == 5
    info = run("info", tmp_path / "again.zarr", "--json")
    assert json.loads(info.stdout)["source"] == str(slide)


def test_verbs_are_repeated(by_verbs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixel2gene.spatial.repetition.versions", lambda: {"torch": "99.9"})
    done = run("rerun", by_verbs, "--out", tmp_path / "again.zarr", "--json")
    assert done.exit_code == 0, done.output
    assert re.search("Warning: torch was .*, is 99.9; results may differ", done.stderr)
    found = json.loads(done.stdout)
    assert found["equal"] and set(found["differences"].values()) == {0.0}
    assert {"other_latent", "other_square_008um", "predicted_map", "denoised"} <= found["differences"].keys()
    assert [Path(path).name for path in found["models"]] == ["again.p2g", "again.1.p2g"]


def test_threads_make_no_difference_that_matters(by_verbs: Path, tmp_path: Path) -> None:
    recorded = read_zarr(by_verbs)
    write_store(without_results(recorded), tmp_path / "again.zarr")
    sdata = read_zarr(tmp_path / "again.zarr")
    torch.set_num_threads(2)
    repeat(sdata, recorded_steps(recorded), None)
    # As docs/memory.md says: measured 0 there, and 2e-5 where sums are in another order.
    assert max(differences(recorded, sdata).values()) < 1e-3


def test_differences_are_told(by_verbs: Path) -> None:
    recorded, other = read_zarr(by_verbs), deepcopy(read_zarr(by_verbs))
    table, raster, labels = other["denoised"], other["predicted_map"], other["he_tissue"]
    table.X[0, 0] += 3 * recorded["denoised"].X.std()
    raster.data[0, 0, 0] = 1 if np.isnan(raster.values[0, 0, 0]) else np.nan
    labels.data[0, 0] = 1 - labels.values[0, 0]
    del other["other_trust"]
    found = differences(recorded, other)
    assert found.pop("denoised") == pytest.approx(3, rel=1e-3)
    assert {key for key, value in found.items() if value > 0} == {"predicted_map", "he_tissue", "other_trust"}
    assert set(found.values()) == {0, np.inf}


def moved(sdata: SpatialData) -> None:
    sdata["square_008um"]["geometry"] = sdata["square_008um"].translate(3)


def counted(sdata: SpatialData) -> None:
    sdata["counts"].X.data[0] += 1


def painted(sdata: SpatialData) -> None:
    sdata["he"].data[:] = 255 - sdata["he"].data


def gone(sdata: SpatialData) -> None:
    del sdata["counts"]


def early(sdata: SpatialData) -> None:
    del sdata.attrs["pixel2gene"]["denoised"]["arguments"]


def damaged(sdata: SpatialData) -> None:
    sdata.attrs["pixel2gene"]["denoised"]["fit"] = {"arguments": []}


def elsewhere(sdata: SpatialData) -> None:
    sdata.attrs["pixel2gene"]["denoised"]["trained_on_this_slide"] = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, "['square_008um'], of which 'predicted' was made, have changed since"),
        (counted, "['counts'], of which 'predicted' was made, have changed since"),
        (painted, "['he'], of which 'he_tissue' was made, have changed since"),
        (gone, "['counts'], of which 'predicted' was made, are no longer in the store"),
        (early, "How ['denoised'] came about was not recorded"),
        (damaged, "What is recorded of ['denoised'] is damaged"),
        (elsewhere, "'denoised' cannot be repeated from this store alone"),
    ],
)
def test_what_cannot_be_repeated_is_refused(by_verbs: Path, change: Any, message: str) -> None:
    sdata = deepcopy(read_zarr(by_verbs))
    change(sdata)
    with pytest.raises(ValueError, match=re.escape(message)):
        require_same_inputs(sdata, recorded_steps(sdata))


def test_arguments_of_a_later_version_are_refused(by_verbs: Path) -> None:
    sdata = deepcopy(read_zarr(by_verbs))
    sdata.attrs["pixel2gene"]["he_tissue"]["arguments"]["colour"] = 3
    with pytest.raises(ValueError, match=r"tissue has no arguments \['colour'\]"):
        repeat(sdata, recorded_steps(sdata), None)


def test_a_store_without_results_is_refused_in_a_sentence(slide: Path, tmp_path: Path) -> None:
    done = run("rerun", slide, "--out", tmp_path / "again.zarr")
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (1, 1, "")
    assert done.stderr.startswith("pixel2gene: There is nothing to repeat")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_store_is_not_replaced(by_verbs: Path) -> None:
    done = run("rerun", by_verbs, "--out", by_verbs)
    assert done.exit_code == 1 and "exists: name another store" in done.stderr


def test_every_argument_that_changes_a_result_is_recorded(by_verbs: Path) -> None:
    sdata = read_zarr(by_verbs)
    steps = recorded_steps(sdata)
    calls = [(step.verb, step.record["arguments"]) for step in steps]
    calls += [("fit", step.fit["arguments"]) for step in steps if step.fit is not None]
    assert {verb for verb, _ in calls} == {"tissue", "embed", "predict", "denoise", "aggregate", "fit"}
    # A reference is a model; that there was one is kept, and such a fit is not repeated.
    apart = {"sdata", "model", "reference", "overwrite", "device", "progress"}
    for verb, arguments in calls:
        assert arguments.keys() == signature(getattr(p2g.tl, verb)).parameters.keys() - apart, verb
