from __future__ import annotations

import os
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.patches import Patch
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.pl._raster import Crop, draw_image, draw_raster, frame, new_axes, save_figure, window_of
from pixel2gene.pl._units import unit_rasters
from pixel2gene.spatial.elements import get_table

# Petroff (2021), told apart with and without colour vision.
_PALETTE = mpl.color_sequences["petroff10"]
_SHADES = (0.0, 0.45, -0.4)  # towards white, towards black
_LEGEND_ROWS = 20


def clusters(
    sdata: SpatialData,
    table_key: str,
    key: str,
    *,
    image_key: str = "he",
    crop: Crop | None = None,
    scalebar: float | None = None,
    ax: Axes | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes:
    """Draw the categories of the units of a table, such as Leiden clusters, over the H&E.

    Units are superpixels, bins, spots or cells. Over 30,000 shapes are drawn by their middle and area, which at the
    size of a figure is the same.

    Parameters
    ----------
    sdata
        Holds the image and the table.
    table_key
        Table that annotates shapes or labels, such as ``"predicted"`` or ``"denoised"``.
    key
        Column of its ``obs``: categories, text or truth values. Colours are those of ``uns[f"{key}_colors"]``, as
        scanpy keeps them, else ten that are told apart without colour vision, then lighter and darker shades of them.
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
        If there is no such image, table or column.
    ValueError
        If the column holds numbers, has no categories, or more than it has colours; if the table annotates nothing, or
        the crop shows none of the image.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, progress=False)
    >>> table = sdata["predicted"]
    >>> table.obs["half"] = np.where(table.obsm["spatial"][:, 0] < 384, "left", "right")
    >>> ax = p2g.pl.clusters(sdata, "predicted", "half")
    """
    window = window_of(sdata, image_key, crop)
    table = get_table(sdata, table_key)
    values = _categories(table, table_key, key)
    colours = _colours(table, key, len(values.categories))
    ax = ax or new_axes(window)
    draw_image(ax, sdata, image_key, window, scalebar)
    # Units of no category, and what is no unit, are last: transparent.
    codes = np.append(values.codes, -1)
    lookup = np.vstack([colours, [0, 0, 0, 0]])
    for rows, matrix in unit_rasters(sdata, table_key, image_key, window):
        draw_raster(ax, (255 * lookup[codes[rows]]).round().astype(np.uint8), matrix, interpolation="nearest")
    frame(ax, window)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, values.categories, strict=True)]
    ax.legend(
        handles=handles,
        title=key,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        ncols=-(-len(handles) // _LEGEND_ROWS),
    )
    save_figure(ax, save)
    return ax


def _categories(table: AnnData, table_key: str, key: str) -> pd.Categorical[Any]:
    if key not in table.obs:
        raise KeyError(f"No {key!r} in obs of table {table_key!r}; there are {table.obs.columns.tolist()}.")
    column = pd.Series(table.obs[key])
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        raise ValueError(
            f"Column {key!r} of table {table_key!r} holds numbers ({column.dtype}); categories are expected: "
            f"table.obs[{key!r}] = table.obs[{key!r}].astype('category')."
        )
    values: pd.Categorical[Any] = column.astype("category").array
    if len(values.categories) == 0:
        raise ValueError(f"Column {key!r} of table {table_key!r} has no categories: all its values are missing.")
    return values


def _colours(table: AnnData, key: str, n: int) -> NDArray[np.float64]:
    """(n, 4) colours of the categories."""
    given = table.uns.get(f"{key}_colors")
    if given is None:
        return to_rgba_array([_shade(to_rgb(_PALETTE[i % len(_PALETTE)]), i // len(_PALETTE)) for i in range(n)])
    if len(given) < n:
        raise ValueError(
            f"uns['{key}_colors'] has {len(given)} colours for {n} categories of {key!r}: delete it, or add the others."
        )
    return to_rgba_array(list(given)[:n])


def _shade(colour: tuple[float, float, float], turn: int) -> NDArray[np.float64]:
    share = _SHADES[turn % len(_SHADES)]
    return np.asarray(colour) * (1 - abs(share)) + max(share, 0)
