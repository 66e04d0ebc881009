"""Sparse area overlap between measured units (spots, bins, cells, transcripts) and the superpixel grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import dask.array as da
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from pixel2gene.spatial.geometry import raster_levels
from pixel2gene.spatial.spots import radii

type Overlap = sparse.csr_array[np.float32, tuple[int, int]]
type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]

_DUST = 1e-6  # of a superpixel: what rounding leaves along shared edges
_SIDES = 64  # of the polygon that stands for a circle
_SAMPLES = 8  # per superpixel side, at least, for labels
_CHUNK = 1 << 18  # cells of the units' bounding boxes at a time; larger falls out of the processor's cache
_BAND = 1 << 21  # label samples at a time


def overlap(element: Any, ids: ArrayLike, matrix: Floats, shape: tuple[int, int]) -> Overlap:
    """Overlap of the units of an element with the superpixels of a grid.

    Parameters
    ----------
    element
        Shapes (polygons, or points with a ``radius``), labels (of a multiscale one, the full resolution) or points.
    ids
        Index values of the shapes or points, or label values (n,): the order of the rows.
    matrix
        Affine (3, 3) from the element's intrinsic (x, y) to grid coordinates, in which superpixel (row i, column j)
        covers [j, j + 1) × [i, i + 1).
    shape
        Rows and columns (h, w) of the grid.

    Returns
    -------
    Matrix (n, h * w): overlapping area as a share of one superpixel; column = row * w + column of the superpixel.
    A point counts 1. What lies outside the grid is lost; label values that do not occur have empty rows.

    Raises
    ------
    KeyError
        If ids are missing from the index of the element.
    ValueError
        If the index, or the ids of labels, have duplicates, or for an element of another kind.
    """
    if isinstance(element, xr.DataArray | xr.DataTree):
        return label_overlap(raster_levels(element)[0].data, np.asarray(ids), matrix, shape)
    if isinstance(element, dd.DataFrame):
        points = element[["x", "y"]].compute()
        return point_overlap(points.to_numpy(float)[positions_of(points.index, ids)], matrix, shape)
    if not isinstance(element, gpd.GeoDataFrame):
        raise ValueError(f"Shapes, labels or points expected, but got a {type(element).__name__}.")
    positions = positions_of(element.index, ids)
    shapes = element.iloc[positions]
    geometries = shapes.geometry.to_numpy()
    kinds = set(shapes.geom_type)
    if kinds <= {"Polygon", "MultiPolygon"}:
        return polygon_overlap(geometries, matrix, shape)
    if kinds == {"Point"} and "radius" in shapes:
        return circle_overlap(shapely.get_coordinates(geometries), radii(element)[positions], matrix, shape)
    raise ValueError(f"Polygons, or points with a column 'radius', expected, but the shapes are {sorted(kinds)}.")


def polygon_overlap(geometries: NDArray[np.object_], matrix: Floats, shape: tuple[int, int]) -> Overlap:
    """Exact overlap of polygons, of any form and with holes, with the superpixels of a grid.

    Parameters
    ----------
    geometries
        Valid Polygons or MultiPolygons (n,); other geometries have no area, hence empty rows.
    matrix
        Affine (3, 3) from their (x, y) to grid coordinates.
    shape
        Rows and columns (h, w) of the grid.

    Returns
    -------
    Matrix (n, h * w): overlapping area as a share of one superpixel.
    """
    bounds = shapely.bounds(geometries)

    def edges(chunk: slice) -> _Edges:
        # Holes subtract because they run against their exterior.
        rings, unit = _rings(shapely.orient_polygons(geometries[chunk]))
        vertices, ring = shapely.get_coordinates(rings, return_index=True)
        x, y = _transform(matrix, *vertices.T)
        start = np.flatnonzero(ring[1:] == ring[:-1])
        return _Edges(x[start], y[start], x[start + 1], y[start + 1], unit[ring[start]])

    sides = np.nan_to_num(bounds[:, 2:] - bounds[:, :2])
    return _stack(edges, sides, shapely.get_num_coordinates(geometries), matrix, shape)


def circle_overlap(centres: Floats, radii: Floats, matrix: Floats, shape: tuple[int, int]) -> Overlap:
    """Overlap of circles with the superpixels of a grid, each circle as a polygon of 64 sides and of the same area.

    Parameters
    ----------
    centres
        (n, 2) as x, y.
    radii
        (n,) in the same unit.
    matrix
        Affine (3, 3) from the centres' (x, y) to grid coordinates; it may turn circles into ellipses.
    shape
        Rows and columns (h, w) of the grid.

    Returns
    -------
    Matrix (n, h * w): overlapping area as a share of one superpixel.
    """
    angle = np.linspace(0, 2 * np.pi, _SIDES, endpoint=False)
    reach = np.sqrt(2 * np.pi / (_SIDES * np.sin(2 * np.pi / _SIDES)))
    polygon = reach * np.column_stack([np.cos(angle), np.sin(angle)])

    def edges(chunk: slice) -> _Edges:
        vertices = centres[chunk, None] + radii[chunk, None, None] * polygon
        x, y = _transform(matrix, vertices[..., 0], vertices[..., 1])
        unit = np.repeat(np.arange(len(vertices)), _SIDES)
        return _Edges(x.ravel(), y.ravel(), np.roll(x, -1, 1).ravel(), np.roll(y, -1, 1).ravel(), unit)

    sides = 2 * reach * np.column_stack([radii, radii])
    return _stack(edges, sides, np.full(len(radii), _SIDES), matrix, shape)


def label_overlap(labels: da.Array, ids: NDArray[Any], matrix: Floats, shape: tuple[int, int]) -> Overlap:
    """Overlap of label masks with the superpixels of a grid, read chunk by chunk.

    Every label pixel is sampled at k × k points, at most 1/8 superpixel apart, so that its area inside the grid is
    conserved; once where label pixels are superpixels.

    Parameters
    ----------
    labels
        (y, x), integer.
    ids
        Label values (n,): the order of the rows. Values that do not occur have empty rows.
    matrix
        Affine (3, 3) from label pixels (x, y) to grid coordinates.
    shape
        Rows and columns (h, w) of the grid.

    Returns
    -------
    Matrix (n, h * w): overlapping area as a share of one superpixel.

    Raises
    ------
    ValueError
        If the ids have duplicates.
    """
    apart = np.linalg.norm(matrix[:2, :2], axis=0).max()
    pixels_are_superpixels = np.allclose(matrix, np.rint(matrix)) and np.isclose(apart, 1)
    k = 1 if pixels_are_superpixels else max(1, int(np.ceil(_SAMPLES * apart - 1e-9)))
    weight = abs(np.linalg.det(matrix[:2, :2])) / k**2
    known, order = np.unique(ids, return_index=True)
    if len(known) < len(ids):
        raise ValueError(f"The ids have {len(ids) - len(known)} duplicates; each label value may occur once.")
    size = (len(ids), shape[0] * shape[1])
    parts: list[sparse.coo_array[Any, tuple[int, int]]] = [sparse.coo_array(size)]
    for (y, rows), (x, columns) in product(*(_spans(sizes) for sizes in labels.chunks)):
        block = labels[y : y + rows, x : x + columns].compute()
        step = max(1, _BAND // (columns * k**2))
        for top in range(0, rows, step):
            value, cell, samples = _runs(block[top : top + step], (y + top, x), k, matrix, shape)
            place = np.searchsorted(known, value)
            hit = np.searchsorted(known, value, side="right") > place
            entries = (weight * samples[hit], (order[place[hit]], cell[hit]))
            parts.append(sparse.coo_array(entries, shape=size).tocsr().tocoo())
    data, unit, cell = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "row", "col"))
    return sparse.coo_array((data, (unit, cell)), shape=size).tocsr().astype(np.float32)


def point_overlap(xy: Floats, matrix: Floats, shape: tuple[int, int]) -> Overlap:
    """Superpixel that each point falls in.

    Parameters
    ----------
    xy
        (n, 2).
    matrix
        Affine (3, 3) from (x, y) to grid coordinates.
    shape
        Rows and columns (h, w) of the grid.

    Returns
    -------
    Matrix (n, h * w) with at most one entry, 1, in each row.
    """
    cell = _cells(*_transform(matrix, *xy.T), shape)
    inside = cell >= 0
    ends = np.concatenate([[0], np.cumsum(inside)])
    data = np.ones(ends[-1], dtype=np.float32)
    return sparse.csr_array((data, cell[inside], ends), shape=(len(xy), shape[0] * shape[1]))


class _Edges(NamedTuple):
    """Directed edges in grid coordinates, all of the same length, sorted by unit."""

    x0: Floats
    y0: Floats
    x1: Floats
    y1: Floats
    unit: Ints


def positions_of(index: pd.Index[Any], ids: ArrayLike) -> NDArray[np.intp]:
    """(n,) positions of ids in an index; a ValueError or KeyError says what stands in the way."""
    if not index.is_unique:
        raise ValueError(
            f"The index of the element has {index.duplicated().sum()} duplicates, so ids do not name one unit each; "
            "make it unique with reset_index(drop=True)."
        )
    positions = index.get_indexer(pd.Index(np.asarray(ids)))
    missing = int((positions < 0).sum())
    if missing:
        first = np.asarray(ids)[positions < 0][:3].tolist()
        raise KeyError(
            f"{missing} of {len(positions)} ids are not in the index of the element that the table annotates, "
            f"such as {first}: subset both together, as spatialdata.match_table_to_element does."
        )
    return positions


def _transform(matrix: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    (a, b, c), (d, e, f) = matrix[:2]
    return a * x + b * y + c, d * x + e * y + f


def _cells(x: Floats, y: Floats, shape: tuple[int, int]) -> Ints:
    """Superpixel at each position, -1 outside the grid."""
    height, width = shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, np.floor(y) * width + np.floor(x), -1).astype(np.int64)


def _rings(geometries: NDArray[np.object_]) -> tuple[NDArray[np.object_], Ints]:
    """Rings, and the geometry that each belongs to."""
    parts, unit = shapely.get_parts(geometries, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, unit[part]


def _spans(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Start and size of each chunk along an axis."""
    return [(int(end - size), size) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]


def _runs(
    block: NDArray[Any], origin: tuple[int, int], k: int, matrix: Floats, shape: tuple[int, int]
) -> tuple[NDArray[Any], Ints, Ints]:
    """Label value, superpixel and number of samples of each run of like samples along the rows of a block."""
    runs = []
    value = block.ravel()
    steps = (np.arange(k) + 0.5) / k
    for dy in steps:
        for dx in steps:
            y = np.arange(block.shape[0])[:, None] + (origin[0] + dy)
            x = np.arange(block.shape[1])[None, :] + (origin[1] + dx)
            cell = _cells(*_transform(matrix, x, y), shape).ravel()
            change = (value[1:] != value[:-1]) | (cell[1:] != cell[:-1])
            start = np.concatenate([[0], np.flatnonzero(change) + 1])
            length = np.diff(start, append=value.size)
            inside = cell[start] >= 0
            runs.append((value[start][inside], cell[start][inside], length[inside]))
    values, cells, lengths = (np.concatenate(column) for column in zip(*runs, strict=True))
    return values, cells, lengths


def _stack(
    edges: Callable[[slice], _Edges], sides: Floats, vertices: NDArray[Any], matrix: Floats, shape: tuple[int, int]
) -> Overlap:
    """Coverage of all units, in chunks of bounded memory.

    Parameters
    ----------
    edges
        Gives the edges of a slice of the units.
    sides
        Width and height (n, 2) of the units, before the affine.
    vertices
        Number of vertices (n,) of the units.
    matrix
        Affine (3, 3) to grid coordinates.
    shape
        Rows and columns (h, w) of the grid.
    """
    in_grid = np.minimum(sides @ np.abs(matrix[:2, :2]).T, shape[::-1]) + 2
    chunk = np.cumsum(in_grid.prod(axis=1) + vertices) // _CHUNK
    bounds = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(sides)]
    parts = [_coverage(edges(slice(i, j)), j - i, shape) for i, j in pairwise(bounds)]
    return sparse.vstack(parts, format="csr")


def _coverage(edges: _Edges, n: int, shape: tuple[int, int]) -> Overlap:
    """Area of every superpixel that each closed outline covers, by accumulated signed areas (Green's theorem).

    Within its row, an edge adds its height to all that lies to its right. So a piece of edge inside one superpixel
    gives that superpixel the area to the piece's right and the next one the rest of the piece's height, and the
    running sum along the row is the coverage.
    """
    height, width = shape
    first = np.flatnonzero(np.diff(edges.unit, prepend=-1))
    left, right = _extent(edges.x0, edges.unit, first, n, width)
    top, bottom = _extent(edges.y0, edges.unit, first, n, height)
    # Each row of a bounding box ends with one more cell, where the running sum is back at zero.
    stride = right - left + 1
    size = np.where(right > left, (bottom - top) * stride, 0)
    end = np.cumsum(size)
    offset = end - size

    used = (size[edges.unit] > 0) & (edges.y0 != edges.y1)
    x0, y0, x1, y1, unit = (column[used] for column in edges)
    y0, x0, y1, x1, parent = _split(y0, x0, y1, x1, height)
    unit = unit[parent]
    row = np.floor((y0 + y1) / 2).astype(np.int64)
    used = (row >= top[unit]) & (row < bottom[unit])
    x0, y0, x1, y1, unit, row = (column[used] for column in (x0, y0, x1, y1, unit, row))
    x0, y0, x1, y1, parent = _split(x0, y0, x1, y1, width)
    unit, row = unit[parent], row[parent]

    # Left of the grid an edge covers all of its row, right of it none.
    x = np.clip((x0 + x1) / 2, left[unit], right[unit])
    column = np.floor(x).astype(np.int64)
    rise = y1 - y0
    beyond = rise * (x - column)
    cell = offset[unit] + (row - top[unit]) * stride[unit] + column - left[unit]
    total = int(end[-1]) if n else 0
    steps = np.bincount(cell, rise - beyond, total + 1) + np.bincount(cell + 1, beyond, total + 1)
    share = np.minimum(np.abs(np.cumsum(steps)), 1)

    covered = np.flatnonzero(share[:total] > _DUST)
    unit = np.repeat(np.arange(n), size)[covered]
    row, column = np.divmod(covered - offset[unit], stride[unit])
    superpixel = (row + top[unit]) * width + column + left[unit]
    ends = np.searchsorted(covered, np.concatenate([[0], end]))
    return sparse.csr_array((share[covered].astype(np.float32), superpixel, ends), shape=(n, height * width))


def _extent(values: Floats, unit: Ints, first: NDArray[np.intp], n: int, limit: int) -> tuple[Ints, Ints]:
    """First and one past the last row (or column) that each unit touches, within the grid."""
    low, high = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    if len(first):
        low[unit[first]] = np.clip(np.floor(np.minimum.reduceat(values, first)), 0, limit)
        high[unit[first]] = np.clip(np.ceil(np.maximum.reduceat(values, first)), 0, limit)
    return low, high


def _split(a0: Floats, b0: Floats, a1: Floats, b1: Floats, limit: int) -> tuple[Floats, Floats, Floats, Floats, Ints]:
    """Cut edges where their first coordinate is an integer from 0 to limit; the last item names each piece's edge."""
    low = np.maximum(np.floor(np.minimum(a0, a1)) + 1, 0)
    high = np.minimum(np.ceil(np.maximum(a0, a1)) - 1, limit)
    pieces = np.maximum(high - low + 2, 1).astype(np.int64)
    end = np.cumsum(pieces)
    start = end - pieces
    parent = np.repeat(np.arange(len(a0)), pieces)
    rank = np.arange(len(parent)) - start[parent]
    cut = np.flatnonzero(rank)
    edge = parent[cut]

    a_from, b_from = a0[parent], b0[parent]
    a_from[cut] = np.where(a1 > a0, low - 1, high + 1)[edge] + np.where(a1 > a0, 1, -1)[edge] * rank[cut]
    b_from[cut] += (a_from[cut] - a0[edge]) / (a1[edge] - a0[edge]) * (b1 - b0)[edge]
    a_to, b_to = np.roll(a_from, -1), np.roll(b_from, -1)
    a_to[end - 1], b_to[end - 1] = a1, b1
    return a_from, b_from, a_to, b_to, parent
