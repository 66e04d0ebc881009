from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from numpy.typing import NDArray
from scipy.sparse import csr_array
from spatialdata import SpatialData

from pixel2gene.pl._raster import Window, draw_image, extent, frame, known_mpp, whole_image
from pixel2gene.spatial.geometry import affine, get_element, raster_levels
from pixel2gene.spatial.grid import superpixel_grid
from pixel2gene.spatial.latent import find_map
from pixel2gene.spatial.overlap import overlap
from pixel2gene.spatial.pixel_size import pixel_size

_COLOURS = "viridis"
_BRIGHTEST = 99  # percentile
_MASKED = "0.8"  # a grey that is not among the colours
_PANEL_INCHES = 3.6
_MARGIN_SHARE = 0.05
_MARGIN = 16  # superpixels: no unit but a region of interest is larger

type _Panel = tuple[NDArray[np.float32], Window]


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
    axes: Iterable[Axes] | None = None,
) -> NDArray[np.object_]:
    """Draw a gene side by side as measured, denoised and predicted, next to the H&E.

    All panels show expected counts per superpixel on one colour scale, from 0 to the 99th percentile over all of
    them; measured counts are divided by the area of their bin, spot or cell. Panels of elements that do not exist, or
    that the gene is not in, are left out. White is what was not measured or predicted; the panels show the part of the
    image where something was. Titles say how well the H&E alone tells the gene: the out-of-fold Pearson correlation,
    where the table of the results has it.

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
        Predictions of less trust (0 to 1) are masked: grey, and of no weight in the colour scale.
    min_score
        So is the whole prediction of a gene with a lower out-of-fold Pearson correlation, or none.
    axes
        Axes to draw on, one per panel; new ones by default.

    Returns
    -------
    (panels,) axes in full-resolution pixels of the image, the H&E first.

    Raises
    ------
    KeyError
        If there is no such image, none of the elements exist, or none of them has the gene; or if trust is asked for
        and ``images[f"{predicted}_trust"]`` does not exist.
    ValueError
        If the number of axes is not that of the panels, the pixel size is unknown, the table annotates nothing, or an
        element shares no coordinate system with the image.
    """
    get_element(sdata, image_key, "images")
    untrusted = None if min_trust is None else _trust(sdata, predicted) < min_trust
    panels: dict[str, _Panel] = {}
    names: list[str] = []
    titles = {"measured": f"{gene}, measured"}
    if measured in sdata.tables:
        table = sdata.tables[measured]
        names += table.var_names.tolist()
        if gene in table.var_names:
            panels["measured"] = _measured(sdata, measured, gene, image_key)
    for name, key in {"denoised": denoised, "predicted": predicted}.items():
        found = find_map(sdata, key)
        if found is not None:
            at, raster = found
            names += raster.coords["c"].values.tolist()
            if gene in raster.coords["c"].values:
                values = raster.sel(c=gene).to_numpy().astype(np.float32)
                panels[name] = values, extent(sdata, at, image_key)
                titles[name] = f"{gene}, {name}{_score(sdata, key, gene)}"
    if not names:
        raise KeyError(
            f"No table {measured!r} and no images '{denoised}_map' or '{predicted}_map'; there are the tables "
            f"{sorted(sdata.tables)} and the images {sorted(sdata.images)}."
        )
    if not panels:
        known = pd.unique(np.asarray(names))
        raise KeyError(f"No gene {gene!r}; there are {len(known)}, such as {known[:10].tolist()}.")

    window = _window(panels.values(), whole_image(sdata, image_key))
    if axes is None:
        axes = _new_axes(window, len(panels) + 1)
    drawn = np.array(list(axes), dtype=object)
    if len(drawn) != len(panels) + 1:
        raise ValueError(f"{len(drawn)} axes given for {len(panels) + 1} panels: H&E, {', '.join(panels)}.")
    draw_image(drawn[0], sdata, image_key, window)
    drawn[0].set_title("H&E")
    if "predicted" in panels:
        values, place = panels["predicted"]
        masked = np.zeros(values.shape, bool)
        if untrusted is not None:
            masked |= untrusted
            titles["predicted"] += f"\ngrey: trust below {min_trust:g}"
        if min_score is not None and not _pearson(sdata, predicted, gene) >= min_score:
            masked |= np.isfinite(values)
            titles["predicted"] += f"\ngrey: below {min_score:g}"
        panels["predicted"] = np.where(masked, np.nan, values), place
        if masked.any():
            drawn[-1].imshow(np.where(masked, 1.0, np.nan), extent=place, cmap=ListedColormap([_MASKED]))
    norm = Normalize(0, _brightest([values for values, _ in panels.values()]))
    for ax, (name, (values, place)) in zip(drawn[1:], panels.items(), strict=True):
        shown = ax.imshow(values, extent=place, cmap=_COLOURS, norm=norm)
        frame(ax, window)
        ax.set_title(titles[name])
    drawn[0].figure.colorbar(
        shown, ax=drawn[1:].tolist(), label="expected counts per superpixel", extend="max", fraction=0.05, pad=0.02
    )
    return drawn


def _trust(sdata: SpatialData, predicted: str) -> NDArray[np.floating]:
    """(rows, columns) trust in the predictions, NaN outside the tissue."""
    key = f"{predicted}_trust"
    if key not in sdata.images:
        raise KeyError(
            f"No {key!r} among the images {sorted(sdata.images)}, so trust is unknown: run pixel2gene.tl.predict anew, "
            "or leave out min_trust."
        )
    trust: NDArray[np.floating] = raster_levels(sdata.images[key])[0].to_numpy()[0]
    return trust


def _pearson(sdata: SpatialData, key: str, gene: str) -> float:
    """Out-of-fold score of a gene that the table of a result tells; NaN where it does not."""
    if key not in sdata.tables or "pearson" not in sdata.tables[key].var or gene not in sdata.tables[key].var_names:
        return float("nan")
    return float(sdata.tables[key].var.at[gene, "pearson"])


def _score(sdata: SpatialData, key: str, gene: str) -> str:
    """Second line of a title."""
    score = _pearson(sdata, key, gene)
    return "" if np.isnan(score) else f"\nout-of-fold Pearson {score:.2f}"


def _measured(sdata: SpatialData, key: str, gene: str, image_key: str) -> _Panel:
    """Counts per superpixel on the superpixel grid, NaN where nothing was measured."""
    table = sdata.tables[key]
    if "spatialdata_attrs" not in table.uns:
        raise ValueError(
            f"Table {key!r} annotates no element, so its counts have no place; link it to the bins, spots or cells "
            "with TableModel.parse(region=, region_key=, instance_key=)."
        )
    link = table.uns["spatialdata_attrs"]
    regions = table.obs[link["region_key"]].astype(str).to_numpy()
    column: Any = table[:, gene].X
    counts = csr_array(column).toarray().ravel()
    grid = superpixel_grid(sdata, image_key, known_mpp(sdata, image_key) or pixel_size(sdata, image_key))
    # The margin holds what reaches beyond the image, so that every unit has its whole area.
    rows, columns = grid.shape[0] + 2 * _MARGIN, grid.shape[1] + 2 * _MARGIN
    inward = np.array([[1.0, 0.0, _MARGIN], [0.0, 1.0, _MARGIN], [0.0, 0.0, 1.0]])
    total, covered = np.zeros((2, rows * columns))
    for region in pd.unique(regions):
        rows_of = regions == region
        ids = table.obs[link["instance_key"]].to_numpy()[rows_of]
        element = get_element(sdata, region, "shapes", "labels")
        matrix = inward @ grid.from_pixels @ affine(sdata, region, image_key)
        weights = overlap(element, ids, matrix, (rows, columns))
        area: NDArray[np.float32] = weights.sum(axis=1)
        density = np.divide(counts[rows_of], area, out=np.zeros(len(area)), where=area > 0)
        total += weights.T @ density
        covered += weights.sum(axis=0)
    mean = np.divide(total, covered, out=np.full(len(total), np.nan), where=covered > 0)
    inner = mean.reshape(rows, columns)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return inner.astype(np.float32), (0, grid.shape[1] * grid.factor, grid.shape[0] * grid.factor, 0)


def _brightest(rasters: list[NDArray[np.float32]]) -> float:
    """Upper end of the colour scale: where nearly all is zero, the maximum."""
    values = np.concatenate([raster[np.isfinite(raster)] for raster in rasters])
    if values.size == 0:
        return 1.0
    return float(np.percentile(values, _BRIGHTEST)) or float(values.max()) or 1.0


def _window(panels: Iterable[_Panel], whole: Window) -> Window:
    """Part of the image that there are values on, and a little around it."""
    boxes = []
    for values, (left, right, bottom, top) in panels:
        rows, columns = np.nonzero(np.isfinite(values))
        if len(rows):
            width, height = (right - left) / values.shape[1], (bottom - top) / values.shape[0]
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
        1, panels, figsize=(_PANEL_INCHES * panels + 0.6, height), layout="constrained", squeeze=False
    )
    return axes[0]
