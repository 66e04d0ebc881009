"""What was measured on the tissue of a slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array, hstack
from scipy.spatial import cKDTree

from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.platform import NO_EFFECTS, Platform
from pixel2gene.core.regression import Measurement, Recipe
from pixel2gene.spatial.embedded import Embedded
from pixel2gene.spatial.folds import apart_of
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.units import MEASURED_REACH, Units, measured_area

# A unit counts as tissue where at least this share of it is.
TISSUE_SHARE = 0.5
# Side, in superpixels, of the patches whose units are trained on together.
PATCH = 4
# Farthest that a place in a square lattice is from a unit, in pitches.
GAP = 0.71
# Superpixels around the units from which molecules may drift to them.
AROUND = 16


@dataclass(frozen=True)
class Measured:
    """The units of a slide that lie on tissue.

    Attributes
    ----------
    rows
        (used,) positions of these units among all.
    superpixels
        (superpixels,) flat indices of the tissue superpixels under the units, among them and around them.
    features
        (superpixels, channels) their embedding.
    overlap
        (used, superpixels).
    counts
        (used, genes).
    totals
        (used,) counts of all genes, also those that are not modelled.
    centres
        (used, 2) x and y in grid coordinates.
    scale
        (2, channels) mean and standard deviation by which the embedding was standardised.
    collects
        (used, superpixels) share of the molecules of each superpixel that a unit collects: the overlap, unless
        molecules drift.
    efficiency
        (used,) share of them that it catches, relative to a mean of 1.
    platform
        What of the two was found in the counts.
    gapless
        Whether the units tile the measured area, as bins and superpixels do, and spots and cells do not.
    """

    rows: NDArray[np.intp]
    superpixels: NDArray[np.int64]
    features: NDArray[np.float16]
    overlap: csr_array
    counts: csr_array
    totals: NDArray[np.float64]
    centres: NDArray[np.float64]
    scale: NDArray[np.float32]
    collects: csr_array
    efficiency: NDArray[np.float64]
    platform: Platform = NO_EFFECTS
    gapless: bool = False

    @property
    def area(self) -> NDArray[np.float64]:
        """(used,) tissue area of each unit in superpixels."""
        area: NDArray[np.float64] = np.asarray(self.overlap.sum(axis=1, dtype=np.float64))
        return area

    @property
    def density(self) -> float:
        """Counts per superpixel of tissue."""
        return float(self.totals.sum() / self.area.sum())

    def raw(self, superpixels: NDArray[np.intp]) -> NDArray[np.float32]:
        """Embedding as it was written, of the superpixels at these positions."""
        mean, sd = self.scale
        raw: NDArray[np.float32] = self.features[superpixels] * sd + mean
        return raw

    def measurement(self, fold: NDArray[np.int8], depth: float, recipe: Recipe | PaperRecipe) -> Measurement:
        """Say it in the terms of the model; `depth` is that of the slide."""
        # The total of a unit tells what it caught, too.
        own = np.maximum(self.totals, 1) / self.area / self.density if recipe.library_size else self.efficiency
        column, row = (self.centres // PATCH).astype(np.int64).T
        patch = row * (column.max() + 1) + column
        # The published recipe holds out folds only.
        apart = apart_of(self.centres, fold, recipe.folds) if isinstance(recipe, Recipe) else None
        return Measurement(
            self.features, self.collects, self.counts, (depth * own).astype(np.float32), fold, patch, apart=apart
        )


def measure(embedded: Embedded, units: Units, genes: NDArray[np.intp], key: str, *, by_place: bool = False) -> Measured:
    """Bring the counts of `genes` and the embedding together; a gene at position -1 was not measured and has none.

    The units are in the order of the table; `by_place`, in that of their centres, whatever the order of the table is.

    Raises
    ------
    ValueError
        If no unit lies on tissue, or none of those that do has a count.
    """
    near = _near(units, embedded.grid)
    superpixels, features = embedded.tissue(near)
    on_tissue = units.overlap[:, superpixels]
    area, tissue_area = units.overlap.sum(axis=1), on_tissue.sum(axis=1)
    rows = np.flatnonzero((tissue_area > 0) & (tissue_area >= TISSUE_SHARE * area))
    centres = units.centres(embedded.grid)[rows]
    if by_place:
        order = np.lexsort(centres.T)
        rows, centres = rows[order], centres[order]
    counts = units.counts[rows]
    # Position -1 is then that of an empty column.
    padded = hstack([counts, csr_array((len(rows), 1), dtype=counts.dtype)], format="csr") if -1 in genes else counts
    if len(rows) == 0 or counts.nnz == 0:
        raise ValueError(
            f"None of the {len(area)} units of {key!r} lies on the tissue of image {embedded.image_key!r} and has "
            "counts: check the tissue mask (pixel2gene.pl.tissue) and the alignment."
        )
    overlap = csr_array(on_tissue[rows])
    return Measured(
        rows,
        superpixels,
        features,
        overlap,
        csr_array(padded[:, genes]),
        np.asarray(counts.sum(axis=1, dtype=np.float64)),
        centres,
        np.stack([embedded.statistics.mean, embedded.statistics.sd]),
        collects=overlap,
        efficiency=np.ones(len(rows)),
        gapless=units.array is not None or units.superpixels is not None,
    )


def _near(units: Units, grid: Grid) -> NDArray[np.bool_]:
    """(rows, columns) where the embedding matters to units: a slide can be far larger than what was measured of it."""
    covered = np.zeros(grid.size, bool)
    covered[units.overlap.indices] = True
    reach = max(AROUND, _reach(units.centres(grid)))
    near = ndimage.distance_transform_edt(~covered.reshape(grid.shape)) <= reach
    inside: NDArray[np.bool_] = ndimage.binary_fill_holes(near)
    return inside


def _reach(centres: NDArray[np.float64]) -> int:
    """Superpixels within which a place in a lattice of units has one."""
    known = centres[np.isfinite(centres).all(axis=1)]
    pitch = np.median(cKDTree(known).query(known, k=2)[0][:, 1]) if len(known) > 1 else 0.0
    return max(MEASURED_REACH, int(np.ceil(GAP * pitch)))


def gaps_between(measured: Measured, grid: Grid) -> NDArray[np.intp]:
    """Positions of the tissue superpixels that lie among the units, but under none."""
    covered = np.asarray(measured.overlap.sum(axis=0)).ravel() > 0
    occupied = np.zeros(grid.size, bool)
    occupied[measured.superpixels[covered]] = True
    inside = measured_area(occupied.reshape(grid.shape), _reach(measured.centres)).ravel()[measured.superpixels]
    return np.flatnonzero(inside & ~covered)
