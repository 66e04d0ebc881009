"""Any mask of the user's, or our own, on the superpixel grid."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.overlap import label_overlap, polygon_overlap


def read_mask(sdata: SpatialData, mask_key: str, image_key: str, grid: Grid) -> NDArray[np.bool_]:
    """Superpixels of which at least half is covered by labels (other than 0) or shapes.

    Raises
    ------
    KeyError
        If there are no such labels or shapes.
    ValueError
        If they cover none of the image.
    """
    element = get_element(sdata, mask_key, "labels", "shapes")
    matrix = grid.from_pixels @ affine(sdata, mask_key, image_key)
    if mask_key in sdata.labels:
        labels = raster_levels(element)[0]
        if labels.shape == grid.shape and np.allclose(matrix, np.eye(3)):
            mask = labels.values > 0
        else:
            inside = (labels.data != 0).astype(np.uint8)
            mask = _covered(label_overlap(inside, np.array([1]), matrix, grid.shape), grid)
    else:
        outlines = element.buffer(element["radius"]) if "radius" in element else element.geometry
        # One outline, so that where shapes overlap nothing counts twice.
        union = np.array([shapely.union_all(outlines.to_numpy())], dtype=object)
        mask = _covered(polygon_overlap(union, matrix, grid.shape), grid)
    if not mask.any():
        raise ValueError(f"The mask {mask_key!r} covers no superpixel of image {image_key!r}; check its alignment.")
    return mask


def _covered(shares: object, grid: Grid) -> NDArray[np.bool_]:
    covered: NDArray[np.bool_] = np.asarray(shares.sum(axis=0)).reshape(grid.shape) >= 0.5  # type: ignore[attr-defined]
    return covered
