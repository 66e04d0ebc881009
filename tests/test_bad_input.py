"""One clear sentence and an untouched SpatialData for whatever is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import spatialdata_io
import tifffile
from PIL import Image
from spatialdata import SpatialData, deepcopy
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, set_transformation

import pixel2gene as p2g

SHARED = Path(os.environ.get("PIXEL2GENE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def fingerprint(sdata: SpatialData) -> dict[str, object]:
    """All that a verb could have changed."""
    state: dict[str, object] = {"attrs": repr(sdata.attrs)}
    for name, table in sdata.tables.items():
        state[name] = (table.shape, table.X.toarray().tobytes(), sorted(table.layers), repr(table.uns))
    for kind in ("images", "labels", "shapes", "points"):
        state[kind] = sorted(getattr(sdata, kind))
    return state


def replace_image(sdata: SpatialData, values: np.ndarray) -> None:
    del sdata["he"]
    sdata["he"] = Image2DModel.parse(values, dims=("c", "y", "x"))
    set_transformation(sdata["he"], {"global": Identity(), "micrometers": Scale([0.5, 0.5], ("x", "y"))}, set_all=True)


def pixels(sdata: SpatialData) -> np.ndarray:
    return np.asarray(sdata["he"].data)


def fit(sdata: SpatialData, **options: object) -> p2g.Model:
    return p2g.tl.fit(sdata, **{"table_key": "counts", "image_key": "he", "progress": False, **options})


def swap(sdata: SpatialData) -> None:
    """Counts of a wide slide with x and y swapped."""
    sdata["square_008um"]["geometry"] = sdata["square_008um"].affine_transform([0, 1, 1, 0, 0, 0])


def test_bins_in_microns_are_not_taken_for_pixels(embedded: SpatialData) -> None:
    bare = SpatialData(images={"he": Image2DModel.parse(pixels(embedded), dims=("c", "y", "x"))})
    bins = embedded["square_008um"].copy()
    bins["geometry"] = bins.affine_transform([0.5, 0, 0, 0.5, 0, 0])
    bare["square_008um"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=bins.geometry))
    with pytest.raises(ValueError, match="has 1 µm/px, as if their coordinates were in µm instead of its pixels"):
        p2g.tl.tissue(bare, "he", progress=False)
    with pytest.raises(ValueError, match="mpp as given: 0.5; bins of 8 µm 'square_008um': 1"):
        p2g.tl.tissue(bare, "he", mpp=0.5, progress=False)
    set_transformation(bare["square_008um"], Scale([2, 2], ("x", "y")))
    p2g.tl.tissue(bare, "he", progress=False)
    assert bare.attrs["pixel2gene"]["he_tissue"]["mpp"] == pytest.approx(0.5)


def test_swapped_coordinates_are_recognised() -> None:
    sdata = p2g.datasets.simulate(size=(256, 1024), n_genes=3, measured=1.0)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    swap(sdata)
    with pytest.raises(ValueError, match=r"lie on image 'he' \(1024 x 256 px\); with x and y swapped \d+ would lie"):
        fit(sdata)


@pytest.mark.parametrize("compression", [None, "deflate", "jpeg"])
def test_damaged_file(embedded: SpatialData, tmp_path: Path, compression: str | None) -> None:
    path, picture = tmp_path / "he.ome.tif", np.moveaxis(pixels(embedded), 0, -1)
    tifffile.imwrite(path, picture, photometric="rgb", tile=(256, 256), compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    sdata = SpatialData(images={"he": spatialdata_io.xenium_aligned_image(path, None)})
    with pytest.raises(ValueError, match="Image 'he' cannot be read at its pixels .* damaged or was cut short"):
        p2g.tl.tissue(sdata, "he", mpp=0.5, progress=False)
    assert list(sdata.labels) == []


@pytest.mark.skipif(not (SHARED / "xenium_breast_crop_dapi").exists(), reason="the real DAPI image is not here")
def test_real_dapi_is_no_he() -> None:
    grey = np.asarray(Image.open(SHARED / "xenium_breast_crop_dapi" / "xen_dapi.png").convert("L"))
    sdata = SpatialData(images={"dapi": Image2DModel.parse(np.stack([grey] * 3), dims=("c", "y", "x"))})
    with pytest.raises(ValueError, match="is fluorescence and no H&E"):
        p2g.tl.tissue(sdata, "dapi", mpp=0.85, progress=False)


def test_alpha_channel_is_dropped(embedded: SpatialData) -> None:
    expected = embedded["he_tissue"].values
    opaque = np.concatenate([pixels(embedded), np.full((1, *embedded["he"].shape[1:]), 255, np.uint8)])
    replace_image(embedded, opaque)
    p2g.tl.tissue(embedded, "he", key_added="again", progress=False)
    np.testing.assert_array_equal(embedded["again"].values, expected)


@pytest.mark.parametrize("verb", [p2g.tl.tissue, p2g.tl.embed])
def test_pixel_size_is_checked(embedded: SpatialData, verb: Callable[..., None]) -> None:
    before = fingerprint(embedded)
    with pytest.raises(ValueError, match="disagrees by over 5 %"):
        verb(embedded, "he", mpp=0.6, key_added="again", progress=False)
    with pytest.raises(ValueError, match="no pixel size"):
        verb(embedded, "he", mpp=-1.0, key_added="again", progress=False)
    assert fingerprint(embedded) == before


def test_coarse_image_is_refused_and_an_unknown_size_too(embedded: SpatialData) -> None:
    bare = SpatialData(images={"he": Image2DModel.parse(pixels(embedded), dims=("c", "y", "x"))})
    with pytest.raises(ValueError, match="1 µm/px or finer"):
        p2g.tl.tissue(bare, "he", mpp=4.5, progress=False)
    with pytest.raises(ValueError, match="pass mpp="):
        p2g.tl.tissue(bare, "he", progress=False)
    assert list(bare.labels) == []


@pytest.mark.skipif(not (SHARED / "mob_st2k").exists(), reason="the real mouse bulb sections are not here")
def test_mouse_bulb_at_four_microns_per_pixel_is_refused() -> None:
    folder = SHARED / "mob_st2k"
    sdata = p2g.io.legacy_st(
        folder / "counts" / "MOB1.tsv.gz", folder / "spots" / "alignment_table_MOB1.tsv", folder / "images" / "MOB1.jpg"
    )
    with pytest.raises(ValueError, match="needs 1 µm/px or finer"):
        p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.tissue(sdata, "he", mpp=4.4, force=True, progress=False)
    assert sdata["he_tissue"].values.mean() > 0.05


def test_unknown_keys_are_answered_with_those_there_are(embedded: SpatialData, fitted: p2g.Model) -> None:
    for call, known in [
        (lambda: p2g.tl.tissue(embedded, "nope"), "['he', 'he_embedding', 'truth']"),
        (lambda: p2g.tl.embed(embedded, "he", tissue_key="nope", key_added="x"), "'he_tissue'"),
        (lambda: p2g.tl.predict(embedded, fitted, image_key="nope"), "['he_embedding']"),
        (lambda: p2g.tl.denoise(embedded, fitted, table_key="nope"), "['counts']"),
        (lambda: p2g.tl.evaluate(embedded, fitted, table_key="nope"), "['counts']"),
        (lambda: p2g.tl.predict(embedded, fitted, genes=["nope"]), "GENE0001"),
        (lambda: p2g.pl.expression(embedded, "nope"), "GENE0001"),
        (lambda: p2g.pl.tissue(embedded, "nope"), "he"),
    ]:
        with pytest.raises(KeyError) as caught:
            call()
        assert "nope" in str(caught.value)
        assert known in str(caught.value)
    with pytest.raises(ValueError, match="No encoder 'nope'; there are .*'lite0'.* and folders"):
        p2g.tl.embed(embedded, "he", encoder="nope", key_added="again")


def test_existing_results_and_foreign_elements_are_left_alone(embedded: SpatialData, fitted: p2g.Model) -> None:
    p2g.tl.predict(embedded, fitted, progress=False)
    first = embedded["predicted"].X.copy()
    for call in [
        lambda: p2g.tl.predict(embedded, fitted),
        lambda: p2g.tl.tissue(embedded, "he"),
        lambda: p2g.tl.embed(embedded, "he"),
    ]:
        with pytest.raises(ValueError, match="exist already; pass overwrite=True"):
            call()
    with pytest.raises(ValueError, match="not written by pixel2gene"):
        p2g.tl.denoise(embedded, fitted, key_added="counts", overwrite=True)
    p2g.tl.predict(embedded, fitted, overwrite=True, progress=False)
    np.testing.assert_allclose(embedded["predicted"].X, first, rtol=1e-5)


def test_model_of_another_encoder_or_scale_is_refused(embedded: SpatialData, fitted: p2g.Model) -> None:
    record = embedded.attrs["pixel2gene"]["he_embedding"]
    record["encoder"] = {**record["encoder"], "name": "uni", "mpp": 0.25}
    before = fingerprint(embedded)
    for verb in (p2g.tl.predict, p2g.tl.denoise, p2g.tl.evaluate):
        with pytest.raises(ValueError, match="name: model lite0, embedding uni; mpp: model 0.5, embedding 0.25"):
            verb(embedded, fitted)
    assert fingerprint(embedded) == before


def test_store_that_cannot_be_written(embedded: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.write(tmp_path / "slide.zarr")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        p2g.tl.tissue(embedded, "he", key_added="again")


def test_slides_without_a_common_gene(embedded: SpatialData) -> None:
    other = deepcopy(embedded)
    other["counts"].var_names = [f"ENSG{i}" for i in range(other["counts"].n_vars)]
    with pytest.raises(ValueError, match="'slide_0' and 'slide_1' have the same H&E"):
        fit([embedded, other])
    record = other.attrs["pixel2gene"]["he_embedding"]
    other.attrs["pixel2gene"]["he_embedding"] = {**record, "fingerprint": "other"}
    with pytest.raises(ValueError, match="share no gene"):
        fit([embedded, other])
    with pytest.raises(ValueError, match="No slide was given"):
        fit([])


def test_failing_computation_leaves_the_store_as_it_was(embedded: SpatialData, tmp_path: Path) -> None:
    del embedded["he_tissue"], embedded["he_embedding"]
    embedded.attrs.pop("pixel2gene")
    embedded.write(tmp_path / "slide.zarr")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("disk full")

    broken = da.from_array(pixels(embedded), chunks=-1).map_blocks(
        fail, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    embedded["he"].data = broken
    with pytest.raises(OSError, match="disk full"):
        p2g.tl.tissue(embedded, "he", progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "he_tissue" not in embedded
