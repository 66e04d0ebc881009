"""From expression per superpixel to expression per shape or label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from spatialdata import SpatialData
from tqdm.auto import tqdm

from pixel2gene.spatial.elements import RECORDS, get_table
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.overlap import overlap
from pixel2gene.spatial.spots import radii
from pixel2gene.spatial.units import table_overlap

WRITERS = ("predict", "denoise")


@dataclass(frozen=True)
class Expression:
    """What `tl.predict` or `tl.denoise` wrote.

    Attributes
    ----------
    key
        Of the table; the raster is ``f"{key}_map"``.
    record
        Of the verb.
    table
        Units x genes, with ``layers["sd"]``.
    raster
        (genes, rows, columns), NaN where there are no values.
    """

    key: str
    record: dict[str, Any]
    table: ad.AnnData
    raster: xr.DataArray

    @property
    def map_key(self) -> str:
        """Key of the raster."""
        return f"{self.key}_map"

    @property
    def genes(self) -> list[str]:
        """Genes of the table that are in the raster, in the order of the table."""
        known = set(self.raster.coords["c"].values)
        return [gene for gene in self.table.var_names if gene in known]

    @property
    def scores(self) -> pd.DataFrame:
        """What is known of them, as their held-out scores."""
        frame: pd.DataFrame = self.table[:, self.genes].var.copy()  # type: ignore[assignment]
        return frame


@dataclass(frozen=True)
class Elements:
    """Shapes or labels that expression is summed over.

    Attributes
    ----------
    ids
        (elements,) index values of the shapes, or label values.
    centres
        (elements, 2) x and y in intrinsic coordinates.
    areas
        (elements,) in the square of those.
    """

    ids: NDArray[Any]
    centres: NDArray[np.float64]
    areas: NDArray[np.float64]


@dataclass(frozen=True)
class Aggregate:
    """Expression per element.

    Attributes
    ----------
    mean, sd
        (elements, genes) expected counts in the covered part of each element, and at most how uncertain they are.
    covered
        (elements,) share of the area that has values.
    """

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    covered: NDArray[np.float64]


def find_expression(sdata: SpatialData, key: str) -> Expression:
    """Find a result of `tl.predict` or `tl.denoise` by its key.

    Raises
    ------
    KeyError
        If there is none of that key, or its raster is gone.
    ValueError
        If the prediction is lazy, or the table lost its standard deviations or shares no gene with the raster.
    """
    records = sdata.attrs.get(RECORDS, {})
    known = sorted(name for name in sdata.tables if records.get(name, {}).get("verb") in WRITERS)
    if key not in known:
        raise KeyError(
            f"No table {key!r} written by pixel2gene.tl.predict or pixel2gene.tl.denoise; they wrote {known}."
        )
    if get_table(sdata, key).X is None:
        raise ValueError(
            f"{key!r} was predicted with lazy=True, so that its table has no values: predict the genes to aggregate "
            "with genes= or min_score=, and another key_added."
        )
    found = Expression(
        key, records[key], get_table(sdata, key), raster_levels(get_element(sdata, f"{key}_map", "images"))[0]
    )
    if "sd" not in found.table.layers:
        raise ValueError(f"Table {key!r} lost its layer 'sd'; run pixel2gene.tl.{found.record['verb']} again.")
    if not found.genes:
        raise ValueError(
            f"Table {key!r} and image {found.map_key!r} share no gene (genes of the table: "
            f"{found.table.var_names[:5].tolist()}); keep the names that pixel2gene gave them."
        )
    return found


def find_elements(sdata: SpatialData, key: str) -> Elements:
    """Find shapes or labels, and where they are.

    Raises
    ------
    KeyError
        If there are none of that key.
    ValueError
        If there is nothing in them.
    """
    element = get_element(sdata, key, "shapes", "labels")
    found = _labels(raster_levels(element)[0].data) if key in sdata.labels else _shapes(element)
    if len(found.ids) == 0:
        raise ValueError(f"{key!r} is empty; shapes, or labels other than 0, are expected.")
    return found


def aggregate(
    sdata: SpatialData, expression: Expression, elements_key: str, elements: Elements, progress: bool
) -> Aggregate:
    """Sum the expression of superpixels over elements, each by the share of it that the element covers.

    The raster is read once, a few genes at a time, so that memory holds little more than the result.
    """
    # Seen from the raster, which is where it is, also on a slide that was cropped since.
    grid = Grid((expression.raster.sizes["y"], expression.raster.sizes["x"]), 1.0, {})
    to_grid = affine(sdata, elements_key, expression.map_key)
    shares = overlap(get_element(sdata, elements_key, "shapes", "labels"), elements.ids, to_grid, grid.shape)
    units = table_overlap(sdata, expression.key, expression.map_key, grid)
    has_units = np.asarray(units.sum(axis=0)).ravel() > 0
    lazy = expression.raster.data
    known = np.flatnonzero(has_units & np.isfinite(np.asarray(lazy[0].compute())).ravel())
    # Not in single precision, in which sums over a million superpixels are off by a per cent.
    weights = csr_array(shares[:, known]).astype(np.float64)
    spread = csr_array(weights @ _evenly(csr_array(units[:, known])))

    size = (len(elements.ids), len(expression.genes))
    mean, sd = np.empty(size, np.float32), np.empty(size, np.float32)
    column = pd.Series(np.arange(size[1]), index=expression.genes)
    position = expression.table.var_names.get_indexer(pd.Index(expression.genes))
    names = np.asarray(expression.raster.coords["c"].values)
    for some in tqdm(_blocks(lazy), desc="aggregate", disable=not progress, leave=False):
        wanted = np.isin(names[some], column.index)
        if not wanted.any():
            continue
        values = np.asarray(lazy[some].compute()).reshape(len(wanted), -1)[wanted][:, known]
        to = column[names[some][wanted]].to_numpy()
        mean[:, to] = weights @ values.T.astype(np.float64)
        sd[:, to] = spread @ _dense(expression.table.layers["sd"][:, position[to]])
    area = elements.areas * abs(np.linalg.det(to_grid[:2, :2]))
    with np.errstate(invalid="ignore", divide="ignore"):
        covered = np.asarray(weights.sum(axis=1)) / area
    # Circles are polygons of nearly, and labels sums of exactly, their area.
    return Aggregate(mean, sd, np.nan_to_num(np.minimum(covered, 1)))


def _evenly(units: csr_array) -> csr_array:
    """(superpixels, units) weights that spread each unit's value over its area; where units overlap, their mean."""
    area = np.asarray(units.sum(axis=1))
    share = np.asarray(units.sum(axis=0))
    per_area = diags_array(1 / np.where(area > 0, area, 1))
    return csr_array(diags_array(1 / share) @ units.T @ per_area)


def _blocks(raster: da.Array) -> list[slice]:
    ends = np.cumsum(raster.chunks[0])
    return [slice(int(end - size), int(end)) for end, size in zip(ends, raster.chunks[0], strict=True)]


def _dense(values: Any) -> NDArray[np.float64]:
    array: NDArray[np.float64] = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
    return array


def _shapes(shapes: gpd.GeoDataFrame) -> Elements:
    geometries = shapes.geometry.to_numpy()
    middle = shapely.centroid(geometries)
    circles = "radius" in shapes and set(shapes.geom_type) == {"Point"}
    areas = np.pi * radii(shapes) ** 2 if circles else shapely.area(geometries)
    return Elements(shapes.index.to_numpy(), np.column_stack([shapely.get_x(middle), shapely.get_y(middle)]), areas)


def _labels(labels: da.Array) -> Elements:
    """Sums over the pixels of each label, chunk by chunk."""
    parts = []
    y = 0
    for i, rows in enumerate(labels.chunks[0]):
        x = 0
        for j, columns in enumerate(labels.chunks[1]):
            values, inverse = np.unique(np.asarray(labels.blocks[i, j].compute()), return_inverse=True)
            row, column = (index.ravel() + 0.5 for index in np.indices((rows, columns)))
            sums = [np.bincount(inverse.ravel(), weights) for weights in (column + x, row + y)]
            parts.append(pd.DataFrame({"n": np.bincount(inverse.ravel()), "x": sums[0], "y": sums[1]}, index=values))
            x += columns
        y += rows
    total = pd.concat(parts).groupby(level=0).sum().drop(index=0, errors="ignore")
    pixels = total["n"].to_numpy(np.float64)
    return Elements(total.index.to_numpy(), total[["x", "y"]].to_numpy() / pixels[:, None], pixels)
