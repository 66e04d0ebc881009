"""Layouts of vendors through the readers of spatialdata-io: as accurate as the slide that they were written from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import dask.dataframe as dd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata_io.readers.cosmx
import spatialdata_io.readers.merscope
import tifffile
from anndata import AnnData
from spatialdata import SpatialData, deepcopy, get_extent, transform
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Affine

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.geometry import raster_levels, system_matrices

SHORT = Recipe(folds=3, max_checks=12, hidden=(64, 64, 16))
TINY = Recipe(folds=2, max_checks=1, hidden=(8,))


def read_visium_hd(folder: Path) -> SpatialData:
    return spatialdata_io.visium_hd(folder, load_segmentations_only=False)


def read_visium(folder: Path, image: str = "he.tif") -> SpatialData:
    return spatialdata_io.visium(folder, dataset_id="sim", fullres_image_file=image)


def read_xenium(folder: Path, **options: Any) -> SpatialData:
    return spatialdata_io.xenium(folder, nucleus_boundaries=False, morphology_focus=False, **options)


def added_he(path: Path, matrix: np.ndarray) -> Any:
    """H&E as the user adds it, by what maps its pixels to "global"."""
    to_global = Affine(matrix, ("x", "y"), ("x", "y"))
    return Image2DModel.parse(tifffile.imread(path), dims=("y", "x", "c"), transformations={"global": to_global})


def with_table(reader: ModuleType, **changed: Any) -> Any:
    """Let a reader of spatialdata-io 0.7.1 make its table, which fails with AnnData 0.13.

    ``TypeError: AnnData.__init__() got an unexpected keyword argument 'dtype'``; docs/platforms.md says so.
    """
    return patch.multiple(reader, **changed)


def table_without_dtype(*args: Any, dtype: Any = None, **named: Any) -> AnnData:
    return AnnData(*args, **named)


def read_merscope(folder: Path) -> SpatialData:
    with with_table(spatialdata_io.readers.merscope, anndata=SimpleNamespace(AnnData=table_without_dtype)):
        sdata = spatialdata_io.merscope(folder, mosaic_images=False, slide_name="sim", region_name="part")
    sdata["he"] = added_he(folder / "he.tif", np.loadtxt(folder / "he_alignment.csv", delimiter=","))
    return sdata


def read_cosmx(folder: Path) -> SpatialData:
    with with_table(spatialdata_io.readers.cosmx, AnnData=table_without_dtype):
        sdata = spatialdata_io.cosmx(folder)
    sdata["he"] = added_he(folder / "he.tif", np.loadtxt(folder / "he_alignment.csv", delimiter=","))
    parts = [transform(points, to_coordinate_system="global") for points in sdata.points.values()]
    sdata["transcripts"] = PointsModel.parse(dd.concat(parts), feature_key="target", sort=True)
    return sdata


def read_stereoseq(folder: Path) -> SpatialData:
    sdata = spatialdata_io.stereoseq(folder)
    sdata["he"] = added_he(folder / "SIM_HE_regist.tif", np.eye(3))
    return sdata


READERS: dict[str, Callable[[Path], SpatialData]] = {
    "visium_hd": read_visium_hd,
    "visium": read_visium,
    "xenium": read_xenium,
    "merscope": read_merscope,
    "cosmx": read_cosmx,
    "stereoseq": read_stereoseq,
}
# Platform, counts and H&E as the reader names them, and the same counts as simulated.
CASES = [
    ("visium_hd", "square_008um", "sim_full_image", "counts"),
    ("visium", "table", "sim_full_image", "counts"),
    ("xenium", "transcripts", "he_image", "transcripts"),
    ("xenium", "table", "he_image", "counts"),
    ("merscope", "sim_part_transcripts", "he", "transcripts"),
    ("merscope", "table", "he", "counts"),
    ("cosmx", "transcripts", "he", "transcripts"),
    ("cosmx", "table", "he", "counts"),
    ("stereoseq", "bin20_table", "he", "bin20"),
    ("stereoseq", "bin50_table", "he", "bin50"),
]
# The files of the CosMx do not tell how large its pixels are.
MPP = {"cosmx": 0.5}
TABLES_OF_CELLS = ("xenium-table", "merscope-table", "cosmx-table")


def predicted(sdata: SpatialData, key: str, image_key: str, mpp: float | None = None) -> SpatialData:
    p2g.tl.tissue(sdata, image_key, mpp=mpp, progress=False)
    p2g.tl.embed(sdata, image_key, mpp=mpp, progress=False)
    model = p2g.tl.fit(sdata, key, image_key=image_key, recipe=SHORT, progress=False)
    p2g.tl.predict(sdata, model, progress=False)
    return sdata


def with_truth(sdata: SpatialData, scanned: np.ndarray, direct: SpatialData) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true counts of the superpixels that have any; `scanned` maps to the pixels of the simulated H&E."""
    table = sdata["predicted"]
    to_truth = np.diag([1 / 16, 1 / 16, 1]) @ scanned
    column, row = np.floor(table.obsm["spatial"] @ to_truth[:2, :2].T + to_truth[:2, 2]).astype(int).T
    genes = table.var_names.to_numpy()
    truth = direct["truth"].sel(c=genes).values
    inside = (row < truth.shape[1]) & (column < truth.shape[2])
    there = truth[:, row[inside], column[inside]].T
    some = there.sum(axis=1) > 0
    return table.X[inside][some], there[some]


def accuracy(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(values.T, truth.T, strict=True)]))


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], SpatialData]:
    """Predictions from what readers return."""
    return {}


@pytest.fixture(scope="module")
def expected() -> dict[tuple[int, str], tuple[list[str], float]]:
    """Genes and accuracy of predictions from simulated slides, some of which several platforms delivered."""
    return {}


@pytest.mark.parametrize(("platform", "key", "image_key", "same"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_what_is_read_is_as_good_as_what_was_written(
    request: pytest.FixtureRequest,
    results: dict[tuple[str, str], SpatialData],
    expected: dict[tuple[int, str], tuple[list[str], float]],
    platform: str,
    key: str,
    image_key: str,
    same: str,
) -> None:
    delivery = request.getfixturevalue(platform)
    simulated = (id(delivery.direct), same)
    if simulated not in expected:
        direct = predicted(deepcopy(delivery.direct), same, "he")
        expected[simulated] = direct["predicted"].var_names.tolist(), accuracy(*with_truth(direct, np.eye(3), direct))
    genes, least = expected[simulated]
    sdata = READERS[platform](delivery.folder)
    results[platform, key] = predicted(sdata, key, image_key, MPP.get(platform))

    assert sdata.attrs["pixel2gene"][f"{image_key}_tissue"]["mpp"] == pytest.approx(0.5, rel=2e-3)
    assert sorted(sdata["predicted"].var_names) == sorted(genes)
    values, truth = with_truth(sdata, delivery.scanned, delivery.direct)
    assert least > 0.4
    # No less; more by chance where the H&E is turned, which the encoder notices.
    assert accuracy(values, truth) > least - 0.02
    if f"{platform}-{key}" not in TABLES_OF_CELLS:
        # Not of cells, between which nothing is counted.
        assert values.sum() / truth.sum() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("platform", "key", "image_key", "system"),
    [
        ("visium_hd", "square_008um", "sim_full_image", "sim"),
        ("visium", "table", "sim_full_image", "sim"),
        ("xenium", "transcripts", "he_image", "global"),
        ("cosmx", "transcripts", "he", "global"),
    ],
)
def test_results_lie_on_the_image_in_every_coordinate_system(
    results: dict[tuple[str, str], SpatialData], platform: str, key: str, image_key: str, system: str
) -> None:
    sdata = results[platform, key]
    assert system in system_matrices(sdata, image_key)
    for name in system_matrices(sdata, image_key):
        image = get_extent(sdata[image_key], coordinate_system=name)
        side = np.ptp(image["x"]) / raster_levels(sdata["predicted_map"])[0].sizes["x"]
        found = get_extent(sdata["predicted_map"], coordinate_system=name)
        for axis in "xy":
            # The last superpixel may be cut by the border.
            assert found[axis] == pytest.approx(image[axis], abs=side)


@pytest.mark.parametrize(
    ("platform", "key", "cells"),
    [
        ("merscope", "sim_part_transcripts", ["sim_part_polygons"]),
        ("cosmx", "transcripts", ["1_labels", "2_labels"]),
        ("stereoseq", "bin20_table", ["cells_polygons"]),
    ],
)
def test_cells_of_the_machine_have_what_is_true_of_them(
    request: pytest.FixtureRequest,
    results: dict[tuple[str, str], SpatialData],
    platform: str,
    key: str,
    cells: list[str],
) -> None:
    sdata, direct = results[platform, key], request.getfixturevalue(platform).direct
    truth = p2g.datasets.true_counts(direct)
    found = []
    for name in cells:
        p2g.tl.aggregate(sdata, "predicted", name, progress=False)
        found.append(sdata[f"predicted_{name}"].X.sum(axis=1))
    total = np.concatenate(found)
    assert len(total) == pytest.approx(len(truth), rel=0.01)
    assert total.sum() == pytest.approx(truth.to_numpy().sum(), rel=0.1)


def test_bins_of_another_size_by_the_name_of_their_table(visium_hd: Any) -> None:
    sdata = read_visium_hd(visium_hd.folder)
    assert sdata["square_016um"].X.sum() == visium_hd.direct["counts"].X.sum()
    p2g.tl.tissue(sdata, "sim_full_image", progress=False)
    p2g.tl.embed(sdata, "sim_full_image", progress=False)
    model = p2g.tl.fit(sdata, "square_016um", image_key="sim_full_image", recipe=TINY, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    assert sdata["denoised"].uns["spatialdata_attrs"]["region"] == "sim_square_016um"


@pytest.mark.parametrize("platform", ["visium_hd", "visium"])
@pytest.mark.parametrize("image", ["hires", "lowres"])
def test_shrunk_images_are_refused(request: pytest.FixtureRequest, platform: str, image: str) -> None:
    sdata = READERS[platform](request.getfixturevalue(platform).folder)
    with pytest.raises(ValueError, match="nuclei are not resolved in coarser images; load the full-resolution image"):
        p2g.tl.tissue(sdata, f"sim_{image}_image", progress=False)


def test_hires_image_in_the_place_of_the_full_one(visium: Any) -> None:
    sdata = read_visium(visium.folder, "spatial/tissue_hires_image.png")
    p2g.tl.tissue(sdata, "sim_full_image", progress=False)
    p2g.tl.embed(sdata, "sim_full_image", progress=False)
    with pytest.raises(ValueError, match=r"\(128 x 128 px\): load the image .* at full resolution"):
        p2g.tl.fit(sdata, "table", image_key="sim_full_image", progress=False)


def test_denoised_spots_have_the_width_that_measures(results: dict[tuple[str, str], SpatialData], visium: Any) -> None:
    sdata = results["visium", "table"]
    p2g.tl.aggregate(sdata, "predicted", "sim", progress=False)
    # Spots are 55 µm wide, although Space Ranger draws them with 65.
    assert sdata["predicted_sim"].X.sum() == pytest.approx(visium.direct["counts"].X.sum(), rel=0.1)


def test_control_probes_are_left_out(xenium: Any) -> None:
    sdata = read_xenium(xenium.folder, gex_only=False)
    assert any(name.startswith("NegControl") for name in sdata["table"].var_names)
    assert "UnassignedCodeword_0001" in set(sdata["transcripts"]["feature_name"].compute())
    p2g.tl.tissue(sdata, "he_image", progress=False)
    p2g.tl.embed(sdata, "he_image", progress=False)
    for key in ("table", "transcripts"):
        model = p2g.tl.fit(sdata, key, image_key="he_image", recipe=TINY, progress=False)
        assert sorted(model.genes) == sorted(xenium.direct["counts"].var_names)


def test_ensembl_ids_as_readers_give_them(xenium: Any) -> None:
    sdata = read_xenium(xenium.folder)
    p2g.tl.tissue(sdata, "he_image", progress=False)
    p2g.tl.embed(sdata, "he_image", progress=False)
    fit = partial(p2g.tl.fit, sdata, "table", image_key="he_image", recipe=TINY, progress=False)
    ids = sdata["table"].var["gene_ids"].tolist()[:3]
    with pytest.raises(KeyError, match=r"in its column var\['gene_ids'\]: rename by table.var_names = table.var"):
        fit(genes=ids)
    of_symbols = fit()
    sdata["table"].var_names = sdata["table"].var["gene_ids"]
    assert fit(genes=ids).genes == ids
    sdata["table"].var["symbol"] = xenium.direct["counts"].var_names
    with pytest.raises(KeyError, match=r"None of the model's 12 genes is in 'table'.*in its column var\['symbol'\]"):
        p2g.tl.denoise(sdata, of_symbols, progress=False)


def test_fields_of_view_as_captures(results: dict[tuple[str, str], SpatialData]) -> None:
    sdata = results["cosmx", "transcripts"]
    fields = ["1_points", "2_points"]
    model = p2g.tl.fit(sdata, fields, image_key="he", recipe=TINY, progress=False)
    assert "NegPrb1" not in model.genes
    for field in fields:
        p2g.tl.denoise(sdata, model, table_key=field, key_added=f"denoised_{field}", progress=False)
    # Each lies on its own half of the H&E.
    y = [sdata[f"denoised_{field}"].obsm["spatial"][:, 1] for field in fields]
    assert y[0].max() < 330 and y[1].min() > 310


def test_bins_that_come_as_points(results: dict[tuple[str, str], SpatialData], stereoseq: Any) -> None:
    sdata = results["stereoseq", "bin50_table"]
    with pytest.raises(ValueError, match="mpp as given: 0.25; 'bin20_genes' in steps of 0.5 µm: 0.5;"):
        p2g.tl.embed(sdata, "he", mpp=0.25, overwrite=True, progress=False)
    model = p2g.tl.fit(sdata, "bin50_table", image_key="he", recipe=TINY, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    denoised = sdata["denoised"]
    assert denoised.uns["spatialdata_attrs"]["region"] == "bin50_genes"
    corners = sdata["bin50_genes"].compute().loc[denoised.obs["instance_id"]]
    truth = p2g.datasets.true_counts(stereoseq.direct, "bin50")
    truth.index = pd.MultiIndex.from_frame(stereoseq.direct["bin50"].obs[["x", "y"]])
    truth = truth.loc[pd.MultiIndex.from_frame(corners), denoised.var_names]
    assert accuracy(denoised.X, truth.to_numpy()) > 0.9
    assert denoised.X.sum() == pytest.approx(truth.to_numpy().sum(), rel=0.05)
    axes = p2g.pl.expression(sdata, model.genes[0], measured="bin50_table")
    assert any("measured" in ax.get_title() for ax in axes)
    plt.close("all")


def test_cells_of_several_fields_of_view_are_denoised(results: dict[tuple[str, str], SpatialData]) -> None:
    sdata = results["cosmx", "table"]
    model = p2g.tl.fit(sdata, "table", image_key="he", recipe=TINY, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    assert sdata["denoised"].obs["fov_labels"].value_counts().min() > 100
    assert sdata["denoised"].uns["spatialdata_attrs"]["region_key"] == "fov_labels"
    assert sdata["denoised"].obs_names.isin(sdata["table"].obs_names).all()


def test_he_without_its_alignment_file(xenium: Any) -> None:
    sdata = read_xenium(xenium.folder, aligned_images=False)
    image = xenium.folder / "sim_he_image.ome.tif"
    sdata["he_image"] = spatialdata_io.xenium_aligned_image(image, None)
    with pytest.warns(UserWarning, match="without its alignment file"):
        p2g.tl.tissue(sdata, "he_image", progress=False)
    with pytest.raises(ValueError, match="mpp as given: 0.5; 'transcripts' in µm: 0.2125"):
        p2g.tl.embed(sdata, "he_image", mpp=0.5, progress=False)
    aligned = spatialdata_io.xenium_aligned_image(image, xenium.folder / "sim_he_imagealignment.csv")
    del sdata["he_image"], sdata["he_image_tissue"]
    sdata["he_image"] = aligned
    p2g.tl.tissue(sdata, "he_image", progress=False)
    assert sdata.attrs["pixel2gene"]["he_image_tissue"]["mpp"] == pytest.approx(0.5)
