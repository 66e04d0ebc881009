"""The superpixel grid of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import Scale, Sequence, get_transformation

from pixel2gene.core.encoders.registry import SUPERPIXEL_UM as SUPERPIXEL_UM
from pixel2gene.spatial.geometry import get_element, raster_levels


@dataclass(frozen=True)
class Grid:
    """Superpixels over the whole of an image.

    Superpixel (row i, column j) covers [j, j + 1) x [i, i + 1) in grid coordinates; its id is
    ``row * width + column + 1`` (0 is background).

    Attributes
    ----------
    shape
        Rows and columns.
    factor
        Side of a superpixel in full-resolution pixels of the image.
    transformations
        From grid coordinates to every coordinate system of the image.
    """

    shape: tuple[int, int]
    factor: float
    transformations: dict[str, Any]

    @property
    def size(self) -> int:
        """Number of superpixels."""
        return self.shape[0] * self.shape[1]

    @property
    def from_pixels(self) -> NDArray[np.float64]:
        """Matrix (3, 3) from the image's full-resolution pixels (x, y, 1) to grid coordinates."""
        scale = np.diag([1 / self.factor, 1 / self.factor, 1.0])
        return scale

    @property
    def centres(self) -> NDArray[np.float64]:
        """(superpixels, 2) x and y in grid coordinates, in the order of the ids."""
        rows, columns = np.indices(self.shape)
        return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64) + 0.5

    def ids(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(rows, columns) ids where the mask is true, 0 elsewhere."""
        return np.where(mask, np.arange(1, self.size + 1).reshape(self.shape), 0)


def grid_shape(pixels: tuple[int, ...], mpp: float) -> tuple[int, int]:
    """Rows and columns of superpixels over an image of that height and width."""
    # A hair of tolerance, so that 2048 px of 0.5 µm are 128 superpixels whatever the rounding.
    rows, columns = (math.ceil(side / (SUPERPIXEL_UM / mpp) - 1e-6) for side in pixels)
    return rows, columns


def superpixel_grid(sdata: SpatialData, image_key: str, mpp: float) -> Grid:
    """Lay the grid of 8 µm superpixels over an image of `mpp` µm per full-resolution pixel."""
    image = get_element(sdata, image_key, "images")
    full = raster_levels(image)[0]
    factor = SUPERPIXEL_UM / mpp
    shape = grid_shape((full.sizes["y"], full.sizes["x"]), mpp)
    scale = Scale([factor, factor], axes=("x", "y"))
    transformations = {
        name: Sequence([scale, transformation])
        for name, transformation in get_transformation(image, get_all=True).items()
    }
    return Grid(shape, factor, transformations)
