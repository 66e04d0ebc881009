"""Lattices of spots, and how wide spots are."""

from __future__ import annotations

from typing import NamedTuple

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_SAMPLE = 5000
_NEIGHBOURS = 7  # one more than a lattice has
# Radius as a share of the pitch of 100 µm: by design, and in the files of Space Ranger, which draw spots of 65 µm.
_VISIUM, _VISIUM_DRAWN = 0.275, 0.325


class Lattice(NamedTuple):
    """Regular array of circles: neighbours of each, their distance, and the radius as a share of it."""

    neighbours: int
    pitch: float
    width: float


def lattice(shapes: gpd.GeoDataFrame) -> Lattice | None:
    """Find the lattice that circles of one size lie on; None of other shapes, and of too few."""
    if set(shapes.geom_type) != {"Point"} or "radius" not in shapes or len(shapes) <= _NEIGHBOURS:
        return None
    radius = shapes["radius"].to_numpy(float)
    if np.ptp(radius) > 1e-3 * radius.max():
        return None
    centres = shapely.get_coordinates(shapes.geometry.to_numpy())
    sample = centres[:: len(centres) // _SAMPLE + 1]
    distance = cKDTree(centres).query(sample, k=_NEIGHBOURS + 1)[0][:, 1:]
    near = distance < 1.2 * np.median(distance[:, 0])
    pitch = float(np.median(distance[near]))
    # Points at the border have fewer neighbours.
    return Lattice(int(np.percentile(near.sum(axis=1), 75)), pitch, float(radius[0]) / pitch)


def radii(shapes: gpd.GeoDataFrame) -> NDArray[np.float64]:
    """(n,) radius within which each circle measures: that of its column, but 27.5 µm of Visium spots drawn as 32.5."""
    drawn: NDArray[np.float64] = shapes["radius"].to_numpy(float)
    found = lattice(shapes)
    if found is None or found.neighbours != 6 or abs(found.width - _VISIUM_DRAWN) > 0.01:
        return drawn
    return np.full(len(drawn), _VISIUM * found.pitch)
