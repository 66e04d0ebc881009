"""A painting shows what its layout and its nuclei say."""

import numpy as np
import pytest
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from pixel2gene.datasets._paint import CELL_TYPES, COMPARTMENTS, Painting, paint, smooth_field


@pytest.fixture(scope="module")
def painting() -> Painting:
    return paint((1400, 1500), 0.5, 0)


def part(painting: Painting, name: str) -> np.ndarray:
    """Pixels well inside a compartment."""
    layout = ndi.binary_erosion(painting.compartments == COMPARTMENTS.index(name), iterations=2)
    fine = layout.repeat(4, axis=0).repeat(4, axis=1)
    return fine[: painting.image.shape[1], : painting.image.shape[2]]


def mean_colour(painting: Painting, name: str) -> np.ndarray:
    return painting.image[:, part(painting, name)].mean(1)


def test_shapes(painting: Painting) -> None:
    assert painting.image.shape == (3, 1400, 1500)
    assert painting.image.dtype == np.uint8
    assert painting.compartments.shape == (4 * 88, 4 * 94)
    assert painting.nuclei["x"].between(0, 1500).all()
    assert painting.nuclei["y"].between(0, 1400).all()


def test_every_compartment_and_cell_type_occurs(painting: Painting) -> None:
    assert set(np.unique(painting.compartments)) == set(range(len(COMPARTMENTS)))
    assert set(painting.nuclei["type"]) == set(CELL_TYPES)


def test_colours_are_those_of_haematoxylin_and_eosin(painting: Painting) -> None:
    for name in ("background", "lumen", "fat"):
        assert mean_colour(painting, name).min() > 215
    for name in ("stroma", "tumour", "lymphoid", "necrosis"):
        red, green, blue = mean_colour(painting, name)
        assert green < blue and green < red
    # The more nuclei, the less red light passes.
    reds = [mean_colour(painting, name)[0] for name in ("stroma", "tumour", "lymphoid")]
    assert reds == sorted(reds, reverse=True)


def test_nuclei_are_dark_where_they_are_listed(painting: Painting) -> None:
    nuclei = painting.nuclei[painting.nuclei["type"] != "debris"]
    red = painting.image[0, nuclei["y"].astype(int), nuclei["x"].astype(int)]
    assert np.mean(red < 200) > 0.97
    shifted = painting.image[0, nuclei["y"].astype(int), (nuclei["x"].astype(int) + 400) % 1500]
    assert np.mean(shifted < 200) < 0.6


def test_nuclei_lie_in_their_compartment(painting: Painting) -> None:
    nuclei = painting.nuclei
    kind = painting.compartments[(nuclei["y"] // 4).astype(int), (nuclei["x"] // 4).astype(int)]
    for cell, compartment in (("tumour", "tumour"), ("epithelium", "gland"), ("debris", "necrosis")):
        assert np.mean(kind[nuclei["type"] == cell] == COMPARTMENTS.index(compartment)) > 0.85
    assert not (kind == COMPARTMENTS.index("background")).any()


def test_sizes_in_um(painting: Painting) -> None:
    nuclei = painting.nuclei
    radius = np.sqrt(nuclei["major"] * nuclei["minor"]).groupby(nuclei["type"], observed=True).median() * 0.5
    assert radius["tumour"] > radius["epithelium"] > radius["lymphocyte"] > radius["debris"]
    assert 2.5 < radius["lymphocyte"] < 3.5
    aspect = (nuclei["major"] / nuclei["minor"]).groupby(nuclei["type"], observed=True).median()
    assert aspect["fibroblast"] > 2.5 > aspect["lymphocyte"]


def test_few_nuclei_overlap(painting: Painting) -> None:
    points = painting.nuclei[["x", "y"]].to_numpy() * 0.5
    assert cKDTree(points).query(points, 2)[0][:, 1].min() > 1.5


def test_pixel_size_changes_resolution_not_tissue() -> None:
    fine, coarse = paint((800, 800), 0.5, 3), paint((400, 400), 1.0, 3)
    np.testing.assert_array_equal(fine.compartments, coarse.compartments)
    np.testing.assert_allclose(fine.nuclei["x"] * 0.5, coarse.nuclei["x"])
    shrunk = fine.image.reshape(3, 400, 2, 400, 2).mean((2, 4))
    assert np.corrcoef(shrunk.ravel(), coarse.image.ravel())[0, 1] > 0.95


def test_seed_decides() -> None:
    first, again, other = (paint((256, 300), 0.5, seed).image for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5


@pytest.mark.parametrize("mpp", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_smallest_slides(mpp: float, seed: int) -> None:
    painting = paint((256, 256), mpp, seed)
    assert (painting.compartments > 0).mean() > 0.4
    assert len(painting.nuclei) > 5


@pytest.mark.parametrize("length", [2.0, 20.0])
def test_smooth_field(length: float) -> None:
    field = smooth_field((600, 500), length, np.random.default_rng(0))
    assert field.shape == (600, 500)
    assert field.std() == pytest.approx(1, abs=0.15)
    step = round(length)
    correlation = np.mean(field[step:] * field[:-step]) / field.var()
    assert correlation == pytest.approx(np.exp(-1), abs=0.1)
