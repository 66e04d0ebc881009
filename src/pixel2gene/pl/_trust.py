from __future__ import annotations

import os

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from spatialdata import SpatialData

from pixel2gene.pl._raster import Crop, cut_element, draw_image, draw_raster, frame, new_axes, save_figure, window_of

_COLOURS = mpl.colormaps["cividis"]
_OPACITY = 0.7


def trust(
    sdata: SpatialData,
    predicted: str = "predicted",
    *,
    image_key: str = "he",
    crop: Crop | None = None,
    scalebar: float | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Draw how familiar the H&E is to the model, over the H&E in grey.

    Dark is what the model has seen nothing like: ink, folds, blur, another stain or tissue.

    Parameters
    ----------
    sdata
        Holds the image and the result.
    predicted
        Result of :func:`pixel2gene.tl.predict`, by its key.
    image_key
        H&E.
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
        If there is no such image, or no ``images[f"{predicted}_trust"]``.
    ValueError
        If the crop shows none of the image.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, progress=False)
    >>> ax = p2g.pl.trust(sdata)
    """
    window = window_of(sdata, image_key, crop)
    key = f"{predicted}_trust"
    if key not in sdata.images:
        raise KeyError(f"No {key!r} among the images {sorted(sdata.images)}: run pixel2gene.tl.predict first.")
    part, matrix = cut_element(sdata, key, image_key, window)
    ax = ax or new_axes(window)
    draw_image(ax, sdata, image_key, window, scalebar, grey=True)
    values = part.to_numpy()[0].astype(np.float32)
    shown = draw_raster(ax, values, matrix, cmap=_COLOURS, vmin=0, vmax=1, alpha=_OPACITY)
    frame(ax, window)
    ax.figure.colorbar(shown, ax=ax, label="trust: how familiar the H&E is", fraction=0.05, pad=0.02)
    save_figure(ax, save)
    return ax
