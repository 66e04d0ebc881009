"""Results survive what SpatialData does to them, and parts of slides still predict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
from numpy.testing import assert_allclose, assert_array_equal
from spatialdata import SpatialData, bounding_box_query, concatenate, deepcopy, get_extent, polygon_query, read_zarr
from spatialdata.transformations import get_transformation

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

SIZE = 512


def prepared(seed: int) -> SpatialData:
    sdata = p2g.datasets.simulate(size=(SIZE, SIZE), n_genes=6, measured=0.7, counts_per_superpixel=60, seed=seed)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return prepared(3)


@pytest.fixture(scope="module")
def model(slide: SpatialData) -> p2g.Model:
    recipe = Recipe(folds=2, max_checks=3, hidden=(32, 16))
    return p2g.tl.fit(slide, "counts", image_key="he", recipe=recipe, progress=False)


@pytest.fixture(scope="module")
def finished(slide: SpatialData, model: p2g.Model) -> SpatialData:
    sdata = deepcopy(slide)
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    p2g.tl.aggregate(sdata, "predicted", "square_008um", progress=False)
    return sdata


def box(sdata: SpatialData, x: tuple[float, float], y: tuple[float, float], system: str = "global") -> SpatialData:
    """Crop to pixels x and y."""
    low, high = np.array([[x[0], y[0]], [x[1], y[1]]]) * (0.5 if system == "micrometers" else 1)
    return bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system=system
    )


def arrays(table: ad.AnnData) -> list[np.ndarray]:
    values = [table.X, *(table.layers[name] for name in sorted(filter(None, table.layers))), *table.obsm.values()]
    return [np.asarray(one.toarray() if hasattr(one, "toarray") else one) for one in values]


def test_write_and_read_keeps_all(finished: SpatialData, tmp_path: Path) -> None:
    finished.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr")
    assert again.attrs["pixel2gene"] == finished.attrs["pixel2gene"]
    for kind, key, element in finished.gen_elements():
        same = again[key]
        if kind == "tables":
            for old, new in zip(arrays(element), arrays(same), strict=True):
                assert_array_equal(new, old)
            pd.testing.assert_frame_equal(same.var, element.var, check_names=False)
            pd.testing.assert_frame_equal(same.obs, element.obs, check_categorical=False, check_dtype=False)
            # Lists come back as arrays; as they were they are in attrs.
            assert set(same.uns.get("pixel2gene", {})) == set(element.uns.get("pixel2gene", {}))
            continue
        if kind in ("images", "labels"):
            assert_array_equal(same.values, element.values)
            assert same.dtype == element.dtype
        systems, kept = (get_transformation(one, get_all=True) for one in (element, same))
        for name in systems:
            matrices = (one[name].to_affine_matrix(("x", "y"), ("x", "y")) for one in (systems, kept))
            assert_allclose(*matrices)


@pytest.mark.parametrize("system", ["global", "micrometers"])
def test_a_crop_along_superpixels_predicts_what_the_whole_does(
    finished: SpatialData, model: p2g.Model, system: str
) -> None:
    crop = box(finished, (96, 448), (64, 400), system)
    p2g.tl.predict(crop, model, key_added="again", progress=False)
    rows, columns = slice(4, 25), slice(6, 28)
    # Each crop is standardised by its own tissue, so that values differ, and places do not.
    whole = finished["predicted_map"].values[:, rows, columns].astype(float)
    part = crop["again_map"].values.astype(float)
    assert_array_equal(np.isnan(part), np.isnan(whole))
    for gene, same in zip(part, whole, strict=True):
        assert np.corrcoef(gene[np.isfinite(gene)], same[np.isfinite(same)])[0, 1] > 0.95
    for axis, edges in get_extent(crop["he"], coordinate_system=system).items():
        assert get_extent(crop["again_map"], coordinate_system=system)[axis] == pytest.approx(edges)


def test_a_crop_does_not_know_what_was_held_out(finished: SpatialData, model: p2g.Model) -> None:
    crop = box(finished, (96, 448), (64, 400))
    for verb, options in ((p2g.tl.denoise, {"key_added": "again"}), (p2g.tl.evaluate, {})):
        with pytest.raises(ValueError, match="'he' was cut out of 'slide', .* work on the whole slide and crop"):
            verb(crop, model, **options)


@pytest.mark.parametrize("how", ["box", "polygon"])
def test_a_crop_through_superpixels_is_embedded_again(finished: SpatialData, model: p2g.Model, how: str) -> None:
    if how == "box":
        crop = box(finished, (100, 403), (64, 441))
    else:
        outline = shapely.Polygon([(51, 50), (450, 80), (400, 457), (80, 400)])
        crop = polygon_query(finished, outline, target_coordinate_system="global")
    with pytest.raises(ValueError, match="does not lie on the superpixels .* again with overwrite=True"):
        p2g.tl.predict(crop, model, key_added="again")
    p2g.tl.tissue(crop, "he", overwrite=True, progress=False)
    p2g.tl.embed(crop, "he", overwrite=True, progress=False)
    p2g.tl.predict(crop, model, key_added="again", progress=False)
    p2g.tl.denoise(crop, model, key_added="denoised_again", progress=False)
    # What is recorded of the whole is not touched.
    assert finished.attrs["pixel2gene"]["he_embedding"] != crop.attrs["pixel2gene"]["he_embedding"]
    assert "again" not in finished.attrs["pixel2gene"]
    truth = p2g.datasets.true_counts(finished, "denoised")
    found = crop["denoised_again"]
    # Of the same bins, by their names; at the border of the crop some more are on tissue.
    both = found.obs_names.intersection(truth.index)
    assert len(both) > 0.95 * found.n_obs
    assert np.corrcoef(found[both].X.sum(axis=1), truth.loc[both].sum(axis=1))[0, 1] > 0.5


def test_a_subset_predicts_the_same(finished: SpatialData, model: p2g.Model) -> None:
    few = finished.subset(["he", "he_embedding", "square_008um", "counts"])
    p2g.tl.predict(few, model, progress=False)
    # It annotates the bins, and so comes with them.
    p2g.tl.denoise(few, model, overwrite=True, progress=False)
    assert_allclose(few["predicted"].X, finished["predicted"].X, rtol=1e-5)
    assert_allclose(few["denoised"].X, finished["denoised"].X, rtol=1e-3)


def test_concatenated_slides(model: p2g.Model, finished: SpatialData) -> None:
    raw = {
        name: p2g.datasets.simulate(size=(256, 256), n_genes=6, measured=1.0, seed=seed)
        for name, seed in {"first": 1, "second": 2}.items()
    }
    both = concatenate(raw)
    p2g.tl.tissue(both, "he-second", progress=False)
    p2g.tl.embed(both, "he-second", progress=False)
    p2g.tl.predict(both, model, image_key="he-second", progress=False)
    p2g.tl.denoise(both, model, image_key="he-second", table_key="counts-second", progress=False)
    assert both.attrs["pixel2gene"]["he-second_tissue"]["mpp"] == pytest.approx(0.5)
    assert set(both["denoised"].obs["region"]) == {"square_008um-second"}
    # What was recorded of results is lost by concatenating them, which is said.
    with pytest.raises(KeyError, match="No 'he-first_embedding' written by pixel2gene.tl.embed"):
        p2g.tl.predict(concatenate({"first": deepcopy(finished)}), model, image_key="he-first")


def test_vitessce_shows_results(finished: SpatialData, tmp_path: Path) -> None:
    vitessce = pytest.importorskip("vitessce")
    finished.write(tmp_path / "slide.zarr")
    config = vitessce.VitessceConfig(schema_version="1.0.18", name="pixel2gene")
    config.add_dataset(name="slide").add_object(
        vitessce.SpatialDataWrapper(
            sdata_url="http://localhost/slide.zarr",
            image_path="images/he",
            obs_segmentations_path="labels/predicted_superpixels",
            table_path="tables/predicted",
            obs_feature_matrix_path="tables/predicted/X",
            coordinate_system="global",
        )
    )
    files = config.to_dict(base_url="http://localhost")["datasets"][0]["files"]
    named = str(files)
    for path in ("images/he", "labels/predicted_superpixels", "tables/predicted/X"):
        assert path in named
        assert (tmp_path / "slide.zarr" / path).exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("DISPLAY" not in os.environ, reason="napari draws with OpenGL: xvfb-run gives it a screen")
def test_napari_shows_results(finished: SpatialData, tmp_path: Path) -> None:
    napari_spatialdata = pytest.importorskip("napari_spatialdata", reason="uv sync --group napari installs it")
    from napari_spatialdata._view import QtAdataViewWidget
    from qtpy.QtWidgets import QApplication

    finished.write(tmp_path / "slide.zarr")
    sdata = read_zarr(tmp_path / "slide.zarr")
    shown = napari_spatialdata.Interactive(sdata, headless=True)
    viewer = shown._viewer

    def layer_of(key: str) -> Any:
        shown.add_element(key, "micrometers")
        while key not in viewer.layers or shown._sdata_widget.worker_thread.isRunning():
            QApplication.processEvents()
        return viewer.layers[key]

    he = layer_of("he")
    assert he.rgb
    for key in ("predicted_map", "denoised_map", "predicted_trust", "predicted_superpixels"):
        layer = layer_of(key)
        assert_array_equal(layer.data, sdata[key].values)
        # From the centre of the first pixel to that of the last.
        half = layer.affine.scale[-2:] / 2
        edges = layer.extent.world[:, -2:] + [-half, half]
        assert_allclose(edges, [[0, 0], [SIZE / 2, SIZE / 2]], err_msg=key)
    viewer.layers.selection.active = viewer.layers["predicted_superpixels"]
    assert viewer.layers["predicted_superpixels"].metadata["table_names"] == ["predicted"]
    QtAdataViewWidget(viewer).obs_widget._onAction(["trust"])
    colours = viewer.layers["predicted_superpixels"].colormap.color_dict
    trust = sdata["predicted"].obs.set_index("instance_id")["trust"]
    # Viridis grows greener all the way.
    green = pd.Series({label: colours[label][1] for label in trust.index})
    assert green[trust.sort_values().index].is_monotonic_increasing and green.nunique() > 10
    viewer.close()
