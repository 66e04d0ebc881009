"""Predictions that are computed on demand are those that are written."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from spatialdata import SpatialData, bounding_box_query, deepcopy, read_zarr

import pixel2gene as p2g


@pytest.fixture(scope="module")
def eager(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, progress=False)
    return sdata


@pytest.fixture(scope="module")
def lazy(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, lazy=True, progress=False)
    return sdata


def on_disk(sdata: SpatialData) -> set[str]:
    return {name.split("/")[1] for name in sdata.elements_paths_on_disk()}


def test_the_raster_is_that_of_the_table(eager: SpatialData, lazy: SpatialData) -> None:
    found, expected = lazy["predicted_map"], eager["predicted_map"]
    assert found.coords["c"].values.tolist() == expected.coords["c"].values.tolist()
    # Latents and rates are of half precision.
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-2, atol=1e-3)
    xr.testing.assert_allclose(lazy["predicted_trust"], eager["predicted_trust"], atol=1e-3)
    xr.testing.assert_equal(lazy["predicted_superpixels"], eager["predicted_superpixels"])
    assert found.attrs["transform"].keys() == expected.attrs["transform"].keys()


def test_one_gene_is_computed_with_few_others(lazy: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixel2gene.core.ensemble import Ensemble

    seen = []
    by_gene = Ensemble.by_gene
    monkeypatch.setattr(Ensemble, "by_gene", lambda self, genes: (seen.append(genes.tolist()), by_gene(self, genes))[1])
    last = lazy["predicted_map"].coords["c"].values[-1]
    assert np.isfinite(lazy["predicted_map"].sel(c=last).values).any()
    assert seen and all(max(genes) == lazy["predicted"].n_vars - 1 and len(genes) <= 16 for genes in seen)


def test_a_store_keeps_what_the_raster_is_computed_from(
    lazy: SpatialData, embedded_once: SpatialData, fitted_once: p2g.Model, tmp_path: Path
) -> None:
    sdata = deepcopy(embedded_once)
    sdata.write(tmp_path / "slide.zarr")
    sdata = read_zarr(tmp_path / "slide.zarr")
    p2g.tl.predict(sdata, fitted_once, lazy=True, progress=False)
    again = read_zarr(tmp_path / "slide.zarr")
    assert "predicted_latent" in on_disk(again) and "predicted_map" not in on_disk(again)
    p2g.tl.open_map(again)
    xr.testing.assert_equal(again["predicted_map"].compute(), lazy["predicted_map"].compute())
    again.write_element("predicted_map")
    xr.testing.assert_equal(read_zarr(again.path)["predicted_map"].compute(), lazy["predicted_map"].compute())

    # Of another session, which did not write it.
    sdata = read_zarr(again.path)
    p2g.tl.predict(sdata, fitted_once, genes=fitted_once.genes[:3], overwrite=True, progress=False)
    assert "predicted_map" in on_disk(read_zarr(again.path))
    assert "predicted_latent" not in on_disk(read_zarr(again.path))
    assert "predicted_latent" not in sdata and sdata["predicted"].shape[1] == 3
    p2g.tl.predict(sdata, fitted_once, lazy=True, overwrite=True, progress=False)
    assert "predicted_latent" in on_disk(read_zarr(again.path))
    assert "predicted_map" not in on_disk(read_zarr(again.path))
    assert sdata["predicted_map"].sizes["c"] == len(fitted_once.genes)


def test_the_table_leads_to_the_raster(eager: SpatialData, lazy: SpatialData) -> None:
    table, expected = lazy["predicted"], eager["predicted"]
    assert table.X is None and table.obs_names.equals(expected.obs_names)
    assert table.var.equals(expected.var)
    np.testing.assert_allclose(table.obs["trust"], expected.obs["trust"], atol=1e-3)
    part = deepcopy(lazy)
    part["predicted"] = table[:, [3, 1]].copy()
    p2g.tl.open_map(part)
    found, expected = part["predicted_map"], lazy["predicted_map"].sel(c=part["predicted"].var_names.tolist())
    # Of fewer genes, sums are rounded otherwise.
    xr.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2e-3)


def test_a_crop_keeps_its_place(lazy: SpatialData) -> None:
    part = bounding_box_query(
        lazy, axes=("x", "y"), min_coordinate=[160, 320], max_coordinate=[480, 800], target_coordinate_system="global"
    )
    kept = part["predicted_map"].compute()
    del part["predicted_map"]
    p2g.tl.open_map(part)
    xr.testing.assert_equal(part["predicted_map"].compute(), kept)


def test_the_published_recipe_is_lazy_too(embedded_once: SpatialData) -> None:
    from pixel2gene.core.paper import PaperRecipe

    sdata = deepcopy(embedded_once)
    model = p2g.tl.fit(
        sdata, "counts", image_key="he", recipe=PaperRecipe(folds=2, epochs=1, hidden=(8, 8)), progress=False
    )
    p2g.tl.predict(sdata, model, lazy=True, progress=False)
    p2g.tl.predict(sdata, model, key_added="kept", progress=False)
    expected = sdata["kept_map"].values
    np.testing.assert_allclose(sdata["predicted_map"].values, expected, rtol=1e-2, atol=2e-3)


def test_a_table_that_does_not_fit_is_refused(
    embedded: SpatialData, fitted_once: p2g.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(1000))
    before = {name for _, name, _ in embedded.gen_elements()}
    with pytest.raises(MemoryError, match="name fewer genes.*min_score=.*lazy=True"):
        p2g.tl.predict(embedded, fitted_once, progress=False)
    with pytest.raises(MemoryError, match="name fewer genes, set min_score="):
        p2g.tl.denoise(embedded, fitted_once, progress=False)
    assert {name for _, name, _ in embedded.gen_elements()} == before
    p2g.tl.predict(embedded, fitted_once, lazy=True, progress=False)


def test_sums_are_those_of_the_table(eager: SpatialData, lazy: SpatialData) -> None:
    first, second = deepcopy(eager), deepcopy(lazy)
    # Of a store that was opened again, the raster is not there.
    del second["predicted_map"]
    for one in (first, second):
        p2g.tl.aggregate(one, "predicted", "square_008um", progress=False)
    found, expected = second["predicted_square_008um"], first["predicted_square_008um"]
    assert found.obs.equals(expected.obs) and found.var.equals(expected.var)
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(found.layers["sd"], expected.layers["sd"], rtol=1e-2, atol=1e-3)
    assert found.uns["pixel2gene"] == expected.uns["pixel2gene"]


def test_sums_of_some_genes_and_superpixels(eager: SpatialData, lazy: SpatialData) -> None:
    genes = lazy["predicted"].var_names[[4, 1]].tolist()
    expected = deepcopy(eager)
    p2g.tl.aggregate(expected, "predicted", "square_008um", progress=False)
    for slide in (eager, lazy):
        part = deepcopy(slide)
        part["predicted"] = part["predicted"][: part["predicted"].n_obs // 2].copy()
        p2g.tl.aggregate(part, "predicted", "square_008um", genes=genes, progress=False)
        found = part["predicted_square_008um"]
        assert found.var_names.tolist() == genes[::-1]
        assert 0 < found.n_obs < expected["predicted_square_008um"].n_obs
        whole = found.obs_names[found.obs["covered"] > 0.99]
        reference = expected["predicted_square_008um"][whole, found.var_names]
        np.testing.assert_allclose(found[whole].X, reference.X, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(found[whole].layers["sd"], reference.layers["sd"], rtol=1e-2, atol=1e-3)
        with pytest.raises(KeyError, match=r"'predicted' lacks \['NONE'\]; it has \d+ genes, such as"):
            p2g.tl.aggregate(part, "predicted", "square_008um", genes=["NONE"], key_added="other")


def test_sums_that_do_not_fit_are_refused(lazy: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(1000))
    with pytest.raises(MemoryError, match="name fewer genes"):
        p2g.tl.aggregate(lazy, "predicted", "square_008um", progress=False)


def test_open_map_says_what_there_is(eager: SpatialData) -> None:
    with pytest.raises(KeyError, match="No 'predicted_latent' written by pixel2gene.tl.predict.*predicted_map"):
        p2g.tl.open_map(eager)


def test_a_gene_is_drawn_alike(eager: SpatialData, lazy: SpatialData, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    gene = str(eager["predicted"].var["pearson"].idxmax())
    part = deepcopy(lazy)
    del part["predicted_map"]
    drawn = [p2g.pl.expression(one, gene) for one in (eager, part)]
    # Lazy predictions have no standard deviations.
    titles = [[ax.get_title() for ax in axes] for axes in drawn]
    assert titles[0][:-1] == titles[1] and "standard deviation" in titles[0][-1]
    assert "out-of-fold Pearson" in titles[1][-1]
    shown = [axes[len(titles[1]) - 1].images[0].get_array().filled(np.nan) for axes in drawn]
    np.testing.assert_allclose(shown[0], shown[1], rtol=1e-2, atol=1e-3)
    plt.close("all")
