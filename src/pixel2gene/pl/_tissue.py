from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from spatialdata import SpatialData

from pixel2gene.pl._raster import draw_image, whole_image
from pixel2gene.spatial.geometry import affine, get_element, raster_levels

_OUTLINE = "#00c8ff"  # neither dye's colour, and told from both without colour vision
_LONGEST_SIDE = 2000


def tissue(sdata: SpatialData, image_key: str = "he", *, tissue_key: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the H&E with the outline of the tissue, and a scale bar where the pixel size is known.

    Parameters
    ----------
    sdata
        Holds the image and the labels.
    image_key
        H&E.
    tissue_key
        Labels, non-zero on tissue; those of :func:`pixel2gene.tl.tissue` by default.
    ax
        Axes to draw on; new ones by default.

    Returns
    -------
    The axes, in full-resolution pixels of the image.

    Raises
    ------
    KeyError
        If there is no such image, or no such labels.
    ValueError
        If the image is no 8-bit RGB image, or shares no coordinate system with the labels.
    """
    get_element(sdata, image_key, "images")
    tissue_key = tissue_key or f"{image_key}_tissue"
    if tissue_key not in sdata.labels:
        raise KeyError(
            f"No {tissue_key!r} among the labels; there are {sorted(sdata.labels)}. Run pixel2gene.tl.tissue first, or "
            "pass tissue_key=."
        )
    labels = raster_levels(sdata.labels[tissue_key])[0]
    step = -(-max(labels.shape) // _LONGEST_SIDE)
    # A border of background closes the outline of tissue that reaches the edge.
    mask = np.pad(labels[::step, ::step].to_numpy() != 0, 1)
    rows, columns = (step * (np.arange(n) - 0.5) for n in mask.shape)
    x, y = np.meshgrid(columns, rows)
    matrix = affine(sdata, tissue_key, image_key)

    if ax is None:
        _, ax = plt.subplots(figsize=(6, 6), layout="constrained")
    draw_image(ax, sdata, image_key, whole_image(sdata, image_key))
    ax.contour(
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
        mask,
        levels=[0.5],
        colors=_OUTLINE,
        linewidths=1.5,
    )
    return ax
