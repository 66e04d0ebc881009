from __future__ import annotations

import os
from collections.abc import Iterable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.pl._panels import COLOURS, GeneMaps, brightest, filled_window
from pixel2gene.pl._raster import Crop, Window, draw_image, draw_raster, frame, save_figure, window_of

_PANEL_INCHES = 2.3


def expression(
    sdata: SpatialData,
    gene: str,
    *,
    image_key: str = "he",
    measured: str = "counts",
    layer: str | None = None,
    denoised: str = "denoised",
    predicted: str = "predicted",
    min_trust: float | None = None,
    min_score: float | None = None,
    crop: Crop | None = None,
    scalebar: float | None = None,
    axes: Iterable[Axes] | None = None,
    save: str | os.PathLike[str] | None = None,
) -> NDArray[np.object_]:
    """Draw a gene side by side as measured, denoised and predicted, with how far predictions may be off, and the H&E.

    All panels show expected counts per superpixel on one colour scale, from 0 to the 99th percentile of what is shown
    as measured, denoised and predicted; measured counts are divided by the area of their bin, spot or cell. Panels of
    elements that do not exist, or that the gene is not in, are left out. White is what was not measured or predicted;
    the panels show the part of the image where something was. Titles say how well the H&E alone tells the gene: the
    out-of-fold Pearson correlation, where the table of the results has it.

    Parameters
    ----------
    sdata
        Holds the image and the results.
    gene
        Name of the gene.
    image_key
        H&E.
    measured
        Table of counts that annotates shapes or labels; or points element of transcripts, all of which are read.
    layer
        Layer of that table with the counts, X by default.
    denoised, predicted
        Results of :func:`pixel2gene.tl.denoise` and :func:`pixel2gene.tl.predict`, by their keys.
    min_trust
        Predictions of less trust (0 to 1) are masked: transparent, so that the H&E is seen in grey, and of no weight in
        the colour scale.
    min_score
        So is the whole prediction of a gene with a lower out-of-fold Pearson correlation, or none.
    crop
        Left, top, right and bottom of the part to show, in full-resolution pixels of the image.
    scalebar
        Length of the scale bar in µm; by default a round one, where the pixel size is known. 0 draws none.
    axes
        Axes to draw on, one per panel; new ones by default.
    save
        File to write the figure to.

    Returns
    -------
    (panels,) axes in full-resolution pixels of the image, the H&E first.

    Raises
    ------
    KeyError
        If there is no such image or layer, none of the elements exist, or none of them has the gene; or if trust is
        asked for and ``images[f"{predicted}_trust"]`` does not exist.
    ValueError
        If the number of axes is not that of the panels, the pixel size is unknown, the table annotates nothing, an
        element shares no coordinate system with the image, or the crop shows none of it.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, progress=False)
    >>> axes = p2g.pl.expression(sdata, model.genes[0], min_trust=0.05)
    >>> len(axes)  # H&E, measured, predicted, how far off
    4
    """
    window = window_of(sdata, image_key, crop)
    maps = GeneMaps(sdata, image_key, window, measured, denoised, predicted, layer=layer)
    panels = maps.panels(gene, min_trust=min_trust, min_score=min_score)
    if crop is None:
        window = filled_window(panels.values(), window)
    if axes is None:
        axes = _new_axes(window, len(panels) + 1)
    drawn = np.array(list(axes), dtype=object)
    if len(drawn) != len(panels) + 1:
        raise ValueError(f"{len(drawn)} axes given for {len(panels) + 1} panels: H&E, {', '.join(panels)}.")
    draw_image(drawn[0], sdata, image_key, window, scalebar)
    drawn[0].set_title("H&E", fontsize="medium")
    norm = Normalize(0, brightest(panels))
    for ax, panel in zip(drawn[1:], panels.values(), strict=True):
        opaque = None if panel.masked is None else 1.0 - panel.masked
        draw_raster(ax, panel.values, panel.matrix, cmap=COLOURS, norm=norm, alpha=opaque)
        if panel.masked is not None and panel.masked.any():
            draw_image(ax, sdata, image_key, window, scalebar=0, grey=True).set_zorder(-1)
        frame(ax, window)
        ax.set_title(panel.title, fontsize="medium")
    drawn[0].figure.colorbar(
        mpl.cm.ScalarMappable(norm, COLOURS),
        ax=drawn[1:].tolist(),
        label="expected counts per superpixel",
        extend="max",
        fraction=0.05,
        pad=0.02,
    )
    save_figure(drawn[0], save)
    return drawn


def _new_axes(window: Window, panels: int) -> NDArray[np.object_]:
    left, right, bottom, top = window
    height = _PANEL_INCHES * min(2.0, (bottom - top) / (right - left)) + 0.8
    _, axes = plt.subplots(
        1, panels, figsize=(_PANEL_INCHES * panels + 0.6, height), layout="compressed", squeeze=False
    )
    return axes[0]
