"""Finding elements by name, and writing new ones: complete or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from tqdm.dask import TqdmCallback

from pixel2gene.spatial.grid import Grid

RECORDS = "pixel2gene"
RASTER_CHUNKS = (16, 512, 512)


def get_table(sdata: SpatialData, table_key: str) -> ad.AnnData:
    """Look up a table; a KeyError lists those there are."""
    if table_key not in sdata.tables:
        raise KeyError(f"No {table_key!r} among the tables; there are {sorted(sdata.tables)}.")
    table: ad.AnnData = sdata.tables[table_key]
    return table


def get_record(sdata: SpatialData, key: str, verb: str) -> dict[str, Any]:
    """What a verb recorded of the element that it wrote; a KeyError says which verb writes it."""
    records = sdata.attrs.get(RECORDS, {})
    if key not in sdata or records.get(key, {}).get("verb") != verb:
        known = sorted(name for name, record in records.items() if name in sdata and record["verb"] == verb)
        raise KeyError(
            f"No {key!r} written by pixel2gene.tl.{verb}; it wrote {known}. Run pixel2gene.tl.{verb} first, or name "
            "the element that it wrote."
        )
    record: dict[str, Any] = records[key]
    return record


def set_records(sdata: SpatialData, records: Mapping[str, Any]) -> None:
    """Replace what verbs recorded, in this SpatialData alone: crops and subsets share their attrs with the whole."""
    sdata.attrs = {**sdata.attrs, RECORDS: dict(records)}


def require_new(sdata: SpatialData, keys: Iterable[str], overwrite: bool) -> None:
    """Refuse names that are taken, unless they may be overwritten by an element of the same kind."""
    taken = [key for key in keys if key in sdata]
    if taken and not overwrite:
        raise ValueError(f"{taken} exist already; pass overwrite=True or another key_added.")
    foreign = [key for key in taken if key not in sdata.attrs.get(RECORDS, {})]
    if foreign:
        raise ValueError(f"{foreign} were not written by pixel2gene and are left alone; pass another key_added.")
    if sdata.path is not None and not os.access(sdata.path, os.W_OK):
        raise PermissionError(f"The store {sdata.path} cannot be written; copy it, or read it from a writable folder.")


def image_element(
    values: Any, grid: Grid, channels: Iterable[str], chunks: tuple[int, ...] = RASTER_CHUNKS
) -> xr.DataArray:
    """Image on a superpixel grid from an array (channels, rows, columns), numpy or dask."""
    chunks = tuple(min(chunk, size) for chunk, size in zip(chunks, values.shape, strict=True))
    image: xr.DataArray = Image2DModel.parse(
        # Image2DModel heeds chunks= in pyramids only.
        da.asarray(values).rechunk(chunks),
        dims=("c", "y", "x"),
        c_coords=list(channels),
        transformations=dict(grid.transformations),
    )
    return image


def rows_as_raster(rows: NDArray[np.float32], superpixels: NDArray[np.int64], grid: Grid) -> da.Array:
    """Lay (superpixels, channels) rows out on the grid: (channels, rows, columns) float16, lazy, NaN elsewhere."""
    position = np.full(grid.size, -1, np.int64)
    position[superpixels] = np.arange(len(superpixels))
    lazy = da.from_array(position.reshape(grid.shape), chunks=RASTER_CHUNKS[1:])

    def lay_out(block: NDArray[np.int64]) -> NDArray[np.float16]:
        values = np.full((rows.shape[1], *block.shape), np.nan, np.float16)
        values[:, block >= 0] = rows[block[block >= 0]].T
        return values

    raster: da.Array = lazy.map_blocks(
        lay_out, new_axis=0, chunks=((rows.shape[1],), *lazy.chunks), meta=np.empty((0, 0, 0), np.float16)
    )
    return raster


def labels_element(values: NDArray[Any], grid: Grid) -> xr.DataArray:
    """Labels on a superpixel grid from an array (rows, columns)."""
    labels: xr.DataArray = Labels2DModel.parse(values, dims=("y", "x"), transformations=dict(grid.transformations))
    return labels


def table_element(table: ad.AnnData, region: str, ids: NDArray[Any]) -> ad.AnnData:
    """Link a table to the instances `ids` of the element `region`."""
    table.obs["region"] = pd.Categorical([region] * table.n_obs)
    table.obs["instance_id"] = ids
    # A list, because SpatialData matches a plain string by substring.
    linked: ad.AnnData = TableModel.parse(table, region=[region], region_key="region", instance_key="instance_id")
    return linked


def compute(lazy: da.Array, label: str, progress: bool) -> NDArray[Any]:
    """Compute a dask array into memory, with a progress bar."""
    with TqdmCallback(desc=label, disable=not progress, leave=False):
        values: NDArray[Any] = lazy.compute()
    return values


def write_elements(
    sdata: SpatialData,
    elements: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    progress: bool,
    label: str,
    instead_of: Sequence[str] = (),
) -> None:
    """Add elements, computed block by block, and what is recorded of them; drop those that they stand instead of.

    Those are recorded too: the user may yet write such an element, which is then ours.

    In a backed SpatialData every element is first written whole beside the store, then moved into it by one rename;
    an element that it replaces is set aside and comes back if the process dies in between.
    """
    records = {**sdata.attrs.get(RECORDS, {}), **{key: dict(record) for key in (*elements, *instead_of)}}
    with warnings.catch_warnings():
        # The annotated element may be written in the same call, or be the user's own in the store.
        warnings.filterwarnings("ignore", message=".*annotat.*")
        with TqdmCallback(desc=label, disable=not progress, leave=False):
            if sdata.path is None:
                finished = {key: _computed(element) for key, element in elements.items()}
                set_records(sdata, records)
            else:
                finished = _write_to_store(sdata, elements, records, instead_of)
        for key in [*instead_of, *finished]:
            if key in sdata:
                del sdata[key]
        for key, element in finished.items():
            sdata[key] = element


def _computed(element: Any) -> Any:
    return element.persist() if isinstance(element, xr.DataArray) else element


def _write_to_store(
    sdata: SpatialData, elements: Mapping[str, Any], records: dict[str, Any], instead_of: Sequence[str]
) -> dict[str, Any]:
    """Move the elements into the store, and give them back as read from there (tables as they are)."""
    store = Path(str(sdata.path))
    staging = store.parent / f".{store.name}.pixel2gene"
    _recover(store, staging)
    kinds = {key: _kind(element) for key, element in elements.items()}
    # After a failure dask's threads finish what they are at, which must not end up in the next attempt.
    new = staging / uuid.uuid4().hex
    try:
        SpatialData.init_from_elements(dict(elements)).write(new)
        set_records(sdata, records)
        sdata.write_attrs()
        for key, kind in kinds.items():
            zarr.open_group(store, mode="a").require_group(kind)
            target, aside = store / kind / key, staging / "replaced" / kind / key
            if target.exists():
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.rename(target, aside)
            os.rename(new / kind / key, target)
        for old in (path for key in instead_of for path in store.glob(f"*/{key}")):
            os.rename(old, new / old.parent.name / old.name)
    finally:
        _recover(store, staging)
    sdata.write_consolidated_metadata()
    fresh = _read_quietly(store, tuple({kind for kind in kinds.values() if kind != "tables"}))
    return {key: element if kinds[key] == "tables" else fresh[key] for key, element in elements.items()}


def _read_quietly(store: Path, kinds: tuple[str, ...]) -> SpatialData:
    # For every labels element ome_zarr warns that it has no image as its parent; in SpatialData none has.
    reader = logging.getLogger("ome_zarr.reader")
    level = reader.level
    reader.setLevel(logging.ERROR)
    try:
        return read_zarr(store, selection=kinds)
    finally:
        reader.setLevel(level)


def _recover(store: Path, staging: Path) -> None:
    """Put back what was set aside and not replaced, by this process or one that died, and clean up."""
    for aside in (staging / "replaced").glob("*/*"):
        target = store / aside.parent.name / aside.name
        if not target.exists():
            os.rename(aside, target)
    shutil.rmtree(staging, ignore_errors=True)


def _kind(element: Any) -> str:
    if isinstance(element, ad.AnnData):
        return "tables"
    return "images" if "c" in element.dims else "labels"
