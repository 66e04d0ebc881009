"""Sums over cells, spots and regions, against pixels counted one by one."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spatialdata import SpatialData, deepcopy, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, Sequence, Translation, get_transformation

import pixel2gene as p2g
from pixel2gene.spatial.elements import RECORDS, image_element, labels_element, table_element
from pixel2gene.spatial.grid import superpixel_grid

GENES = ["A", "B", "C"]
SHAPE = (6, 8)
FACTOR = 16  # px per superpixel at 0.5 µm/px


def transformations() -> dict[str, object]:
    return {"global": Identity(), "micrometers": Scale([0.5, 0.5], axes=("x", "y"))}


def a_prediction(tissue: NDArray[np.bool_], seed: int = 0) -> SpatialData:
    """Slide with what `tl.predict` writes, of random numbers on the tissue."""
    pixels = np.zeros((3, FACTOR * SHAPE[0], FACTOR * SHAPE[1]), np.uint8)
    sdata = SpatialData(
        images={"he": Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations())}
    )
    grid = superpixel_grid(sdata, "he", 0.5)
    rng = np.random.default_rng(seed)
    values = np.where(tissue, rng.gamma(1, 1, (len(GENES), *SHAPE)), np.nan).astype(np.float16)
    ids = grid.ids(tissue)
    inside = ids[ids > 0]
    mean = values[:, tissue].T.astype(np.float32)
    table = ad.AnnData(
        mean,
        obs=pd.DataFrame(index=inside.astype(str)),
        var=pd.DataFrame({"pearson": [0.1, 0.2, 0.3]}, index=GENES),
        layers={"sd": rng.gamma(1, 1, mean.shape).astype(np.float32)},
    )
    written = {
        "predicted_map": image_element(values, grid, GENES),
        "predicted_superpixels": labels_element(ids, grid),
        "predicted": table_element(table, "predicted_superpixels", inside),
    }
    for key, element in written.items():
        sdata[key] = element
    sdata.attrs[RECORDS] = {key: {"verb": "predict", "image_key": "he"} for key in written}
    return sdata


@pytest.fixture
def predicted() -> SpatialData:
    tissue = np.ones(SHAPE, bool)
    tissue[:2, :3] = False
    return a_prediction(tissue)


def add_shapes(sdata: SpatialData, key: str, frame: gpd.GeoDataFrame) -> None:
    sdata[key] = ShapesModel.parse(frame, transformations=transformations())


def per_superpixel(sdata: SpatialData, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(rows, columns, genes), 0 off the tissue."""
    dense = np.zeros((SHAPE[0] * SHAPE[1], values.shape[1]))
    dense[sdata["predicted"].obs["instance_id"].to_numpy() - 1] = values
    return dense.reshape(*SHAPE, -1)


def per_pixel(sdata: SpatialData, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Spread evenly over the pixels of each superpixel."""
    return per_superpixel(sdata, values).repeat(FACTOR, 0).repeat(FACTOR, 1) / FACTOR**2


def test_labels_equal_the_sum_over_their_pixels(predicted: SpatialData) -> None:
    rng = np.random.default_rng(1)
    labels = np.kron(rng.integers(0, 9, (12, 16)), np.ones((8, 8), int))
    chunked = da.from_array(labels, chunks=(40, 50))
    predicted["cells"] = Labels2DModel.parse(chunked, dims=("y", "x"), transformations=transformations())
    p2g.tl.aggregate(predicted, "predicted", "cells", progress=False)
    found = predicted["predicted_cells"]
    mean, sd = (per_pixel(predicted, x) for x in (predicted["predicted"].X, predicted["predicted"].layers["sd"]))
    on_tissue = per_pixel(predicted, np.ones((predicted["predicted"].n_obs, 1)))[..., 0] > 0
    ids = found.obs["instance_id"].to_numpy()
    np.testing.assert_array_equal(ids, np.arange(1, 9))
    np.testing.assert_allclose(found.X, [mean[labels == i].sum(axis=0) for i in ids], rtol=1e-5)
    np.testing.assert_allclose(found.layers["sd"], [sd[labels == i].sum(axis=0) for i in ids], rtol=1e-5)
    np.testing.assert_allclose(found.obs["covered"], [on_tissue[labels == i].mean() for i in ids], rtol=1e-5)
    centres = [np.argwhere(labels == i).mean(axis=0)[::-1] + 0.5 for i in ids]
    np.testing.assert_allclose(found.obsm["spatial"], centres)


def test_shapes_equal_shapely(predicted: SpatialData) -> None:
    rng = np.random.default_rng(2)
    centres = rng.uniform(0, 90, (20, 2))
    circles = gpd.GeoDataFrame({"radius": rng.uniform(3, 20, 20)}, geometry=shapely.points(centres))
    circles.index = [f"cell{i}" for i in range(20)]
    add_shapes(predicted, "cells", circles)
    p2g.tl.aggregate(predicted, "predicted", "cells", key_added="cell_counts", progress=False)
    found = predicted["cell_counts"]
    rows, columns = np.indices(SHAPE).reshape(2, -1) * FACTOR
    boxes = shapely.box(columns, rows, columns + FACTOR, rows + FACTOR)
    discs = circles.buffer(circles["radius"], quad_segs=200)
    share = shapely.area(shapely.intersection(discs.to_numpy()[:, None], boxes)) / FACTOR**2
    expected = pd.DataFrame(
        share @ per_superpixel(predicted, predicted["predicted"].X).reshape(-1, 3), circles.index, GENES
    )
    kept = found.obs["instance_id"]
    np.testing.assert_allclose(found.X, expected.loc[kept], atol=0.01)
    assert expected.drop(index=kept).to_numpy() == pytest.approx(0)
    assert found.uns["pixel2gene"]["elements_without_values"] == 20 - len(kept)


def outlines(corners: NDArray[np.float64]) -> gpd.GeoDataFrame:
    """Voronoi cells of points, cut to a box larger than the slide."""
    plane = shapely.box(-50, -50, 200, 200)
    parts = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(corners), extend_to=plane))
    return gpd.GeoDataFrame(geometry=shapely.intersection(parts, plane))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(-20, 150), st.integers(-20, 120)), min_size=2, max_size=30, unique=True),
    st.integers(0, 5),
)
def test_a_partition_of_the_plane_adds_up_to_the_total(corners: list[tuple[int, int]], seed: int) -> None:
    sdata = a_prediction(np.random.default_rng(seed).random(SHAPE) < 0.8, seed)
    add_shapes(sdata, "regions", outlines(np.array(corners, float)))
    p2g.tl.aggregate(sdata, "predicted", "regions", progress=False)
    total = np.nansum(sdata["predicted_map"].values.astype(float), axis=(1, 2))
    np.testing.assert_allclose(sdata["predicted_regions"].X.sum(axis=0), total, rtol=1e-4)
    sd = sdata["predicted"].layers["sd"].sum(axis=0)
    np.testing.assert_allclose(sdata["predicted_regions"].layers["sd"].sum(axis=0), sd, rtol=1e-4)


def test_superpixels_themselves_stay_as_they_are(predicted: SpatialData) -> None:
    p2g.tl.aggregate(predicted, "predicted", "predicted_superpixels", key_added="again", progress=False)
    np.testing.assert_allclose(predicted["again"].X, predicted["predicted"].X, rtol=1e-6)
    np.testing.assert_allclose(predicted["again"].layers["sd"], predicted["predicted"].layers["sd"], rtol=1e-6)
    assert (predicted["again"].obs["covered"] == 1).all()


def test_many_superpixels_lose_no_digits() -> None:
    sdata = a_prediction(np.ones(SHAPE, bool))
    before = sdata["predicted_map"].values.astype(float).sum(axis=(1, 2))
    add_shapes(sdata, "slide", gpd.GeoDataFrame(geometry=[shapely.box(-1e4, -1e4, 1e4, 1e4)]))
    p2g.tl.aggregate(sdata, "predicted", "slide", progress=False)
    np.testing.assert_allclose(sdata["predicted_slide"].X[0], before, rtol=1e-6)
    assert sdata["predicted_slide"].obs["covered"].iloc[0] == pytest.approx(96 * 128 / 4e8)


def test_changed_values_do_not_matter_but_dropped_genes_and_superpixels_do(predicted: SpatialData) -> None:
    add_shapes(predicted, "whole", gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 128, 96)]))
    sc.pp.normalize_total(predicted["predicted"], target_sum=1e4)
    p2g.tl.aggregate(predicted, "predicted", "whole", progress=False)
    total = np.nansum(predicted["predicted_map"].values.astype(float), axis=(1, 2))
    np.testing.assert_allclose(predicted["predicted_whole"].X[0], total, rtol=1e-5)
    part = predicted["predicted"][10:, ["C", "A"]].copy()
    del predicted["predicted"]
    predicted["predicted"] = part
    p2g.tl.aggregate(predicted, "predicted", "whole", overwrite=True, progress=False)
    found = predicted["predicted_whole"]
    assert found.var_names.tolist() == ["C", "A"]
    row, column = np.divmod(part.obs["instance_id"].to_numpy() - 1, SHAPE[1])
    kept = predicted["predicted_map"].values[[2, 0]][:, row, column].astype(float)
    np.testing.assert_allclose(found.X[0], kept.sum(axis=1), rtol=1e-5)
    assert found.obs["covered"].iloc[0] == pytest.approx(len(row) / 48)


def test_elements_in_another_frame(predicted: SpatialData) -> None:
    """Cells in µm from another origin fall where those in pixels do."""
    boxes = [shapely.box(20, 30, 50, 60), shapely.box(70, 10, 100, 95)]
    add_shapes(predicted, "cells", gpd.GeoDataFrame(geometry=boxes))
    moved = [shapely.transform(box, lambda xy: xy / 2 - [7, 3]) for box in boxes]
    predicted["moved"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=moved), transformations={"micrometers": Translation([7, 3], axes=("x", "y"))}
    )
    for key in ("cells", "moved"):
        p2g.tl.aggregate(predicted, "predicted", key, progress=False)
    np.testing.assert_allclose(predicted["predicted_moved"].X, predicted["predicted_cells"].X, rtol=1e-5)
    np.testing.assert_allclose(
        predicted["predicted_moved"].obsm["spatial"], predicted["predicted_cells"].obsm["spatial"]
    )


def test_a_cropped_slide(predicted: SpatialData) -> None:
    add_shapes(predicted, "cells", gpd.GeoDataFrame(geometry=[shapely.box(70, 40, 100, 60)]))
    p2g.tl.aggregate(predicted, "predicted", "cells", progress=False)
    for key in ("predicted_map", "predicted_superpixels"):
        part = predicted[key].isel(y=slice(2, None), x=slice(3, None))
        for name, old in get_transformation(predicted[key], get_all=True).items():
            part.attrs["transform"] = {
                **part.attrs["transform"],
                name: Sequence([Translation([3, 2], axes=("x", "y")), old]),
            }
        del predicted[key]
        predicted[key] = part
    p2g.tl.aggregate(predicted, "predicted", "cells", key_added="again", progress=False)
    np.testing.assert_allclose(predicted["again"].X, predicted["predicted_cells"].X, rtol=1e-6)


def test_bad_input(predicted: SpatialData) -> None:
    add_shapes(predicted, "cells", gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 20, 20)]))
    add_shapes(predicted, "away", gpd.GeoDataFrame(geometry=[shapely.box(900, 900, 920, 920)]))
    predicted["nothing"] = Labels2DModel.parse(
        np.zeros((4, 4), int), dims=("y", "x"), transformations=transformations()
    )
    predicted["elsewhere"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 20, 20)]), transformations={"other": Identity()}
    )
    before = sorted(predicted.tables)
    for key, elements, error, message in [
        ("nope", "cells", KeyError, "they wrote \\['predicted'\\]"),
        ("predicted", "nope", KeyError, "No 'nope' among the shapes, labels; there are .*'cells'"),
        ("predicted", "he", KeyError, "No 'he' among the shapes, labels"),
        ("predicted", "away", ValueError, "None of the 1 elements of 'away' overlaps the values"),
        ("predicted", "nothing", ValueError, "'nothing' is empty"),
        ("predicted", "elsewhere", ValueError, "share no coordinate system"),
    ]:
        with pytest.raises(error, match=message):
            p2g.tl.aggregate(predicted, key, elements, progress=False)
    with pytest.raises(ValueError, match="not written by pixel2gene|exist already"):
        p2g.tl.aggregate(predicted, "predicted", "cells", key_added="predicted", progress=False)
    assert sorted(predicted.tables) == before
    stripped = predicted["predicted"].copy()
    del predicted["predicted"], stripped.layers["sd"]
    predicted["predicted"] = stripped
    with pytest.raises(ValueError, match="lost its layer 'sd'"):
        p2g.tl.aggregate(predicted, "predicted", "cells", progress=False)
    stripped.var_names = ["x", "y", "z"]
    stripped.layers["sd"] = stripped.X
    with pytest.raises(ValueError, match="share no gene"):
        p2g.tl.aggregate(predicted, "predicted", "cells", progress=False)


@pytest.fixture(scope="module")
def finished(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, progress=False)
    p2g.tl.denoise(sdata, fitted_once, progress=False)
    rng = np.random.default_rng(0)
    centres = rng.uniform(20, 748, (400, 2))
    cells = gpd.GeoDataFrame({"radius": rng.uniform(8, 14, 400)}, geometry=shapely.points(centres))
    add_shapes(sdata, "cells", cells)
    return sdata


def test_cells_of_a_real_prediction_are_near_the_truth(finished: SpatialData) -> None:
    for key in ("predicted", "denoised"):
        p2g.tl.aggregate(finished, key, "cells", overwrite=True, progress=False)
        found = finished[f"{key}_cells"]
        truth = p2g.datasets.true_counts(finished, f"{key}_cells").to_numpy()
        whole = found.obs["covered"].to_numpy() > 0.99
        inside = np.abs(found.X - truth)[whole] < 2 * found.layers["sd"][whole]
        assert inside.mean() > 0.85
        assert np.corrcoef(found.X[whole].ravel(), truth[whole].ravel())[0, 1] > 0.8
        assert found.var["pearson"].equals(finished[key].var["pearson"])
    measured = finished["counts"].obsm["spatial"][:, 0].max() + 8
    # The next superpixels belong to bins in part.
    assert finished["denoised_cells"].obsm["spatial"][:, 0].max() < measured + 3 * FACTOR


def test_denoised_bins_spread_their_uncertainty_over_their_area(finished: SpatialData) -> None:
    """A bin summed again has the mean of the bins around it, weighed by what they share; the total stays."""
    p2g.tl.aggregate(finished, "denoised", "square_008um", overwrite=True, progress=False)
    again, bins = finished["denoised_square_008um"], finished["denoised"]
    again = again[bins.obs["instance_id"].astype(str)]
    np.testing.assert_allclose(again.layers["sd"].sum(axis=0), bins.layers["sd"].sum(axis=0), rtol=0.02)
    np.testing.assert_allclose(again.X.sum(axis=0), bins.X.sum(axis=0), rtol=0.02)
    assert np.corrcoef(again.layers["sd"].ravel(), bins.layers["sd"].ravel())[0, 1] > 0.9


def test_a_store_keeps_it(finished: SpatialData, tmp_path: Path) -> None:
    stored = deepcopy(finished)
    for key in [name for name in stored.tables if name.startswith(("predicted_", "denoised_"))]:
        del stored[key]
    stored.write(tmp_path / "slide.zarr")
    p2g.tl.aggregate(stored, "predicted", "cells", progress=False)
    again = read_zarr(tmp_path / "slide.zarr")["predicted_cells"]
    np.testing.assert_array_equal(again.X, stored["predicted_cells"].X)
    assert again.uns["pixel2gene"]["unit"] == "expected counts in the covered part of each element"
    assert again.uns["spatialdata_attrs"]["region"] == ["cells"]
