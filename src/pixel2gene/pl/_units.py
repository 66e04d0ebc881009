"""Units that tables annotate (bins, spots, cells, superpixels) as rasters of the size of a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from spatialdata import SpatialData

from pixel2gene.pl._raster import LONGEST, Matrix, Window, cut, scaled
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.overlap import overlap, positions_of
from pixel2gene.spatial.spots import radii
from pixel2gene.spatial.units import annotated, unit_element

# Of more units, or pixels of labels, middle and area tell as much as outlines, at the size of a figure.
MANY, MANY_PIXELS = 30_000, 4_000_000
_SIDES = 32  # of the polygon that stands for a circle
_MARGIN = 16  # superpixels: no unit but a region of interest is larger
_DIAGONAL = np.sqrt(np.pi / 2)  # of a square, by the radius of a circle of its area

type _Ids = NDArray[Any]
# From (units,) counts to (rows, columns) sums.
type _Spread = Callable[[NDArray[np.floating]], NDArray[np.float64]]


def unit_rasters(
    sdata: SpatialData, table_key: str, image_key: str, window: Window
) -> list[tuple[NDArray[np.intp], Matrix]]:
    """Row of a table at each pixel of a window, -1 where there is no unit.

    Returns
    -------
    For each annotated element the (rows, columns) raster and the matrix from its pixels to those of the image.
    """
    rasters = []
    for region, rows, ids in annotated(sdata.tables[table_key], table_key):
        find = label_positions if region in sdata.labels else _shape_positions
        found, matrix = find(sdata, region, ids, image_key, window)
        rasters.append((np.where(found >= 0, rows[found], -1), matrix))
    return rasters


def label_positions(
    sdata: SpatialData, key: str, ids: _Ids, image_key: str, window: Window, longest: int = LONGEST
) -> tuple[NDArray[np.intp], Matrix]:
    """Position among label values at each pixel of a window, -1 where there is none of them."""
    return _positions_at(get_element(sdata, key, "labels"), ids, affine(sdata, key, image_key), window, longest)


def _positions_at(
    labels: Any, ids: _Ids, matrix: Matrix, window: Window, longest: int
) -> tuple[NDArray[np.intp], Matrix]:
    part, matrix = cut(labels, matrix, window, longest)
    values = part.to_numpy()
    order = np.argsort(ids, kind="stable")
    found = order[np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)]
    return np.where((ids[found] == values) & (values != 0), found, -1), matrix


class Densities:
    """Lays units of a table over the superpixels of a window once, for the counts of any gene.

    Attributes
    ----------
    matrix
        From superpixels of the window to pixels of the image.
    """

    def __init__(self, sdata: SpatialData, table_key: str, image_key: str, grid: Grid, window: Window) -> None:
        left, right, bottom, top = (edge / grid.factor for edge in window)
        row, column = int(top + 1e-6), int(left + 1e-6)
        # The margin holds what reaches beyond the window, so that every unit has its whole area.
        self._shape = (
            int(np.ceil(bottom - 1e-6)) - row + 2 * _MARGIN,
            int(np.ceil(right - 1e-6)) - column + 2 * _MARGIN,
        )
        self.matrix = scaled(grid.factor) @ scaled(1.0, column, row)
        self._spread: list[tuple[NDArray[np.intp], _Spread]] = []
        self._covered = np.zeros(self._shape)
        for region, positions, ids in annotated(sdata.tables[table_key], table_key):
            element = unit_element(sdata, region)
            matrix = scaled(1.0, _MARGIN - column, _MARGIN - row) @ grid.from_pixels @ affine(sdata, region, image_key)
            of_region = _of_labels if region in sdata.labels else _of_shapes
            spread, covered = of_region(element, ids, matrix, self._shape)
            self._spread.append((positions, spread))
            self._covered += covered

    def of(self, counts: NDArray[np.floating]) -> NDArray[np.float32]:
        """(rows, columns) counts per superpixel of (units,) counts, NaN where nothing was measured."""
        total = sum(spread(counts[positions]) for positions, spread in self._spread)
        missing = np.full(self._shape, np.nan)
        mean = np.divide(total, self._covered, out=missing, where=self._covered > 0)
        return mean[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].astype(np.float32)


def _of_shapes(
    shapes: gpd.GeoDataFrame, ids: _Ids, matrix: Matrix, shape: tuple[int, int]
) -> tuple[_Spread, NDArray[np.float64]]:
    """From counts to their sum in each superpixel, weighted by the area that units have in it; and that area."""
    x, y, area = _middles(shapes, positions_of(shapes.index, ids), matrix)
    near = np.flatnonzero(_inside(x, y, shape))
    if len(near) <= MANY:
        return _weighted(shapes, ids, near, matrix, shape)
    cell, nearest = _nearest(x[near], y[near], area[near], shape)
    size = shape[0] * shape[1]
    areas = np.bincount(cell, area[near], size)

    def spread(counts: NDArray[np.floating]) -> NDArray[np.float64]:
        sums = np.bincount(cell, counts[near], size)
        mean = np.divide(sums, areas, out=np.zeros(size), where=areas > 0)
        return np.where(nearest >= 0, mean[nearest], 0.0)

    return spread, (nearest >= 0).astype(np.float64)


def _of_labels(labels: Any, ids: _Ids, matrix: Matrix, shape: tuple[int, int]) -> tuple[_Spread, NDArray[np.float64]]:
    if raster_levels(labels)[0].size <= MANY_PIXELS:
        return _weighted(labels, ids, np.arange(len(ids)), matrix, shape)
    # Twice as fine as superpixels, so that each has pixels in it.
    whole = (0.0, float(shape[1]), float(shape[0]), 0.0)
    found, to_cells = _positions_at(labels, ids, matrix, whole, 2 * max(shape))
    row, column = np.nonzero(found >= 0)
    unit = found[row, column]
    pixel = abs(np.linalg.det(to_cells[:2, :2]))
    area = np.maximum(np.bincount(unit, minlength=len(ids)), 1) * pixel
    x, y, _ = to_cells @ np.stack([column + 0.5, row + 0.5, np.ones(len(row))])
    within = _inside(x, y, shape)
    unit, cell = unit[within], y[within].astype(np.intp) * shape[1] + x[within].astype(np.intp)

    def spread(counts: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.bincount(cell, (counts / area)[unit] * pixel, shape[0] * shape[1]).reshape(shape)

    return spread, np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape) * pixel


def _weighted(
    element: Any, ids: _Ids, chosen: NDArray[np.intp], matrix: Matrix, shape: tuple[int, int]
) -> tuple[_Spread, NDArray[np.float64]]:
    weights = overlap(element, ids[chosen], matrix, shape)
    area: NDArray[np.float32] = weights.sum(axis=1)

    def spread(counts: NDArray[np.floating]) -> NDArray[np.float64]:
        each = np.divide(counts[chosen], area, out=np.zeros(len(area)), where=area > 0)
        return np.asarray(weights.T @ each, np.float64).reshape(shape)

    return spread, np.asarray(weights.sum(axis=0), np.float64).reshape(shape)


def _shape_positions(
    sdata: SpatialData, key: str, ids: _Ids, image_key: str, window: Window
) -> tuple[NDArray[np.intp], Matrix]:
    """Position among shapes at each pixel of a window, -1 where there is none of them."""
    shapes = unit_element(sdata, key)
    left, right, bottom, top = window
    side = max(right - left, bottom - top) / LONGEST
    shape = int(np.ceil((bottom - top) / side)), int(np.ceil((right - left) / side))
    to_image = scaled(1.0, left, top) @ scaled(side)
    matrix = np.linalg.inv(to_image) @ affine(sdata, key, image_key)
    positions = positions_of(shapes.index, ids)
    x, y, area = _middles(shapes, positions, matrix)
    reach = np.sqrt(area)
    near = np.flatnonzero((x > -reach) & (x < shape[1] + reach) & (y > -reach) & (y < shape[0] + reach))
    if len(near) <= MANY:
        return _drawn(shapes, positions, near, matrix, shape), to_image
    near = near[_inside(x[near], y[near], shape)]
    cell, nearest = _nearest(x[near], y[near], area[near], shape)
    unit = np.full(shape[0] * shape[1], -1, np.intp)
    unit[cell] = near
    return np.where(nearest >= 0, unit[nearest], -1), to_image


def _drawn(
    shapes: gpd.GeoDataFrame,
    positions: NDArray[np.intp],
    near: NDArray[np.intp],
    matrix: Matrix,
    shape: tuple[int, int],
) -> NDArray[np.intp]:
    """Draw the outlines of those `near`, each filled with its place among the positions."""
    chosen = shapes.iloc[positions[near]]
    outlines = chosen.geometry.to_numpy()
    if "radius" in shapes:
        outlines = shapely.buffer(outlines, radii(shapes)[positions[near]], quad_segs=_SIDES // 4)
    parts, owner = shapely.get_parts(outlines, return_index=True)
    raster = Image.new("I", shape[::-1])
    draw = ImageDraw.Draw(raster)
    for part, unit in zip(parts, near[owner].tolist(), strict=True):
        for number, ring in enumerate([part.exterior, *part.interiors]):
            points = shapely.get_coordinates(ring) @ matrix[:2, :2].T + matrix[:2, 2] - 0.5
            draw.polygon(points.ravel().tolist(), fill=0 if number else unit + 1)
    return np.asarray(raster).astype(np.intp) - 1


def _middles(
    shapes: gpd.GeoDataFrame, positions: NDArray[np.intp], matrix: Matrix
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n,) x, y and area of shapes after an affine map."""
    outlines = shapes.geometry.to_numpy()[positions]
    bounds = shapely.bounds(outlines)
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2 @ matrix[:2, :2].T + matrix[:2, 2]
    area = np.pi * radii(shapes)[positions] ** 2 if "radius" in shapes else shapely.area(outlines)
    return middle[:, 0], middle[:, 1], area * abs(np.linalg.det(matrix[:2, :2]))


def _nearest(
    x: NDArray[np.float64], y: NDArray[np.float64], area: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cell of each unit, and (rows, columns) the nearest cell that has units and reaches here, -1 where none does."""
    cell = y.astype(np.intp) * shape[1] + x.astype(np.intp)
    reach = np.zeros(shape[0] * shape[1])
    reach[cell] = np.sqrt(area / np.pi) * _DIAGONAL + 0.5
    far, (row, column) = ndimage.distance_transform_edt((reach == 0).reshape(shape), return_indices=True)
    nearest = row.astype(np.intp) * shape[1] + column
    return cell, np.where(far <= reach[nearest], nearest, -1)


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    return inside
