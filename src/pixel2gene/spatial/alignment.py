"""Counts and histology, brought together at all shifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from spatialdata import SpatialData
from tqdm.auto import tqdm

from pixel2gene.core.alignment import Alignment, find_alignment, region_sums, split_regions
from pixel2gene.core.encoders.colour import stain_density
from pixel2gene.spatial.elements import compute
from pixel2gene.spatial.grid import SUPERPIXEL_UM, Grid, superpixel_grid
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import lazy_statistics
from pixel2gene.spatial.units import Units, measured_area, measured_units

type Floats = NDArray[np.float64]

RESOLUTION = 4.0  # µm per pixel of the histology
FEWEST = 50
# Ratio of the areas of large to those of small units, up to which they are bins or spots.
ALIKE = 1.2
# Ways in which counts and image come to be mirrored, as maps of positions on a grid of (width, height).
MIRRORS: dict[str, Callable[[Floats, int, int], Floats]] = {
    "as they are": lambda xy, width, height: xy,
    "with y flipped": lambda xy, width, height: xy * (1, -1) + (0, height),
    "with x flipped": lambda xy, width, height: xy * (-1, 1) + (width, 0),
    "with x and y swapped": lambda xy, width, height: xy[:, ::-1],
    "turned by 180°": lambda xy, width, height: np.array([width, height]) - xy,
}


def measure_alignment(
    sdata: SpatialData,
    image_key: str,
    key: str,
    mpp: float,
    *,
    layer: str | None,
    max_shift: float,
    progress: bool,
) -> Alignment:
    """Compare the density of counts with that of haematoxylin and eosin at shifts of up to `max_shift` µm.

    Raises
    ------
    KeyError
        If there is no such image, table, points element or layer.
    ValueError
        If the image is no H&E, the values are no counts, or too few units lie on the image or have counts.
    """
    slide = open_image(sdata, image_key)
    grid = superpixel_grid(sdata, image_key, mpp)
    units = measured_units(sdata, key, image_key, grid, layer)
    centres, area, counts = _places(units, grid)
    if len(counts) < FEWEST or not counts.any():
        raise ValueError(
            f"{len(counts)} units of {key!r} lie on image {image_key!r}, with {counts.sum():g} counts; at least "
            f"{FEWEST} units with counts are needed to tell how they are aligned."
        )
    # The square root steadies the variance of counts (Anscombe, 1948).
    density = np.sqrt(counts / area)
    side = SUPERPIXEL_UM * float(np.sqrt(np.median(area)))
    positions = centres * (SUPERPIXEL_UM / RESOLUTION)
    # A third more, by which rotation moves the outermost regions.
    reach = 3 * round(max_shift / RESOLUTION / 2)
    # Standard deviation of a square along an axis, of which units are the mean.
    blur = side / np.sqrt(12) / RESOLUTION
    border = reach + 2 + int(np.ceil(4 * blur))
    regions = []
    for part in tqdm(split_regions(positions), desc="check alignment", disable=not progress, leave=False):
        xy = positions[part]
        (x0, y0), (x1, y1) = np.floor(xy.min(axis=0)).astype(int) - border, np.ceil(xy.max(axis=0)).astype(int) + border
        stains = _stains(slide.read(RESOLUTION / mpp, y0, y1, x0, x1))
        smooth = ndimage.gaussian_filter(stains, (0, blur, blur))
        regions.append(region_sums(xy, density[part], smooth, (x0, y0), reach))
    return find_alignment(regions, RESOLUTION, side)


def mirrored(
    sdata: SpatialData, image_key: str, key: str, mpp: float, *, layer: str | None, progress: bool
) -> dict[str, float]:
    """Multiple correlation of the density of counts with haematoxylin and eosin, by how counts would be mirrored."""
    slide = open_image(sdata, image_key)
    grid = superpixel_grid(sdata, image_key, mpp)
    centres, area, counts = _places(measured_units(sdata, key, image_key, grid, layer), grid)
    density = np.sqrt(counts / area)
    stains = _stains(compute(lazy_statistics(slide, grid.shape, mpp), "check alignment", progress)[:3])
    smooth = ndimage.gaussian_filter(stains, (0, *[np.sqrt(np.median(area) / 12)] * 2))
    found = {}
    for name, mirror in MIRRORS.items():
        # Centres of superpixels are at halves.
        place = mirror(centres, grid.shape[1], grid.shape[0])[:, ::-1].T - 0.5
        features = np.stack([ndimage.map_coordinates(stain, place, order=1, mode="nearest") for stain in smooth])
        terms = np.stack([np.ones_like(density), *features], axis=1)
        expected = terms @ np.linalg.lstsq(terms, density)[0]
        found[name] = float(expected.std() / density.std())
    return found


def _places(units: Units, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n, 2) centres in grid coordinates, areas in superpixels and counts: of bins and spots, or of superpixels.

    Cells are brought onto the superpixels: they lie where nuclei are, so that what tells their place is where there
    are none. They are known by their areas, which differ.
    """
    area = np.asarray(units.overlap.sum(axis=1, dtype=np.float64)).ravel()
    counts = np.asarray(units.counts.sum(axis=1, dtype=np.float64)).ravel()
    small, typical, large = np.quantile(area[area > 0], [0.1, 0.5, 0.9])
    # Slivers at the border of the image have little but noise.
    whole = area > typical / 10
    if large < ALIKE * small:
        return units.centres(grid)[whole], area[whole], counts[whole]
    shares = units.overlap[whole]
    occupied = np.asarray(shares.sum(axis=0)).reshape(grid.shape) > 0
    measured = np.flatnonzero(measured_area(occupied))
    return grid.centres[measured], np.ones(len(measured)), (shares.T @ (counts[whole] / area[whole]))[measured]


def _stains(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, y, x) haematoxylin and eosin density."""
    stains: NDArray[np.float32] = stain_density(torch.from_numpy(rgb)[None])[0].numpy()
    return stains
