"""What there is of a gene on a slide, in the ways that it is known: measured, denoised, predicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array
from spatialdata import SpatialData

from pixel2gene.pl._raster import LONGEST, Matrix, Window, cut, cut_element, known_mpp, place_of, scaled
from pixel2gene.pl._units import Densities, label_positions
from pixel2gene.spatial.geometry import affine
from pixel2gene.spatial.grid import Grid, superpixel_grid
from pixel2gene.spatial.latent import find_map
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.units import Units, annotated, measured_units

COLOURS = mpl.colormaps["viridis"].with_extremes(bad="white")
_BRIGHTEST = 99  # percentile
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


@dataclass(frozen=True)
class GeneMaps:
    """Opens once what the panels of any gene are made of.

    Attributes
    ----------
    sdata
        Holds image and results.
    image_key
        H&E.
    window
        Part of the image to look at.
    measured, layer
        Table of counts, and the layer that has them, X by default; or transcripts.
    denoised, predicted
        Results, by their keys.
    longest
        About as many pixels of the longer side, where there are as many.
    """

    sdata: SpatialData
    image_key: str
    window: Window
    measured: str
    denoised: str
    predicted: str
    longest: int = LONGEST
    layer: str | None = None

    def panels(self, gene: str, *, min_trust: float | None = None, min_score: float | None = None) -> dict[str, Panel]:
        """Those there are of ``"measured"``, ``"denoised"``, ``"predicted"`` and ``"sd"``.

        Raises
        ------
        KeyError
            If there are none of the elements, or none of them has the gene; or if trust is asked for and unknown.
        """
        panels: dict[str, Panel] = {}
        untrusted = None if min_trust is None else self._trust() < min_trust
        if gene in self._measured_genes:
            panels["measured"] = Panel(f"{gene}, measured", *self._measured(gene))
        for name, (key, raster, matrix) in self._rasters.items():
            if gene in raster.coords["c"].values:
                values = raster.sel(c=gene).to_numpy().astype(np.float32)
                panels[name] = Panel(f"{gene}, {name}{self._title(key, gene)}", values, matrix)
        if not panels:
            raise KeyError(self._missing(gene))
        if "predicted" in panels:
            panels["predicted"] = _masked(panels["predicted"], untrusted, min_trust, min_score, self._score(gene))
            if self._has_sd(gene):
                title = f"{gene}, predicted\nstandard deviation"
                panels["sd"] = replace(panels["predicted"], title=title, values=self._sd(gene))
        return panels

    @cached_property
    def _rasters(self) -> dict[str, tuple[str, xr.DataArray, Matrix]]:
        """Of each result its key, the part of its raster in the window, and where that lies."""
        rasters = {}
        for name, key in {"denoised": self.denoised, "predicted": self.predicted}.items():
            found = find_map(self.sdata, key)
            if found is not None:
                at, raster = found
                matrix = affine(self.sdata, at, self.image_key)
                rasters[name] = key, *cut(raster, matrix, self.window, self.longest)
        return rasters

    @cached_property
    def _measured_genes(self) -> pd.Index[str]:
        if self.measured in self.sdata.tables:
            return self.sdata.tables[self.measured].var_names
        return self._transcripts.genes if self.measured in self.sdata.points else pd.Index([], dtype=str)

    def _measured(self, gene: str) -> tuple[NDArray[np.float32], Matrix]:
        """(rows, columns) counts per superpixel, NaN where nothing was measured, and where they lie."""
        if self.measured not in self.sdata.tables:
            counts = np.full(self._grid.size, np.nan, np.float32)
            column = self._transcripts.counts[:, self._transcripts.genes.get_indexer(pd.Index([gene]))]
            counts[self._transcripts.superpixels] = column.toarray().ravel()
            raster = xr.DataArray(counts.reshape(self._grid.shape), dims=("y", "x"))
            part, matrix = cut(raster, scaled(self._grid.factor), self.window, self.longest)
            return part.to_numpy(), matrix
        table = self.sdata.tables[self.measured]
        if self.layer is not None and self.layer not in table.layers:
            known = sorted(name for name in table.layers if name is not None)
            raise KeyError(f"No layer {self.layer!r} in table {self.measured!r}; there are {known}.")
        column = table[:, gene]
        values = _column(column.X if self.layer is None else column.layers[self.layer])
        return self._densities.of(values), self._densities.matrix

    @cached_property
    def _transcripts(self) -> Units:
        return measured_units(self.sdata, self.measured, self.image_key, self._grid)

    @cached_property
    def _grid(self) -> Grid:
        mpp = known_mpp(self.sdata, self.image_key) or pixel_size(self.sdata, self.image_key)
        return superpixel_grid(self.sdata, self.image_key, mpp)

    @cached_property
    def _densities(self) -> Densities:
        return Densities(self.sdata, self.measured, self.image_key, self._grid, self.window)

    def _missing(self, gene: str) -> str:
        sdata = self.sdata
        known = [
            self._measured_genes.tolist(),
            *(raster.coords["c"].values.tolist() for _, raster, _ in self._rasters.values()),
        ]
        if not any(known):
            return (
                f"No table {self.measured!r} and no images '{self.denoised}_map' or '{self.predicted}_map'; there are "
                f"the tables {sorted(sdata.tables)} and the images {sorted(sdata.images)}."
            )
        names = pd.unique(np.concatenate(known))
        return f"No gene {gene!r}; there are {len(names)}, such as {names[:10].tolist()}."

    def _trust(self) -> NDArray[np.floating[Any]]:
        """(rows, columns) trust in the predictions, NaN outside the tissue."""
        key = f"{self.predicted}_trust"
        if key not in self.sdata.images:
            raise KeyError(
                f"No {key!r} among the images {sorted(self.sdata.images)}, so trust is unknown: run "
                "pixel2gene.tl.predict anew, or leave out min_trust."
            )
        part, _ = cut_element(self.sdata, key, self.image_key, self.window, self.longest)
        trust: NDArray[np.floating[Any]] = part.to_numpy()[0]
        return trust

    def _has_sd(self, gene: str) -> bool:
        table = self.sdata.tables.get(self.predicted)
        labels = f"{self.predicted}_superpixels"
        return table is not None and "sd" in table.layers and gene in table.var_names and labels in self.sdata.labels

    def _sd(self, gene: str) -> NDArray[np.float32]:
        """(rows, columns) standard deviations of the prediction, NaN outside the tissue."""
        table = self.sdata.tables[self.predicted]
        ((region, rows, ids),) = annotated(table, self.predicted)
        found, _ = label_positions(self.sdata, region, ids, self.image_key, self.window, self.longest)
        sd = _column(table[:, gene].layers["sd"])[rows]
        return np.where(found >= 0, sd[found], np.nan).astype(np.float32)

    def _score(self, gene: str, key: str | None = None) -> float:
        """Out-of-fold Pearson that the table of a result tells, the prediction by default; NaN where it does not."""
        table = self.sdata.tables.get(key or self.predicted)
        if table is None or "pearson" not in table.var or gene not in table.var_names:
            return float("nan")
        return float(table.var.at[gene, "pearson"])

    def _title(self, key: str, gene: str) -> str:
        """Second line of a title."""
        score = self._score(gene, key)
        return "" if np.isnan(score) else f"\nout-of-fold Pearson {score:.2f}"


def brightest(panels: dict[str, Panel]) -> float:
    """Upper end of the colour scale: where nearly all is zero, the maximum."""
    values = np.concatenate([panel.reliable for name, panel in panels.items() if name != "sd"])
    if values.size == 0:
        return 1.0
    return float(np.percentile(values, _BRIGHTEST)) or float(values.max()) or 1.0


def filled_window(panels: Iterable[Panel], whole: Window) -> Window:
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


def _column(values: Any) -> NDArray[np.floating[Any]]:
    """One column of a table, dense."""
    column: NDArray[np.floating[Any]] = csr_array(values).toarray().ravel()
    return column
