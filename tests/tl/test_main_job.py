"""One slide all the way through, judged by the simulator's truth and by squidpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from numpy.typing import NDArray
from spatialdata import SpatialData, deepcopy, get_extent, read_zarr

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe


def mean_pearson(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.nanmean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


@pytest.fixture(scope="module")
def finished(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, progress=False)
    p2g.tl.denoise(sdata, fitted_once, progress=False)
    return sdata


def test_denoised_counts_are_closer_to_the_truth_than_raw_ones(finished: SpatialData) -> None:
    denoised, raw = finished["denoised"], finished["counts"]
    truth = p2g.datasets.true_counts(finished, "denoised").to_numpy()
    same = raw[denoised.obs_names, denoised.var_names].X.toarray()
    assert mean_pearson(denoised.X, truth) > 1.5 * mean_pearson(same, truth)
    # Neither inflated nor shrunk: totals stay within the noise of the counts.
    np.testing.assert_allclose(denoised.X.sum(), truth.sum(), rtol=0.1)


def test_standard_deviation_of_denoised_counts_covers_the_truth(finished: SpatialData) -> None:
    denoised = finished["denoised"]
    truth = p2g.datasets.true_counts(finished, "denoised").to_numpy()
    within = np.abs(denoised.X - truth) < 2 * denoised.layers["sd"]
    assert within.mean() > 0.8


def test_unmeasured_tissue_is_predicted_in_units_of_counts(finished: SpatialData) -> None:
    predicted = finished["predicted"]
    unmeasured = predicted.obsm["spatial"][:, 0] > finished["counts"].obsm["spatial"][:, 0].max()
    truth = p2g.datasets.true_counts(finished, "predicted").to_numpy()
    assert unmeasured.sum() > 500
    assert mean_pearson(predicted.X[unmeasured], truth[unmeasured]) > 0.3
    assert 0.5 < predicted.X[unmeasured].sum() / truth[unmeasured].sum() < 2


def test_shuffled_counts_predict_nothing(embedded: SpatialData) -> None:
    order = np.random.default_rng(0).permutation(embedded["counts"].n_obs)
    embedded["counts"].X = embedded["counts"].X[order]
    model = p2g.tl.fit(embedded, "counts", image_key="he", progress=False)
    # Slightly below 0 where there is nothing to find: a fold's own mean is missing from its prediction.
    assert -0.1 < model.scores["pearson"].mean() < 0.02
    assert model.scores["deviance_explained"].mean() < 0.01


def test_table_raster_and_labels_tell_the_same(finished: SpatialData) -> None:
    table, raster, labels = (finished[f"predicted{suffix}"] for suffix in ("", "_map", "_superpixels"))
    ids = labels.values[labels.values > 0]
    assert sorted(table.obs["instance_id"]) == sorted(ids)
    height, width = labels.shape
    row, column = np.divmod(table.obs["instance_id"].to_numpy() - 1, width)
    np.testing.assert_allclose(raster.values[:, row, column].T, table.X, rtol=2e-3, atol=1e-4)
    assert np.isnan(raster.values[:, labels.values == 0]).all()
    # A superpixel of 8 µm is 16 px wide, and its centre half a superpixel from its corner.
    np.testing.assert_allclose(table.obsm["spatial"], np.stack([column, row], 1) * 16 + 8)


def test_results_lie_on_the_image_in_every_coordinate_system(finished: SpatialData) -> None:
    for system in finished.coordinate_systems:
        image = get_extent(finished["he"], coordinate_system=system)
        for key in ("he_tissue", "he_embedding", "predicted_map", "predicted_superpixels", "denoised_map"):
            extent = get_extent(finished[key], coordinate_system=system)
            assert extent["x"] == pytest.approx(image["x"])
            assert extent["y"] == pytest.approx(image["y"])


def test_denoised_table_annotates_the_same_bins(finished: SpatialData) -> None:
    denoised, counts = finished["denoised"], finished["counts"]
    assert denoised.uns["spatialdata_attrs"] == counts.uns["spatialdata_attrs"]
    pd.testing.assert_series_equal(denoised.obs["instance_id"], counts.obs.loc[denoised.obs_names, "instance_id"])


def test_evaluate_repeats_the_scores_of_the_fit(finished: SpatialData, fitted_once: p2g.Model) -> None:
    scores = fitted_once.scores.drop(columns=["dispersion", "misfit"])
    again = p2g.tl.evaluate(finished, fitted_once)[scores.columns]
    pd.testing.assert_frame_equal(again, scores, rtol=1e-4)


def test_out_of_fold_scores_are_below_in_sample_ones(finished: SpatialData, fitted_once: p2g.Model) -> None:
    # A model that does not know the slide as its own predicts every unit by all members, also those that saw it.
    in_sample = p2g.tl.evaluate(finished, replace(fitted_once, slides=[]))
    assert (in_sample["pearson"] > fitted_once.scores["pearson"]).mean() > 0.9


def test_new_slide_of_the_same_tissue(fitted_once: p2g.Model) -> None:
    new = p2g.datasets.simulate(size=(512, 512), n_genes=40, counts_per_superpixel=60, seed=8)
    p2g.tl.tissue(new, "he", progress=False)
    p2g.tl.embed(new, "he", progress=False)
    p2g.tl.predict(new, fitted_once, progress=False)
    truth = p2g.datasets.true_counts(new, "predicted").to_numpy()
    assert not new["predicted"].uns["pixel2gene"]["trained_on_this_slide"]
    assert mean_pearson(new["predicted"].X, truth) > 0.2
    scores = p2g.tl.evaluate(new, fitted_once)
    assert scores["pearson_counts"].mean() > 0.1
    p2g.tl.denoise(new, fitted_once, progress=False)
    denoised = p2g.datasets.true_counts(new, "denoised").to_numpy()
    raw = new["counts"][new["denoised"].obs_names].X.toarray()
    assert mean_pearson(new["denoised"].X, denoised) > mean_pearson(raw, denoised)


def test_several_slides_differ_in_depth_only(embedded_once: SpatialData) -> None:
    shallow = deepcopy(embedded_once)
    rng = np.random.default_rng(0)
    shallow["counts"].X.data = rng.binomial(shallow["counts"].X.data.astype(int), 0.25).astype(np.float32)
    shallow.attrs["pixel2gene"]["he_embedding"] = {
        **shallow.attrs["pixel2gene"]["he_embedding"],
        "fingerprint": "other",
    }
    slides, short = {"deep": embedded_once, "shallow": shallow}, Recipe(folds=2, max_checks=1, hidden=(8,))
    model = p2g.tl.fit(slides, "counts", image_key="he", recipe=short, progress=False)
    deep, thin = (slide.depth for slide in model.slides)
    assert thin / deep == pytest.approx(0.25, rel=0.02)
    assert (deep + thin) / 2 == pytest.approx(1)


def test_saved_model_predicts_the_same(finished: SpatialData, fitted_once: p2g.Model, tmp_path: Path) -> None:
    fitted_once.save(tmp_path / "m.p2g")
    p2g.tl.predict(
        finished, p2g.Model.load(tmp_path / "m.p2g"), genes=fitted_once.genes[:3], key_added="again", progress=False
    )
    np.testing.assert_allclose(finished["again"].X, finished["predicted"].X[:, :3], rtol=1e-5)


def test_seed_repeats(embedded: SpatialData) -> None:
    short = Recipe(folds=3, max_checks=3, hidden=(64, 16))
    first, again = (p2g.tl.fit(embedded, "counts", image_key="he", recipe=short, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(again.scores, first.scores, check_exact=True)


def test_squidpy_takes_the_table_as_it_is(finished: SpatialData) -> None:
    sq.gr.spatial_neighbors_grid(
        finished,
        elements_to_coordinate_systems={"predicted_superpixels": "global"},
        table_key="predicted",
        n_neighs=4,
    )
    table = finished["predicted"]
    neighbours = np.asarray(table.obsp["spatial_connectivities"].sum(axis=1)).ravel()
    assert neighbours.max() == 4
    sq.gr.spatial_autocorr(table, mode="moran", genes=table.var_names[:5].tolist(), n_perms=None, n_jobs=1)
    assert table.uns["moranI"]["I"].max() > 0.5


def test_backed_store_holds_all_and_opens_again(
    embedded_once: SpatialData, fitted_once: p2g.Model, finished: SpatialData, tmp_path: Path
) -> None:
    bare = deepcopy(embedded_once)
    del bare["he_tissue"], bare["he_embedding"]
    bare.attrs.pop("pixel2gene")
    bare.write(tmp_path / "slide.zarr")
    p2g.tl.tissue(bare, "he", progress=False)
    p2g.tl.embed(bare, "he", progress=False)
    p2g.tl.predict(bare, fitted_once, progress=False)
    p2g.tl.denoise(bare, fitted_once, progress=False)
    again = read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(again["he_tissue"].values, finished["he_tissue"].values)
    np.testing.assert_array_equal(again["he_embedding"].values, finished["he_embedding"].values)
    np.testing.assert_allclose(again["predicted"].X, finished["predicted"].X, rtol=1e-5)
    np.testing.assert_allclose(again["denoised_map"].values, finished["denoised_map"].values, rtol=1e-2)
    assert again.attrs["pixel2gene"]["he_embedding"]["encoder"] == fitted_once.encoder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slide.zarr"]


@pytest.fixture(scope="module")
def of_platform() -> Callable[[str], SpatialData]:
    """Embedded slide of a platform, made once."""

    @cache
    def made(platform: str) -> SpatialData:
        side = 896 if platform == "visium" else 640
        sdata = p2g.datasets.simulate(
            platform, size=(side, side), n_genes=20, counts_per_superpixel=60, measured=0.7, seed=5
        )
        p2g.tl.tissue(sdata, "he", progress=False)
        p2g.tl.embed(sdata, "he", progress=False)
        return sdata

    return made


@pytest.mark.parametrize(("platform", "key"), [("visium", "counts"), ("xenium", "counts"), ("xenium", "transcripts")])
def test_spots_cells_and_transcripts(of_platform: Callable[[str], SpatialData], platform: str, key: str) -> None:
    sdata = deepcopy(of_platform(platform))
    recipe = Recipe(folds=3, hidden=(64, 64, 16))
    model = p2g.tl.fit(sdata, key, image_key="he", recipe=recipe, progress=False)
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    truth = p2g.datasets.true_counts(sdata, "predicted").to_numpy()
    assert mean_pearson(sdata["predicted"].X, truth) > 0.3
    # The rate per superpixel is recovered whatever the unit: its total over the slide is that of the truth.
    if key == "transcripts" or platform == "visium":
        measured = np.isfinite(sdata["denoised_map"].values[0])
        total = sdata["truth"].sel(c=model.genes).values[:, measured].sum()
        assert sdata["denoised_map"].values[:, measured].sum(dtype=np.float64) == pytest.approx(total, rel=0.15)
    if key == "transcripts":
        assert sdata["denoised"].uns["spatialdata_attrs"]["region"] == ["denoised_superpixels"]


def test_some_genes_are_denoised(embedded: SpatialData, finished: SpatialData, fitted_once: p2g.Model) -> None:
    best = fitted_once.scores["pearson"].nlargest(12).index
    wanted = [gene for gene in fitted_once.genes if gene in best]
    p2g.tl.denoise(embedded, fitted_once, genes=wanted, progress=False)
    least = float(fitted_once.scores["pearson"][wanted].min())
    p2g.tl.denoise(embedded, fitted_once, min_score=least, key_added="scored", progress=False)
    some, scored = embedded["denoised"], embedded["scored"]
    assert some.var_names.tolist() == scored.var_names.tolist() == wanted
    np.testing.assert_allclose(scored.X, some.X)
    # Other genes say a little less where there are fewer.
    assert mean_pearson(some.X, finished["denoised"][:, wanted].X) > 0.97
