import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation_between_coordinate_systems

from pixel2gene.spatial.elements import labels_element
from pixel2gene.spatial.grid import SUPERPIXEL_UM, Grid, superpixel_grid


def sdata_of(height, width, transformations=None, **options):
    pixels = np.zeros((3, height, width), np.uint8)
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations=transformations or {"global": Identity()}, **options
    )
    return SpatialData(images={"he": image})


@pytest.mark.parametrize(
    ("size", "mpp", "shape"),
    [
        ((512, 256), 0.5, (32, 16)),
        ((513, 255), 0.5, (33, 16)),
        ((7, 1), 1.0, (1, 1)),
        ((2048, 30), 0.5 + 1e-12, (128, 2)),
    ],
)
def test_superpixels_cover_the_image(size, mpp, shape):
    grid = superpixel_grid(sdata_of(*size), "he", mpp)
    assert grid.shape == shape
    assert grid.size == shape[0] * shape[1]
    assert grid.factor == SUPERPIXEL_UM / mpp


def test_of_a_pyramid_the_full_resolution_counts():
    assert superpixel_grid(sdata_of(256, 512, scale_factors=[2, 2]), "he", 0.5).shape == (16, 32)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(1, 40))
def test_ids_and_centres_agree(rows, columns, factor):
    grid = Grid((rows, columns), factor, {})
    ids = grid.ids(np.ones(grid.shape, bool))
    for row in range(rows):
        for column in range(columns):
            assert ids[row, column] == row * columns + column + 1
            np.testing.assert_array_equal(grid.centres[ids[row, column] - 1], [column + 0.5, row + 0.5])
    corner = grid.from_pixels @ [factor * columns, factor * rows, 1]
    np.testing.assert_allclose(corner, [columns, rows, 1])


def test_ids_are_0_outside_the_mask():
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(Grid((2, 2), 16, {}).ids(mask), [[1, 0], [0, 4]])


def test_results_lie_on_the_image_in_every_coordinate_system():
    turned = Affine([[0.6, -0.8, 5], [0.8, 0.6, -7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    sdata = sdata_of(64, 48, {"global": Scale([0.3, 0.3], axes=("x", "y")), "aligned": turned})
    grid = superpixel_grid(sdata, "he", 0.5)
    sdata["labels"] = labels_element(np.zeros(grid.shape, np.uint8), grid)
    for system in ("global", "aligned"):
        to_system = [
            get_transformation_between_coordinate_systems(sdata, sdata[key], system).to_affine_matrix(
                ("x", "y"), ("x", "y")
            )
            for key in ("labels", "he")
        ]
        np.testing.assert_allclose(to_system[0] @ [3, 2, 1], to_system[1] @ [48, 32, 1], atol=1e-9)


def test_an_unknown_image_lists_those_there_are():
    with pytest.raises(KeyError, match=r"'she' among the images; there are \['he'\]"):
        superpixel_grid(sdata_of(8, 8), "she", 0.5)
