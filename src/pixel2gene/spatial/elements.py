"""Finding elements by name, and writing new ones: complete or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from tqdm.dask import TqdmCallback

from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.store import KINDS, put, require_spatialdata, set_records, store_of
from pixel2gene.spatial.store import RECORDS as RECORDS

_RECORDED: dict[str, dict[str, type]] = {
    "embed": {"image_key": str, "mpp": float, "encoder": dict, "fingerprint": str},
    "tissue": {"mpp": float, "force": bool},
}
_NAME = re.compile(r"(?!__|\.+$)[\w.-]+")
RASTER_CHUNKS = (16, 512, 512)


def get_table(sdata: SpatialData, table_key: str) -> ad.AnnData:
    """Look up a table; a KeyError lists those there are."""
    require_spatialdata(sdata)
    if not isinstance(table_key, str) or table_key not in sdata.tables:
        raise KeyError(f"No {table_key!r} among the tables; there are {sorted(sdata.tables)}.")
    table: ad.AnnData = sdata.tables[table_key]
    return table


def get_record(sdata: SpatialData, key: str, verb: str) -> dict[str, Any]:
    """What a verb recorded of the element that it wrote; a KeyError says which verb writes it."""
    require_spatialdata(sdata)
    records = sdata.attrs.get(RECORDS, {})
    if not isinstance(records, dict) or not all(isinstance(one, dict) for one in records.values()):
        raise ValueError(f"sdata.attrs[{RECORDS!r}] is damaged: delete it, and run the verbs of pixel2gene again.")
    if not isinstance(key, str) or key not in sdata or records.get(key, {}).get("verb") != verb:
        known = sorted(name for name, record in records.items() if name in sdata and record.get("verb") == verb)
        raise KeyError(
            f"No {key!r} written by pixel2gene.tl.{verb}; it wrote {known}. Run pixel2gene.tl.{verb} first, or name "
            "the element that it wrote."
        )
    record: dict[str, Any] = records[key]
    for name, kind in _RECORDED.get(verb, {}).items():
        value = record.get(name)
        # The numbers among them are µm per pixel.
        if not isinstance(value, kind) or (isinstance(value, float) and not 1e-6 < value < 1e6):
            raise ValueError(f"What is recorded of {key!r} is damaged ({name}): run pixel2gene.tl.{verb} again.")
    return record


def require_new(sdata: SpatialData, keys: Mapping[str, str], overwrite: bool) -> None:
    """Refuse names (of kinds) that are none, or taken and may not be overwritten by an element of that kind."""
    for key in keys:
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise ValueError(
                f"{key!r} is no name of an element; letters, digits, dots, hyphens and underscores are expected: pass "
                "another key_added."
            )
    taken = [key for key in keys if key in sdata]
    for key in taken:
        found = _kind_of(sdata, key)
        if found != keys[key]:
            raise ValueError(
                f"{key!r} is among the {found} already, and would be among the {keys[key]}; pass another key_added."
            )
    if taken and not overwrite:
        raise ValueError(f"{taken} exist already; pass overwrite=True or another key_added.")
    foreign = [key for key in taken if key not in sdata.attrs.get(RECORDS, {})]
    if foreign:
        raise ValueError(f"{foreign} were not written by pixel2gene and are left alone; pass another key_added.")


def _kind_of(sdata: SpatialData, key: str) -> str:
    return next(kind for kind in KINDS if key in getattr(sdata, kind))


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

    Those are recorded too: the user may yet write such an element, which is then ours. In a backed SpatialData all is
    written whole or not at all, see `pixel2gene.spatial.store`.
    """
    records = {key: dict(record) for key in (*elements, *instead_of)}
    store = store_of(sdata)
    with warnings.catch_warnings():
        # The annotated element may be written in the same call, or be the user's own in the store.
        warnings.filterwarnings("ignore", message=".*annotat.*")
        with TqdmCallback(desc=label, disable=not progress, leave=False):
            if store is None:
                computed = {key: _computed(element) for key, element in elements.items()}
            else:
                put(sdata, store, elements, records, instead_of)
                computed = {}
        for key in [*instead_of, *computed]:
            if key in sdata:
                del sdata[key]
        for key, element in computed.items():
            sdata[key] = element
    set_records(sdata, {**sdata.attrs.get(RECORDS, {}), **records})


def _computed(element: Any) -> Any:
    return element.persist() if isinstance(element, xr.DataArray) else element
