"""From expression per superpixel to expression per shape or label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from scipy.sparse import csc_array, csr_array, diags_array
from spatialdata import SpatialData
from tqdm.auto import tqdm

from pixel2gene.core.arguments import require_genes
from pixel2gene.spatial.elements import RASTER_CHUNKS, RECORDS, get_table
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.latent import Latents, open_latents
from pixel2gene.spatial.memory import require_memory
from pixel2gene.spatial.overlap import overlap
from pixel2gene.spatial.spots import radii
from pixel2gene.spatial.units import table_overlap

WRITERS = ("predict", "denoise")
# Mean and standard deviation in single precision.
VALUE_BYTES = 8
# Rows and columns of the result; what some superpixels add to its expected counts, and to how far they may be off.
Part = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Expression:
    """What `tl.predict` or `tl.denoise` wrote.

    Attributes
    ----------
    key
        Of the table.
    record
        Of the verb.
    table
        Units x genes, with ``layers["sd"]`` unless the prediction is lazy.
    map_key
        Of the raster.
    raster
        (genes, rows, columns), NaN where there are no values; the latents of a lazy prediction.
    latents
        A lazy prediction.
    genes
        To sum, in the order of the table.
    """

    key: str
    record: dict[str, Any]
    table: ad.AnnData
    map_key: str
    raster: xr.DataArray
    latents: Latents | None
    genes: list[str]

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


def find_expression(sdata: SpatialData, key: str, genes: Sequence[str] | None) -> Expression:
    """Find a result of `tl.predict` or `tl.denoise` by its key.

    Raises
    ------
    KeyError
        If there is none of that key, its raster is gone, or it lacks one of the genes.
    ValueError
        If the table lost its standard deviations or shares no gene with the raster.
    """
    records = sdata.attrs.get(RECORDS, {})
    known = sorted(name for name in sdata.tables if records.get(name, {}).get("verb") in WRITERS)
    if key not in known:
        raise KeyError(
            f"No table {key!r} written by pixel2gene.tl.predict or pixel2gene.tl.denoise; they wrote {known}: name one "
            "of those, or run one first."
        )
    table, record = get_table(sdata, key), records[key]
    if table.X is None:
        latents = open_latents(sdata, key)
        chosen = _chosen(key, list(table.var_names), genes)
        return Expression(key, record, table, f"{key}_latent", latents.raster, latents, chosen)
    map_key = f"{key}_map"
    raster = raster_levels(get_element(sdata, map_key, "images"))[0]
    if "sd" not in table.layers:
        raise ValueError(f"Table {key!r} lost its layer 'sd'; run pixel2gene.tl.{record['verb']} again.")
    mapped = set(raster.coords["c"].values)
    shared = [gene for gene in table.var_names if gene in mapped]
    if not shared:
        raise ValueError(
            f"Table {key!r} and image {map_key!r} share no gene (genes of the table: "
            f"{table.var_names[:5].tolist()}); keep the names that pixel2gene gave them."
        )
    return Expression(key, record, table, map_key, raster, None, _chosen(key, shared, genes))


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

    The raster is read a few genes at a time, or, of a lazy prediction, a part of the slide at a time, so that memory
    holds little more than the result.

    Raises
    ------
    MemoryError
        If the result does not fit.
    """
    require_memory(len(elements.ids), len(expression.genes), VALUE_BYTES, "name fewer genes")
    # Seen from the raster, which is where it is, also on a slide that was cropped since.
    grid = Grid((expression.raster.sizes["y"], expression.raster.sizes["x"]), 1.0, {})
    to_grid = affine(sdata, elements_key, expression.map_key)
    shares = overlap(get_element(sdata, elements_key, "shapes", "labels"), elements.ids, to_grid, grid.shape)
    units = table_overlap(sdata, expression.key, expression.map_key, grid)
    has_units = np.asarray(units.sum(axis=0)).ravel() > 0
    known = np.flatnonzero(has_units & np.isfinite(np.asarray(expression.raster.data[0].compute())).ravel())
    # Not in single precision, in which sums over a million superpixels are off by a per cent.
    weights = csr_array(shares[:, known]).astype(np.float64)

    size = (len(elements.ids), len(expression.genes))
    mean, sd = np.zeros(size, np.float32), np.zeros(size, np.float32)
    total = -(-len(expression.genes) // RASTER_CHUNKS[0])
    if expression.latents is not None:
        parts = _lazy_parts(expression, expression.latents, known, weights)
        total *= expression.raster.data.numblocks[1] * expression.raster.data.numblocks[2]
    else:
        spread = csr_array(weights @ _evenly(csr_array(units[:, known])))
        parts = _kept_parts(expression, known, weights, spread)
    for rows, to, counts, off in tqdm(parts, total=total, desc="aggregate", disable=not progress, leave=False):
        mean[np.ix_(rows, to)] += counts
        sd[np.ix_(rows, to)] += off
    area = elements.areas * abs(np.linalg.det(to_grid[:2, :2]))
    with np.errstate(invalid="ignore", divide="ignore"):
        covered = np.asarray(weights.sum(axis=1)) / area
    # Circles are polygons of nearly, and labels sums of exactly, their area.
    return Aggregate(mean, sd, np.nan_to_num(np.minimum(covered, 1)))


def _kept_parts(
    expression: Expression, known: NDArray[np.intp], weights: csr_array, spread: csr_array
) -> Iterator[Part]:
    everything = np.arange(weights.shape[0])
    column = pd.Series(np.arange(len(expression.genes)), index=expression.genes)
    position = expression.table.var_names.get_indexer(pd.Index(expression.genes))
    names = np.asarray(expression.raster.coords["c"].values)
    kept = expression.raster.data
    for some in _blocks(kept):
        wanted = np.isin(names[some], column.index)
        if wanted.any():
            values = np.asarray(kept[some].compute()).reshape(len(wanted), -1)[wanted][:, known]
            to = column[names[some][wanted]].to_numpy()
            off = spread @ _dense(expression.table.layers["sd"][:, position[to]])
            yield everything, to, weights @ values.T.astype(np.float64), off


def _lazy_parts(
    expression: Expression, latents: Latents, known: NDArray[np.intp], weights: csr_array
) -> Iterator[Part]:
    raster = latents.raster.data
    position = expression.table.var_names.get_indexer(pd.Index(expression.genes))
    everything = np.arange(len(position))
    columns = np.full(raster.shape[1:], -1)
    columns.flat[known] = np.arange(len(known))
    by_superpixel = csc_array(weights)
    for row, i in _starts(raster.chunks[1]):
        for column, j in _starts(raster.chunks[2]):
            block = raster.blocks[:, i, j]
            there = columns[row : row + block.shape[1], column : column + block.shape[2]]
            part = csr_array(by_superpixel[:, there[there >= 0]])
            rows = np.flatnonzero(np.diff(part.indptr))
            if len(rows) == 0:
                continue
            part, some = part[rows], np.asarray(block.compute())[:, there >= 0]
            for to in np.split(everything, everything[RASTER_CHUNKS[0] :: RASTER_CHUNKS[0]]):
                mean, sd = latents.mean_and_sd(some, position[to])
                yield rows, to, part @ mean.astype(np.float64), part @ sd.astype(np.float64)


def _starts(chunks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where each chunk begins, and its number."""
    return ((end - size, i) for i, (end, size) in enumerate(zip(np.cumsum(chunks).tolist(), chunks, strict=True)))


def _chosen(key: str, there: list[str], genes: Sequence[str] | None) -> list[str]:
    if genes is None:
        return there
    require_genes(genes)
    unknown = sorted(set(genes) - set(there))
    if unknown:
        raise KeyError(f"{key!r} lacks {unknown[:5]}; it has {len(there)} genes, such as {there[:5]}.")
    return [gene for gene in there if gene in set(genes)]


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
