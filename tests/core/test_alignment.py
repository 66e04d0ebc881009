"""Shifts of values against features that tell them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LinearRegression

from pixel2gene.core.alignment import Alignment, RegionSums, find_alignment, region_sums, split_regions

REACH = 18
SIDE = 260


def features(seed: int = 0) -> NDArray[np.float64]:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, SIDE, SIDE)), (0, 2, 2))
    return smooth / smooth.std()


def values_at(image: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixel i has its centre at i + 0.5."""
    return np.stack([ndimage.map_coordinates(channel, (xy - 0.5).T[::-1], order=1) for channel in image])


def all_sums(xy: NDArray[np.float64], values: NDArray[np.float64], image: NDArray[np.float64]) -> list[RegionSums]:
    return [region_sums(xy[part], values[part], image, (0, 0), REACH) for part in split_regions(xy)]


def lattice(n: int = 40, pitch: float = 2.1) -> NDArray[np.float64]:
    return np.stack(np.indices((n, n)).reshape(2, -1), axis=1) * pitch + 87


def find(
    shift: tuple[float, float] = (0, 0), degrees: float = 0.0, noise: float = 0.5, seed: int = 0, bin_um: float = 4.0
) -> Alignment:
    """Units that belong at `xy` but were put elsewhere."""
    rng = np.random.default_rng(seed)
    xy, image = lattice(), features(seed)
    values = 3 * values_at(image, xy)[0] - values_at(image, xy)[1] + noise * rng.normal(size=len(xy))
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    moved = (xy - xy.mean(axis=0)) @ turn + xy.mean(axis=0) + shift
    return find_alignment(all_sums(moved, values, image), 2.0, bin_um)


@pytest.mark.parametrize("shift", [(0, 0), (3.3, -2.2), (-9.5, 4), (0, 8.6)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_shift_is_found(shift: tuple[float, float], seed: int) -> None:
    found = find(shift, seed=seed)
    assert found.shift == pytest.approx(np.array(shift) * 2, abs=0.5)
    assert found.known
    assert found.off == (shift != (0, 0))
    assert found.bin_um == 4.0


@pytest.mark.parametrize("degrees", [-1.2, 1.5])
def test_a_planted_rotation_is_found(degrees: float) -> None:
    found = find((2, 1), degrees, noise=0.2, bin_um=1.0)
    assert found.rotation == pytest.approx(degrees, abs=max(0.15, 3 * found.rotation_sd))
    assert found.rotation_sd < 0.3
    assert found.shift == pytest.approx((4, 2), abs=0.6)
    assert found.off


def test_the_standard_deviation_is_that_of_repeats() -> None:
    found = [find((1, 1), noise=3, seed=seed) for seed in range(12)]
    spread = np.std([each.shift for each in found])
    assert 0.4 < np.mean([each.sd for each in found]) / spread < 2.5


def test_values_that_features_do_not_tell_have_no_place() -> None:
    found = [find(noise=1e4, seed=seed) for seed in range(6)]
    assert not any(each.known or each.off for each in found)


def test_a_shift_beyond_those_looked_at_is_not_taken_for_one() -> None:
    found = find((30, 0))
    assert not found.off


@settings(deadline=None, max_examples=15)
@given(st.integers(-12, 12), st.integers(-12, 12), st.integers(0, 20))
def test_correlation_is_that_of_least_squares(x: int, y: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, xy = features(seed), rng.uniform(100, 160, (60, 2))
    xy = np.floor(xy) + 0.5
    values = rng.normal(size=60)
    found = find_alignment(all_sums(xy, values, image), 1.0, 1.0)
    reach = len(found.shifts) // 2
    # Units that lie off by (x, y) belong at the opposite.
    home = values_at(image, xy - (x, y)).T
    expected = LinearRegression().fit(home, values).score(home, values)
    assert found.correlation[reach + y, reach + x] == pytest.approx(np.sqrt(expected), rel=1e-4)
    assert (found.shifts[reach + x], found.shifts[reach]) == (x, 0)


def test_regions_share_the_units_out() -> None:
    xy = np.random.default_rng(0).uniform(0, [1000, 100], (500, 2))
    parts = split_regions(xy)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))
    assert len(parts) == 16 and np.ptp([len(part) for part in parts]) <= 1
    assert max(np.ptp(xy[part], axis=0).max() for part in parts) < 200
    assert len(split_regions(xy * 1000)) == 64
