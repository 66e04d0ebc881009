from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from spatialdata import SpatialData

from pixel2gene.pl._raster import Crop, cut_element, draw_image, frame, new_axes, save_figure, window_of

_OUTLINE = "#00c8ff"  # neither dye's colour, and told from both without colour vision


def tissue(
    sdata: SpatialData,
    image_key: str = "he",
    *,
    tissue_key: str | None = None,
    crop: Crop | None = None,
    scalebar: float | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Draw the H&E with the outline of the tissue, and a scale bar where the pixel size is known.

    Parameters
    ----------
    sdata
        Holds the image and the labels.
    image_key
        H&E.
    tissue_key
        Labels, non-zero on tissue; those of :func:`pixel2gene.tl.tissue` by default.
    crop
        Left, top, right and bottom of the part to show, in full-resolution pixels of the image.
    scalebar
        Length of the scale bar in µm; by default a round one, where the pixel size is known. 0 draws none.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    The axes, in full-resolution pixels of the image.

    Raises
    ------
    KeyError
        If there is no such image, or no such labels.
    ValueError
        If the image is no 8-bit RGB image, shares no coordinate system with the labels, or the crop shows none of it.

    Examples
    --------
    >>> ax = p2g.pl.tissue(sdata)
    """
    window = window_of(sdata, image_key, crop)
    tissue_key = tissue_key or f"{image_key}_tissue"
    if tissue_key not in sdata.labels:
        raise KeyError(
            f"No {tissue_key!r} among the labels; there are {sorted(sdata.labels)}. Run pixel2gene.tl.tissue first, or "
            "pass tissue_key=."
        )
    labels, matrix = cut_element(sdata, tissue_key, image_key, window)
    # A border of background closes the outline of tissue that reaches the edge.
    mask = np.pad(labels.to_numpy() != 0, 1)
    x, y = np.meshgrid(*(np.arange(n) - 0.5 for n in mask.shape[::-1]))
    ax = ax or new_axes(window)
    draw_image(ax, sdata, image_key, window, scalebar)
    ax.contour(
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
        mask,
        levels=[0.5],
        colors=_OUTLINE,
        linewidths=1,
    )
    frame(ax, window)
    save_figure(ax, save)
    return ax
