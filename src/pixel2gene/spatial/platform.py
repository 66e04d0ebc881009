"""What the platform did to the counts of a slide, brought into how its units are taken to measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.platform import (
    NO_EFFECTS,
    Capture,
    Platform,
    Stripes,
    blur,
    capture_field,
    diffusion_width,
    stripes,
)
from pixel2gene.core.regression import Measurement, Recipe, predict_units
from pixel2gene.spatial.grid import SUPERPIXEL_UM, Grid
from pixel2gene.spatial.measured import Measured
from pixel2gene.spatial.units import Units

# Capture is what so many groups of genes share. The most abundant genes, which have most of the counts, suffice.
GROUPS, MOST_GENES = 8, 1_000


def find_stripes(units: Units, measured: Measured) -> Stripes | None:
    """Stripes of an array of bins; None of what is no array."""
    if units.array is None:
        return None
    row, column = units.array[measured.rows].T
    return stripes(measured.totals, row, column)


def find_diffusion(units: Units, measured: Measured, grid: Grid) -> float:
    """Standard deviation of the drift in µm; 0 where none is clear, and for spots and cells, which do not show it."""
    if not measured.gapless:
        return 0.0
    tissue = np.zeros(grid.size, bool)
    tissue[measured.superpixels] = True
    totals = np.asarray(units.counts.sum(axis=1, dtype=np.float64)).ravel()
    found = diffusion_width(totals, units.overlap, tissue.reshape(grid.shape))
    return found.width * SUPERPIXEL_UM if found.kept else 0.0


def with_effects(units: Units, measured: Measured, grid: Grid, known: Platform | None = None) -> Measured:
    """Let units measure what the platform made of the tissue: with its stripes, and with molecules that drifted.

    Parameters
    ----------
    units, measured, grid
        Of the slide.
    known
        What was found when a model was fitted to the slide; found anew where it is None.
    """
    lines = find_stripes(units, measured)
    drift = find_diffusion(units, measured, grid) if known is None else known.diffusion_um
    platform = Platform(diffusion_um=drift)
    if lines is not None:
        platform = replace(platform, row_stripes=lines.rows.kept_sd, column_stripes=lines.columns.kept_sd)
        measured = replace(measured, efficiency=lines.factor)
    if drift > 0:
        blurred = blur(units.overlap[measured.rows], grid.shape, drift / SUPERPIXEL_UM)
        measured = replace(measured, collects=csr_array(blurred[:, measured.superpixels]))
    return replace(measured, platform=platform)


def seeks_capture(recipe: Recipe | PaperRecipe, measured: Measured) -> bool:
    """Whether capture is looked for.

    The published recipe knows none; the totals of units tell it themselves; and in some hundred spots it is found where
    there is none, too.
    """
    return isinstance(recipe, Recipe) and not recipe.library_size and measured.gapless


def find_capture(
    network: Ensemble, data: Measurement, centres: NDArray[np.floating], device: torch.device
) -> Capture | None:
    """Find capture that varies over one slide, by what the members expect of units that they did not see.

    None where there are too few genes to tell it from what they do not share.
    """
    totals = np.asarray(data.counts.sum(axis=0)).ravel()
    by_counts = np.argsort(-totals, kind="stable")[:MOST_GENES]
    counted = by_counts[totals[by_counts] > 0]
    if len(counted) < GROUPS:
        return None
    # Of about as many counts each.
    dealt = np.eye(GROUPS, dtype=np.float32)[np.arange(len(counted)) % GROUPS]
    expected = np.empty((len(data.fold), GROUPS))
    for units, mean in predict_units(network, data, device, held_out=True, genes=torch.from_numpy(counted).to(device)):
        expected[units] = mean @ dealt
    return capture_field(np.asarray(data.counts[:, counted] @ dealt), expected, centres)


def with_capture(
    data: Measurement, measured: Measured, found: Capture | None, *, known: bool = False
) -> tuple[Measurement, Measured]:
    """Let the units of a slide catch what is found that they do, if it is clear, or was when the model was fitted."""
    if found is None or not (found.kept or (known and found.sd > 0)):
        return data, measured
    return (
        replace(data, depth=(data.depth * found.factor).astype(np.float32)),
        replace(
            measured,
            efficiency=measured.efficiency * found.factor,
            platform=replace(measured.platform, capture=found.sd),
        ),
    )


def without_effects(data: Measurement, measured: Measured) -> Measurement:
    """The units of a slide, had the platform done nothing to their counts; `data` itself where it did not."""
    if measured.platform == NO_EFFECTS:
        return data
    return replace(data, overlap=measured.overlap, depth=(data.depth / measured.efficiency).astype(np.float32))
