"""What plots share: the H&E at the size of a figure, and where other rasters lie on it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredOffsetbox
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from spatialdata import SpatialData

from pixel2gene.spatial.elements import RECORDS
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.pixel_size import evidence

_THUMBNAIL_PX = 1000
_BAR_SHARE = 0.3

# Left, right, bottom and top in full-resolution pixels of the image, as matplotlib orders them.
type Window = tuple[float, float, float, float]


def known_mpp(sdata: SpatialData, image_key: str) -> float | None:
    """µm per full-resolution pixel: as tl.tissue recorded it, or as the data tell; None where they do not."""
    record = sdata.attrs.get(RECORDS, {}).get(f"{image_key}_tissue", {})
    if "mpp" in record:
        return float(record["mpp"])
    found = evidence(sdata, image_key)
    return found[0].mpp if found else None


def draw_image(ax: Axes, sdata: SpatialData, image_key: str, window: Window) -> None:
    """Draw a window of the H&E, with a scale bar."""
    slide = open_image(sdata, image_key)
    left, right, bottom, top = window
    scale = max(1.0, max(right - left, bottom - top) / _THUMBNAIL_PX)
    x0, y0 = int(left / scale), int(top / scale)
    x1, y1 = math.ceil(right / scale), math.ceil(bottom / scale)
    pixels = slide.read(scale, y0, y1, x0, x1).transpose(1, 2, 0)
    ax.imshow(pixels.round().astype(np.uint8), extent=(x0 * scale, x1 * scale, y1 * scale, y0 * scale))
    frame(ax, window)
    mpp = known_mpp(sdata, image_key)
    if mpp is not None:
        ax.add_artist(_scale_bar(ax, right - left, mpp))


def frame(ax: Axes, window: Window) -> None:
    """Show exactly a window."""
    left, right, bottom, top = window
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def whole_image(sdata: SpatialData, image_key: str) -> Window:
    """Window that shows all of an image."""
    full = raster_levels(get_element(sdata, image_key, "images"))[0]
    return 0, full.sizes["x"], full.sizes["y"], 0


def extent(sdata: SpatialData, key: str, image_key: str) -> Window:
    """Window that a raster fills which is parallel to the image."""
    full = raster_levels(get_element(sdata, key, "images", "labels"))[0]
    corners = np.array([[0, 0, 1], [full.sizes["x"], full.sizes["y"], 1]]) @ affine(sdata, key, image_key).T
    (left, top, _), (right, bottom, _) = corners
    return left, right, bottom, top


def _scale_bar(ax: Axes, width: float, mpp: float) -> AnchoredOffsetbox:
    length = _round_length(_BAR_SHARE * width * mpp)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        ax.transData, length / mpp, label, "lower right", size_vertical=width / 150, pad=0.4, sep=3, color="black"
    )
    bar.patch.set(alpha=0.7, edgecolor="none")
    return bar


def _round_length(longest: float) -> float:
    """Largest of 1, 2 and 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest)
