"""What plots of a slide share: the part shown, the H&E and other rasters at the size of a figure, the scale bar."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.spatial.elements import RECORDS
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.image import Slide, open_image
from pixel2gene.spatial.pixel_size import evidence

LONGEST = 1200  # pixels of the longer side: as many as a figure shows
_BAR_SHARE = 0.3
_DPI = 150
_SAMPLES = 3  # per side of a pixel of the figure, at least
_LUMA = np.array([0.299, 0.587, 0.114])

# Left, top, right and bottom of what is shown, in full-resolution pixels of the image.
type Crop = tuple[float, float, float, float]
# Left, right, bottom and top in full-resolution pixels of the image, as matplotlib orders them.
type Window = tuple[float, float, float, float]
type Matrix = NDArray[np.float64]


def known_mpp(sdata: SpatialData, image_key: str) -> float | None:
    """µm per full-resolution pixel: as tl.tissue recorded it, or as the data tell; None where they do not."""
    record = sdata.attrs.get(RECORDS, {}).get(f"{image_key}_tissue", {})
    if "mpp" in record:
        return float(record["mpp"])
    found = evidence(sdata, image_key)
    return found[0].mpp if found else None


def window_of(sdata: SpatialData, image_key: str, crop: Crop | None = None) -> Window:
    """Window of an image that a crop shows: all of it by default.

    Raises
    ------
    ValueError
        If the crop has no area on the image.
    """
    full = raster_levels(get_element(sdata, image_key, "images"))[0]
    if crop is None:
        return 0, full.sizes["x"], full.sizes["y"], 0
    left, top, right, bottom = crop
    if not (max(left, 0) < min(right, full.sizes["x"]) and max(top, 0) < min(bottom, full.sizes["y"])):
        raise ValueError(
            f"crop={crop} shows none of image {image_key!r} of {full.sizes['x']} x {full.sizes['y']} px: left, top, "
            "right and bottom in its full-resolution pixels are expected."
        )
    return max(left, 0), min(right, full.sizes["x"]), min(bottom, full.sizes["y"]), max(top, 0)


def new_axes(window: Window) -> Axes:
    """Axes for one panel of a slide, of the shape of the window."""
    left, right, bottom, top = window
    height = 6 * min(1.6, max(0.5, (bottom - top) / (right - left)))
    _, ax = plt.subplots(figsize=(6, height), layout="compressed")
    return ax


def save_figure(ax: Axes, path: str | os.PathLike[str] | None) -> None:
    """Write the figure of the axes to a file, if one is named."""
    if path is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None  # of axes that were drawn on
        figure.savefig(path, dpi=_DPI, bbox_inches="tight")


def draw_image(
    ax: Axes, sdata: SpatialData, image_key: str, window: Window, scalebar: float | None = None, *, grey: bool = False
) -> AxesImage:
    """Draw a window of the H&E, with a scale bar."""
    pixels, place = read_image(sdata, image_key, window, LONGEST)
    if grey:
        pixels = np.repeat((pixels @ _LUMA).round().astype(np.uint8)[..., None], 3, axis=-1)
    image = ax.imshow(pixels, extent=place)
    frame(ax, window)
    _draw_scale_bar(ax, sdata, image_key, window, scalebar)
    return image


def read_image(sdata: SpatialData, image_key: str, window: Window, longest: int) -> tuple[NDArray[np.uint8], Window]:
    """(rows, columns, 3) of the H&E, so many pixels on the longer side at most, and the window that they fill."""
    left, right, bottom, top = window
    scale = max(1.0, max(right - left, bottom - top) / longest)
    slide = _thinned(open_image(sdata, image_key), scale)
    x0, y0 = int(left / scale), int(top / scale)
    x1, y1 = math.ceil(right / scale), math.ceil(bottom / scale)
    pixels = slide.read(scale, y0, y1, x0, x1).transpose(1, 2, 0)
    return pixels.round().astype(np.uint8), (x0 * scale, x1 * scale, y1 * scale, y0 * scale)


def _thinned(slide: Slide, scale: float) -> Slide:
    """Where no level is near a scale, as of images without pyramid, add one of every few pixels."""
    nearest = max(i for i, factor in enumerate(slide.factors) if i == 0 or max(factor) <= scale)
    fy, fx = slide.factors[nearest]
    step = int(scale / max(fy, fx) / _SAMPLES)
    if step < 2:
        return slide
    every = slice(step // 2, None, step)
    thin = slide.levels[nearest].isel(y=every, x=every)
    return replace(slide, levels=(*slide.levels, thin), factors=(*slide.factors, (fy * step, fx * step)))


def frame(ax: Axes, window: Window) -> None:
    """Show exactly a window."""
    left, right, bottom, top = window
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def cut(
    raster: xr.DataArray | xr.DataTree, matrix: Matrix, window: Window, longest: int = LONGEST
) -> tuple[xr.DataArray, Matrix]:
    """Part of a raster that lies in a window, of the coarsest level that suffices and thinned to what a figure shows.

    Parameters
    ----------
    raster
        Image or labels, single- or multiscale.
    matrix
        From its full-resolution pixels to those of the H&E.
    window
        Of the H&E.
    longest
        About as many pixels of the longer side remain, at least where there are as many.

    Returns
    -------
    The part, lazy, and the matrix from its pixels to those of the H&E.
    """
    left, right, bottom, top = window
    corners = np.array([[left, left, right, right], [top, bottom, top, bottom], [1.0] * 4])
    levels = raster_levels(raster)
    full = levels[0].sizes
    x, y, _ = np.linalg.inv(matrix) @ corners
    sides = max(np.ptp(x.clip(0, full["x"])), np.ptp(y.clip(0, full["y"])))
    level = min(
        (one for one in levels if sides * one.sizes["x"] / full["x"] >= longest),
        key=lambda one: one.sizes["x"],
        default=levels[0],
    )
    fx, fy = full["x"] / level.sizes["x"], full["y"] / level.sizes["y"]
    columns, rows = _span(x / fx, level.sizes["x"]), _span(y / fy, level.sizes["y"])
    step = max(1, math.floor(max(columns.stop - columns.start, rows.stop - rows.start) / longest))
    part = level.isel(
        y=slice(rows.start + step // 2, rows.stop, step), x=slice(columns.start + step // 2, columns.stop, step)
    )
    outward = np.array([[step * fx, 0, columns.start * fx], [0, step * fy, rows.start * fy], [0, 0, 1]])
    return part, matrix @ outward


def scaled(scale: float, x: float = 0, y: float = 0) -> Matrix:
    """Matrix (3, 3) that scales, then moves."""
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1.0]])


def _span(edges: NDArray[np.float64], size: int) -> slice:
    start = min(max(math.floor(edges.min() + 1e-6), 0), size - 1)
    return slice(start, max(min(math.ceil(edges.max() - 1e-6), size), start + 1))


def cut_element(
    sdata: SpatialData, key: str, image_key: str, window: Window, longest: int = LONGEST
) -> tuple[xr.DataArray, Matrix]:
    """`cut` of the image or labels of that key."""
    return cut(get_element(sdata, key, "images", "labels"), affine(sdata, key, image_key), window, longest)


def place_of(matrix: Matrix, shape: tuple[int, int]) -> Window:
    """Window that a (rows, columns) raster parallel to the image fills."""
    (left, top, _), (right, bottom, _) = np.array([[0, 0, 1], [shape[1], shape[0], 1]]) @ matrix.T
    return left, right, bottom, top


def draw_raster(ax: Axes, values: NDArray[Any], matrix: Matrix, **style: Any) -> AxesImage:
    """Draw (rows, columns, ...) values where the matrix from their pixels to those of the image says."""
    if matrix[0, 1] == matrix[1, 0] == 0:
        return ax.imshow(values, extent=place_of(matrix, (values.shape[0], values.shape[1])), **style)
    rows, columns = values.shape[:2]
    return ax.imshow(values, extent=(0, columns, rows, 0), transform=Affine2D(matrix) + ax.transData, **style)


def _draw_scale_bar(ax: Axes, sdata: SpatialData, image_key: str, window: Window, microns: float | None) -> None:
    """Draw a bar of a round length, or of so many µm; none of 0, and none unasked where the pixel size is unknown."""
    if microns == 0:
        return
    mpp = known_mpp(sdata, image_key)
    if mpp is None:
        if microns is None:
            return
        raise ValueError(
            f"Nothing tells the pixel size of image {image_key!r}, so scalebar={microns:g} has no length: run "
            "pixel2gene.tl.tissue with mpp=, or pass scalebar=0."
        )
    width = window[1] - window[0]
    length = microns or _round_length(_BAR_SHARE * width * mpp)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        ax.transData, length / mpp, label, "lower right", size_vertical=width / 150, pad=0.4, sep=3, color="black"
    )
    bar.patch.set(alpha=0.7, edgecolor="none")
    ax.add_artist(bar)


def _round_length(longest: float) -> float:
    """Largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest)
