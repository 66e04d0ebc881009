"""Elements are written whole or not at all."""

import hashlib
from pathlib import Path

import anndata as ad
import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, get_transformation

from pixel2gene.spatial import elements as module
from pixel2gene.spatial.elements import (
    compute,
    get_record,
    get_table,
    image_element,
    labels_element,
    require_new,
    rows_as_raster,
    table_element,
    write_elements,
)
from pixel2gene.spatial.grid import superpixel_grid

GENES = ["ACTB", "ERBB2"]
RECORD = {"verb": "predict", "mpp": 0.5}


def fresh():
    transformations = {"global": Identity(), "um": Scale([0.5, 0.5], axes=("x", "y"))}
    image = Image2DModel.parse(np.zeros((3, 96, 128), np.uint8), dims=("c", "y", "x"), transformations=transformations)
    circles = gpd.GeoDataFrame({"radius": [5.0]}, geometry=[shapely.Point(40, 40)])
    spots = ShapesModel.parse(circles, transformations={"global": Identity()})
    return SpatialData(images={"he": image}, shapes={"spots": spots})


@pytest.fixture
def sdata():
    return fresh()


@pytest.fixture
def backed(sdata, tmp_path):
    sdata.write(tmp_path / "slide.zarr")
    return read_zarr(tmp_path / "slide.zarr")


def results(sdata, value=1.0):
    """An image, labels and a table that annotates them."""
    grid = superpixel_grid(sdata, "he", 0.5)
    values = value * np.arange(2 * grid.size, dtype=np.float32).reshape(2, *grid.shape)
    ids = np.arange(1, grid.size + 1)
    table = ad.AnnData(values.reshape(2, -1).T.copy(), var=pd.DataFrame(index=GENES))
    return {
        "predicted": table_element(table, "predicted_superpixels", ids),
        "predicted_map": image_element(da.from_array(values, chunks=(1, 4, 4)), grid, GENES),
        "predicted_superpixels": labels_element(grid.ids(np.ones(grid.shape, bool)), grid),
    }


def write(sdata, elements, **record):
    write_elements(sdata, elements, {**RECORD, **record}, progress=False, label="predict")


def content(path):
    """Every file of a folder."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_holds(sdata, value):
    expected = results(fresh(), value)
    for key in ("predicted_map", "predicted_superpixels"):
        np.testing.assert_array_equal(sdata[key].values, expected[key].values)
        found, wanted = (get_transformation(element, get_all=True) for element in (sdata[key], expected[key]))
        assert set(found) == {"global", "um"}
        for system in wanted:
            matrices = [t[system].to_affine_matrix(("x", "y"), ("x", "y")) for t in (found, wanted)]
            np.testing.assert_allclose(*matrices)
    assert sdata["predicted_map"].coords["c"].values.tolist() == GENES
    np.testing.assert_array_equal(sdata.tables["predicted"].X, expected["predicted"].X)
    assert sdata.tables["predicted"].uns["spatialdata_attrs"]["region"] == ["predicted_superpixels"]


def test_in_memory(sdata):
    write(sdata, results(sdata), version="1")
    assert_holds(sdata, 1.0)
    assert get_record(sdata, "predicted_map", "predict") == {**RECORD, "version": "1"}


def test_in_memory_it_is_computed_once(sdata):
    calls = []
    grid = superpixel_grid(sdata, "he", 0.5)
    lazy = da.zeros((2, *grid.shape), chunks=(2, 4, 4)).map_blocks(
        lambda b: calls.append(1) or b, meta=np.empty((0,) * 3)
    )
    calls.clear()
    write(sdata, {"map": image_element(lazy, grid, GENES)})
    n = len(calls)
    assert n > 0 and not sdata["map"].values.any()
    assert len(calls) == n


def test_in_a_store(backed):
    write(backed, results(backed))
    assert_holds(backed, 1.0)
    read = read_zarr(backed.path)
    assert_holds(read, 1.0)
    assert set(read.attrs["pixel2gene"]) == set(results(backed))
    assert get_record(read, "predicted", "predict") == RECORD
    assert "spots" in read and "he" in read
    assert [file.name for file in Path(backed.path).parent.iterdir()] == ["slide.zarr"]


def test_from_a_store_it_is_read_lazily(backed):
    write(backed, results(backed))
    before = content(backed.path)
    assert isinstance(backed["predicted_map"].data, da.Array)
    other = {"again": image_element(backed["predicted_map"].data * 2, superpixel_grid(backed, "he", 0.5), GENES)}
    write(backed, other)
    np.testing.assert_array_equal(read_zarr(backed.path)["again"].values, 2 * backed["predicted_map"].values)
    after = content(backed.path)
    assert {name: after[name] for name in before if "zarr.json" not in name} == {
        name: digest for name, digest in before.items() if "zarr.json" not in name
    }


@pytest.mark.parametrize("where", ["sdata", "backed"])
def test_overwrite_replaces(request, where):
    sdata = request.getfixturevalue(where)
    write(sdata, results(sdata))
    require_new(sdata, {"predicted": "tables", "predicted_map": "images"}, overwrite=True)
    write(sdata, results(sdata, 3.0), version="2")
    assert_holds(sdata, 3.0)
    if where == "backed":
        read = read_zarr(sdata.path)
        assert_holds(read, 3.0)
        assert get_record(read, "predicted", "predict")["version"] == "2"


def test_a_result_may_be_computed_from_what_it_replaces(backed):
    write(backed, results(backed))
    grid = superpixel_grid(backed, "he", 0.5)
    write(backed, {"predicted_map": image_element(backed["predicted_map"].data + 1, grid, GENES)})
    expected = results(fresh())["predicted_map"].values + 1
    np.testing.assert_array_equal(read_zarr(backed.path)["predicted_map"].values, expected)


def test_taken_names_are_refused(sdata):
    write(sdata, results(sdata))
    with pytest.raises(ValueError, match=r"\['predicted'\] exist already; pass overwrite=True or another key_added"):
        require_new(sdata, {"new": "tables", "predicted": "tables"}, overwrite=False)
    require_new(sdata, {"new": "tables"}, overwrite=False)


def test_what_others_wrote_is_never_replaced(sdata):
    with pytest.raises(ValueError, match=r"\['spots'\] exist already"):
        require_new(sdata, {"spots": "shapes"}, overwrite=False)
    with pytest.raises(ValueError, match=r"\['spots'\] were not written by pixel2gene"):
        require_new(sdata, {"spots": "shapes"}, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_element_of_another_kind_is_never_replaced(sdata, overwrite):
    write(sdata, results(sdata))
    with pytest.raises(ValueError, match="'predicted_map' is among the images already, and would be among the tables"):
        require_new(sdata, {"predicted_map": "tables"}, overwrite)


def broken(sdata):
    """Its last block cannot be computed."""
    grid = superpixel_grid(sdata, "he", 0.5)

    def block(values, block_info=None):
        if block_info and block_info[0]["chunk-location"] == (1, 1, 1):
            raise OSError("the disk is full")
        return values

    lazy = da.ones((2, *grid.shape), chunks=(1, 4, 4)).map_blocks(block, meta=np.empty((0, 0, 0)))
    return {**results(sdata, 9.0), "predicted_map": image_element(lazy, grid, GENES, chunks=(1, 4, 4))}


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_computation_leaves_the_store_as_it_was(backed, before):
    if before:
        write(backed, results(backed))
    files = content(backed.path)
    # Other threads would still be writing.
    with dask.config.set(scheduler="synchronous"), pytest.raises(OSError, match="the disk is full"):
        write(backed, broken(backed), version="2")
    assert content(backed.path) == files
    assert [file.name for file in Path(backed.path).parent.iterdir()] == ["slide.zarr"]
    assert ("predicted_map" in backed) == before
    if before:
        assert_holds(backed, 1.0)
        assert get_record(backed, "predicted", "predict") == RECORD
    write(backed, results(backed, 2.0))
    assert_holds(read_zarr(backed.path), 2.0)


def test_a_failed_computation_leaves_memory_as_it_was(sdata):
    write(sdata, results(sdata))
    with pytest.raises(OSError, match="the disk is full"):
        write(sdata, broken(sdata))
    assert_holds(sdata, 1.0)
    assert get_record(sdata, "predicted", "predict") == RECORD


def test_rows_as_raster(sdata):
    grid = superpixel_grid(sdata, "he", 0.5)
    superpixels = np.array([11, 0, 47, 30])
    rows = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    lazy = rows_as_raster(rows, superpixels, grid)
    assert lazy.shape == (3, *grid.shape) and lazy.dtype == np.float16
    flat = lazy.compute().reshape(3, -1)
    np.testing.assert_array_equal(flat[:, superpixels].T, rows.astype(np.float16))
    assert np.isnan(np.delete(flat, superpixels, axis=1)).all()


def test_rows_as_raster_over_several_chunks(sdata, monkeypatch):
    monkeypatch.setattr(module, "RASTER_CHUNKS", (2, 4, 3))
    grid = superpixel_grid(sdata, "he", 0.5)
    rows = np.arange(2 * grid.size, dtype=np.float32).reshape(grid.size, 2)
    lazy = rows_as_raster(rows, np.arange(grid.size), grid)
    assert lazy.numblocks[1:] == (2, 3)
    np.testing.assert_array_equal(lazy.compute(), rows.T.reshape(2, *grid.shape))


def test_an_image_has_chunks_no_larger_than_asked_for(sdata):
    grid = superpixel_grid(sdata, "he", 0.5)
    image = image_element(np.zeros((5, *grid.shape), np.float16), grid, list("abcde"), chunks=(2, 4, 100))
    assert image.data.chunksize == (2, 4, grid.shape[1])
    assert image.dtype == np.float16


def test_compute(capsys):
    np.testing.assert_array_equal(compute(da.arange(5, chunks=2), "count", False), np.arange(5))
    assert capsys.readouterr().err == ""
    compute(da.arange(5, chunks=2), "count", True)
    assert "count" in capsys.readouterr().err


def test_unknown_names_list_those_there_are(sdata):
    write(sdata, results(sdata))
    assert get_table(sdata, "predicted") is sdata.tables["predicted"]
    with pytest.raises(KeyError, match=r"No 'bins' among the tables; there are \['predicted'\]"):
        get_table(sdata, "bins")
    with pytest.raises(KeyError, match=r"No 'he' written by pixel2gene.tl.embed; .*Run pixel2gene.tl.embed first"):
        get_record(sdata, "he", "embed")
    del sdata.images["predicted_map"]
    with pytest.raises(KeyError, match="No 'predicted_map' written"):
        get_record(sdata, "predicted_map", "predict")
