from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely

from pixel2gene.spatial.spots import lattice, radii


def hexagonal(radius: float, pitch: float = 200.0, n: int = 12) -> gpd.GeoDataFrame:
    row, column = (index.ravel() for index in np.indices((n, n)))
    centres = np.stack([(column + row % 2 / 2) * pitch, row * pitch * np.sqrt(3) / 2], axis=1)
    # Turned, and in whole pixels as Space Ranger writes them.
    turn = np.array([[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]])
    return circles(np.rint(centres @ turn), radius)


def circles(centres: np.ndarray, radius: float) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"radius": np.full(len(centres), radius)}, geometry=shapely.points(centres))


def test_visium_spots_measure_within_55_microns_whatever_the_files_say() -> None:
    drawn, by_design = hexagonal(65.0), hexagonal(55.0)
    assert radii(drawn) == pytest.approx(np.full(144, 55.0), rel=2e-3)
    np.testing.assert_array_equal(radii(by_design), 55.0)
    found = lattice(drawn)
    assert found is not None
    assert found.neighbours == 6
    assert found.pitch == pytest.approx(200, rel=2e-3)


def test_other_circles_are_as_wide_as_drawn() -> None:
    square = circles(np.argwhere(np.ones((10, 10))) * 100.0, 32.5)
    few = hexagonal(65.0, n=2)
    cells = hexagonal(65.0)
    cells["radius"] = np.linspace(55, 75, len(cells))
    scattered = circles(np.random.default_rng(0).uniform(0, 1000, (100, 2)), 32.5)
    for shapes in (square, few, cells, scattered):
        np.testing.assert_array_equal(radii(shapes), shapes["radius"])
