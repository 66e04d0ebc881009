"""Windows of an H&E image at any resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from pixel2gene.spatial.geometry import get_element, raster_levels

type Weights = sparse.csr_array[np.float32, tuple[int, int]]


@dataclass(frozen=True)
class Slide:
    """An RGB image, read in windows that are resampled to the resolution asked for.

    Parameters
    ----------
    levels
        (c, y, x) uint8, full resolution first; the first 3 channels are red, green and blue.
    factors
        Of each level, the height and width of its pixels in level-0 pixels.
    name
        By which errors call it.
    """

    levels: tuple[xr.DataArray, ...]
    factors: tuple[tuple[float, float], ...]
    name: str = "image"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at full resolution."""
        return self.levels[0].sizes["y"], self.levels[0].sizes["x"]

    def read(self, scale: float, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """Read a window of the image resampled to larger (or smaller) pixels.

        Shrinking takes the mean of the area; enlarging interpolates linearly between pixel centres. Beyond the image
        its border pixels repeat.

        Parameters
        ----------
        scale
            Side of a target pixel in level-0 pixels; target pixel i covers [i * scale, (i + 1) * scale).
        y0, y1, x0, x1
            Rows and columns of the window, in target pixels.

        Returns
        -------
        (3, y1 - y0, x1 - x0), 0 to 255: uint8 as they are, float32 if resampled.

        Raises
        ------
        ValueError
            If the pixels cannot be decoded.
        """
        level = max(i for i, factor in enumerate(self.factors) if i == 0 or max(factor) <= scale)
        image, (fy, fx) = self.levels[level], self.factors[level]
        rows, y_start, y_stop = resample_weights(y0, y1, scale / fy, image.sizes["y"])
        columns, x_start, x_stop = resample_weights(x0, x1, scale / fx, image.sizes["x"])
        window = image.isel(c=slice(3), y=slice(y_start, y_stop), x=slice(x_start, x_stop))
        # The caller is often a dask task itself, and more threads than cores would only compete.
        try:
            pixels: NDArray[np.uint8] = window.data.compute(scheduler="synchronous")
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"Image {self.name!r} cannot be read at its pixels {y_start}-{y_stop} x {x_start}-{x_stop} ({error}): "
                "its file is damaged or was cut short; copy or export it again."
            ) from error
        if scale == fy == fx:
            beyond = [(0, 0), _beyond(rows), _beyond(columns)]
            return np.pad(pixels, beyond, mode="edge") if np.any(beyond) else pixels
        resampled = np.empty((len(pixels), y1 - y0, x1 - x0), np.float32)
        for channel, source in zip(resampled, pixels, strict=True):
            channel[:] = rows @ source.astype(np.float32) @ columns.T
        return resampled


def open_image(sdata: SpatialData, image_key: str) -> Slide:
    """Check that an image is an H&E and open it for reading.

    Parameters
    ----------
    sdata
        Holds the image.
    image_key
        8-bit RGB or RGBA image, single- or multiscale; an alpha channel is dropped.

    Raises
    ------
    KeyError
        If there is no such image.
    ValueError
        If the image is not two-dimensional, not RGB or RGBA, or not of 8 bits.
    """
    levels = raster_levels(get_element(sdata, image_key, "images"))
    full = levels[0]
    if full.dims != ("c", "y", "x"):
        raise ValueError(f"Image {image_key!r} has dimensions {full.dims}; ('c', 'y', 'x') expected.")
    if full.sizes["c"] not in (3, 4):
        raise ValueError(
            f"Image {image_key!r} has {full.sizes['c']} channels; 3 (RGB) or 4 (RGBA) expected, so it is not an H&E."
        )
    if full.dtype != np.uint8:
        raise ValueError(
            f"Image {image_key!r} is {full.dtype}; uint8 expected: scale its values to 0-255 and store them with "
            "Image2DModel.parse(values.astype('uint8'), dims=('c', 'y', 'x'))."
        )
    factors = tuple((_factor(full, level, "y"), _factor(full, level, "x")) for level in levels)
    return Slide(tuple(levels), factors, image_key)


def resample_weights(start: int, stop: int, scale: float, n: int) -> tuple[Weights, int, int]:
    """Weights that resample one axis: the mean over each target pixel, or linear interpolation where scale < 1.

    Parameters
    ----------
    start, stop
        Target pixels; pixel i covers [i * scale, (i + 1) * scale).
    scale
        Size of a target pixel in source pixels.
    n
        Number of source pixels; beyond them the border pixels repeat.

    Returns
    -------
    weights
        (stop - start, last - first); every row sums to 1.
    first, last
        Source pixels [first, last) that the columns stand for.
    """
    target = np.arange(start, stop)
    if scale < 1:
        # Pixel i has its centre at i + 0.5.
        position = (target + 0.5) * scale - 0.5
        source = np.floor(position)[:, None] + np.arange(2)
        share = 1 - np.abs(position[:, None] - source)
    else:
        low, high = (target * scale)[:, None], ((target + 1) * scale)[:, None]
        source = np.floor(low) + np.arange(np.ceil(scale) + 1)
        share = np.minimum(high, source + 1) - np.maximum(low, source)
    row, tap = np.nonzero(share > 0)
    column = np.clip(source[row, tap], 0, n - 1).astype(np.int64)
    first, last = int(column.min()), int(column.max()) + 1
    size = (stop - start, last - first)
    weights = sparse.coo_array((share[row, tap], (row, column - first)), shape=size).tocsr()
    return (sparse.diags_array(1 / weights.sum(axis=1)) @ weights).astype(np.float32), first, last


def _beyond(weights: Weights) -> tuple[int, int]:
    """How many target pixels repeat the first, and how many the last source pixel, if both are of one size."""
    target, source = weights.shape
    before = int((weights.indices == 0).sum()) - 1
    return before, target - source - before


def _factor(full: xr.DataArray, level: xr.DataArray, axis: str) -> float:
    n, m = full.sizes[axis], level.sizes[axis]
    nearest = round(n / m)
    # Pyramids shrink by integers, and drop or pad the incomplete pixel at the border.
    return nearest if abs(n / nearest - m) < max(1, 0.01 * m) else n / m
