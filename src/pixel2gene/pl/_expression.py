from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from scipy.sparse import csr_array
from spatialdata import SpatialData

from pixel2gene.pl._raster import (
    LONGEST,
    Crop,
    Matrix,
    Window,
    cut,
    cut_element,
    draw_image,
    draw_raster,
    frame,
    known_mpp,
    place_of,
    save_figure,
    window_of,
)
from pixel2gene.pl._units import density, label_positions
from pixel2gene.spatial.geometry import affine
from pixel2gene.spatial.grid import superpixel_grid
from pixel2gene.spatial.latent import find_map
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.units import annotated

_COLOURS = mpl.colormaps["viridis"].with_extremes(bad="white")
_BRIGHTEST = 99  # percentile
_PANEL_INCHES = 2.3
_MARGIN_SHARE = 0.05


@dataclass(frozen=True)
class Panel:
    """What is known of a gene in one way.

    Attributes
    ----------
    title
        Above it.
    values
        (rows, columns) per superpixel, NaN where there are none.
    matrix
        From their pixels to those of the image.
    masked
        (rows, columns) where values are not to be relied on.
    """

    title: str
    values: NDArray[np.float32]
    matrix: Matrix
    masked: NDArray[np.bool_] | None = None

    @property
    def reliable(self) -> NDArray[np.float32]:
        """Values that are not masked."""
        shown = np.isfinite(self.values) if self.masked is None else np.isfinite(self.values) & ~self.masked
        return self.values[shown]


def expression(
    sdata: SpatialData,
    gene: str,
    *,
    image_key: str = "he",
    measured: str = "counts",
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
        Table of counts that annotates shapes or labels.
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
        If there is no such image, none of the elements exist, or none of them has the gene; or if trust is asked for
        and ``images[f"{predicted}_trust"]`` does not exist.
    ValueError
        If the number of axes is not that of the panels, the pixel size is unknown, the table annotates nothing, an
        element shares no coordinate system with the image, or the crop shows none of it.
    """
    window = window_of(sdata, image_key, crop)
    panels = expression_panels(
        sdata, gene, image_key, window, measured=measured, denoised=denoised, predicted=predicted, min_trust=min_trust,
        min_score=min_score,
    )  # fmt: skip
    if crop is None:
        window = _filled(panels.values(), window)
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
        draw_raster(ax, panel.values, panel.matrix, cmap=_COLOURS, norm=norm, alpha=opaque)
        if panel.masked is not None and panel.masked.any():
            draw_image(ax, sdata, image_key, window, scalebar=0, grey=True).set_zorder(-1)
        frame(ax, window)
        ax.set_title(panel.title, fontsize="medium")
    drawn[0].figure.colorbar(
        mpl.cm.ScalarMappable(norm, _COLOURS),
        ax=drawn[1:].tolist(),
        label="expected counts per superpixel",
        extend="max",
        fraction=0.05,
        pad=0.02,
    )
    save_figure(drawn[0], save)
    return drawn


def expression_panels(
    sdata: SpatialData,
    gene: str,
    image_key: str,
    window: Window,
    *,
    measured: str,
    denoised: str,
    predicted: str,
    min_trust: float | None = None,
    min_score: float | None = None,
    longest: int = LONGEST,
) -> dict[str, Panel]:
    """What there is of a gene in a window: any of measured, denoised, predicted and sd, see `expression`."""
    panels: dict[str, Panel] = {}
    names: list[str] = []
    mask = None if min_trust is None else _trust(sdata, predicted, image_key, window, longest) < min_trust
    if measured in sdata.tables:
        table = sdata.tables[measured]
        names += table.var_names.tolist()
        if gene in table.var_names:
            panels["measured"] = _measured(sdata, measured, gene, image_key, window)
    for name, key in {"denoised": denoised, "predicted": predicted}.items():
        found = find_map(sdata, key)
        if found is not None:
            at, raster = found
            names += raster.coords["c"].values.tolist()
            if gene in raster.coords["c"].values:
                part, matrix = cut(raster.sel(c=gene), affine(sdata, at, image_key), window, longest)
                title = f"{gene}, {name}{_score(sdata, key, gene)}"
                panels[name] = Panel(title, part.to_numpy().astype(np.float32), matrix)
    if not names:
        raise KeyError(
            f"No table {measured!r} and no images '{denoised}_map' or '{predicted}_map'; there are the tables "
            f"{sorted(sdata.tables)} and the images {sorted(sdata.images)}."
        )
    if not panels:
        known = pd.unique(np.asarray(names))
        raise KeyError(f"No gene {gene!r}; there are {len(known)}, such as {known[:10].tolist()}.")
    if "predicted" in panels:
        panels["predicted"] = _masked(panels["predicted"], mask, min_trust, min_score, _pearson(sdata, predicted, gene))
        if gene in _genes_with_sd(sdata, predicted):
            values = _sd(sdata, predicted, gene, image_key, window, longest)
            title = f"{gene}, predicted\nstandard deviation"
            panels["sd"] = replace(panels["predicted"], title=title, values=values)
    return panels


def brightest(panels: dict[str, Panel]) -> float:
    """Upper end of the colour scale: where nearly all is zero, the maximum."""
    values = np.concatenate([panel.reliable for name, panel in panels.items() if name != "sd"])
    if values.size == 0:
        return 1.0
    return float(np.percentile(values, _BRIGHTEST)) or float(values.max()) or 1.0


def _masked(
    panel: Panel,
    untrusted: NDArray[np.bool_] | None,
    min_trust: float | None,
    min_score: float | None,
    score: float,
) -> Panel:
    masked = np.zeros(panel.values.shape, bool)
    title = panel.title
    if untrusted is not None:
        masked |= untrusted
        title += f"\ngrey H&E: trust below {min_trust:g}"
    if min_score is not None and not score >= min_score:
        masked |= np.isfinite(panel.values)
        title += f"\ngrey H&E: below {min_score:g}"
    return replace(panel, title=title, masked=masked)


def _trust(
    sdata: SpatialData, predicted: str, image_key: str, window: Window, longest: int
) -> NDArray[np.floating[Any]]:
    """(rows, columns) trust in the predictions, NaN outside the tissue."""
    key = f"{predicted}_trust"
    if key not in sdata.images:
        raise KeyError(
            f"No {key!r} among the images {sorted(sdata.images)}, so trust is unknown: run pixel2gene.tl.predict anew, "
            "or leave out min_trust."
        )
    trust: NDArray[np.floating[Any]] = cut_element(sdata, key, image_key, window, longest)[0].to_numpy()[0]
    return trust


def _genes_with_sd(sdata: SpatialData, predicted: str) -> list[str]:
    table = sdata.tables.get(predicted)
    if table is None or "sd" not in table.layers or f"{predicted}_superpixels" not in sdata.labels:
        return []
    return table.var_names.tolist()


def _sd(
    sdata: SpatialData, predicted: str, gene: str, image_key: str, window: Window, longest: int
) -> NDArray[np.float32]:
    """(rows, columns) standard deviations of the prediction, NaN outside the tissue."""
    table = sdata.tables[predicted]
    sd = _column(table[:, gene].layers["sd"])
    ((region, rows, ids),) = annotated(table, predicted)
    found, _ = label_positions(sdata, region, ids, image_key, window, longest)
    return np.where(found >= 0, sd[rows][found], np.nan).astype(np.float32)


def _pearson(sdata: SpatialData, key: str, gene: str) -> float:
    """Out-of-fold score of a gene that the table of a result tells; NaN where it does not."""
    if key not in sdata.tables or "pearson" not in sdata.tables[key].var or gene not in sdata.tables[key].var_names:
        return float("nan")
    return float(sdata.tables[key].var.at[gene, "pearson"])


def _score(sdata: SpatialData, key: str, gene: str) -> str:
    """Second line of a title."""
    score = _pearson(sdata, key, gene)
    return "" if np.isnan(score) else f"\nout-of-fold Pearson {score:.2f}"


def _measured(sdata: SpatialData, key: str, gene: str, image_key: str, window: Window) -> Panel:
    """Counts per superpixel on the superpixel grid, NaN where nothing was measured."""
    grid = superpixel_grid(sdata, image_key, known_mpp(sdata, image_key) or pixel_size(sdata, image_key))
    counts = _column(sdata.tables[key][:, gene].X)
    return Panel(f"{gene}, measured", *density(sdata, key, counts, image_key, grid, window))


def _column(values: Any) -> NDArray[np.floating[Any]]:
    """One column of a table, dense."""
    column: NDArray[np.floating[Any]] = csr_array(values).toarray().ravel()
    return column


def _filled(panels: Iterable[Panel], whole: Window) -> Window:
    """Part of the image that there are values on, and a little around it."""
    boxes = []
    for panel in panels:
        rows, columns = np.nonzero(np.isfinite(panel.values))
        if len(rows):
            left, right, bottom, top = place_of(panel.matrix, panel.values.shape)
            width, height = (right - left) / panel.values.shape[1], (bottom - top) / panel.values.shape[0]
            x, y = left + width * columns, top + height * rows
            boxes.append((x.min(), x.max() + width, y.max() + height, y.min()))
    if not boxes:
        return whole
    (left, top), (right, bottom) = np.min(boxes, axis=0)[[0, 3]], np.max(boxes, axis=0)[[1, 2]]
    margin = _MARGIN_SHARE * max(right - left, bottom - top)
    return (
        max(left - margin, whole[0]),
        min(right + margin, whole[1]),
        min(bottom + margin, whole[2]),
        max(top - margin, whole[3]),
    )


def _new_axes(window: Window, panels: int) -> NDArray[np.object_]:
    left, right, bottom, top = window
    height = _PANEL_INCHES * min(2.0, (bottom - top) / (right - left)) + 0.8
    _, axes = plt.subplots(
        1, panels, figsize=(_PANEL_INCHES * panels + 0.6, height), layout="compressed", squeeze=False
    )
    return axes[0]
