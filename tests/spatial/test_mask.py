import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, Sequence, Translation

from pixel2gene.spatial.elements import labels_element
from pixel2gene.spatial.grid import superpixel_grid
from pixel2gene.spatial.mask import read_mask

HERE = {"global": Identity()}
SIDE = 16


@pytest.fixture(scope="module")
def slide():
    image = Image2DModel.parse(np.zeros((3, 160, 192), np.uint8), dims=("c", "y", "x"), transformations=HERE)
    sdata = SpatialData(images={"he": image})
    return sdata, superpixel_grid(sdata, "he", 0.5)


def masked(slide, element, key="mask"):
    sdata, grid = slide
    return read_mask(SpatialData.init_from_elements({"he": sdata["he"], key: element}), key, "he", grid)


def shapes(*geometries, **columns):
    frame = gpd.GeoDataFrame(columns, geometry=list(geometries))
    return ShapesModel.parse(frame, transformations=HERE)


def test_labels_on_the_grid_are_taken_as_they_are(slide):
    values = np.random.default_rng(0).integers(0, 3, slide[1].shape)
    np.testing.assert_array_equal(masked(slide, labels_element(values, slide[1])), values > 0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7))
def test_of_full_resolution_labels_half_must_be_covered(slide, seed, share):
    values = np.kron(np.random.default_rng(seed).random((40, 48)) < share, np.full((4, 4), 7))
    values[:16, :16] = 7
    element = Labels2DModel.parse(values, dims=("y", "x"), transformations=HERE)
    covered = (values > 0).reshape(10, SIDE, 12, SIDE).mean(axis=(1, 3))
    np.testing.assert_array_equal(masked(slide, element), covered >= 0.5)


def test_labels_of_another_resolution_and_place(slide):
    # Labels of 4 px, moved by 2 superpixels: neither on the grid nor on the image's pixels.
    place = Sequence([Scale([4, 4], axes=("x", "y")), Translation([32, 16], axes=("x", "y"))])
    values = np.zeros((16, 16), np.int32)
    values[4:12, 8:16] = 3
    found = masked(slide, Labels2DModel.parse(values, dims=("y", "x"), transformations={"global": place}))
    expected = np.zeros(slide[1].shape, bool)
    expected[2:4, 4:6] = True
    np.testing.assert_array_equal(found, expected)


def test_labels_of_the_grids_shape_but_elsewhere_are_no_grid(slide):
    values = np.ones(slide[1].shape, np.int32)
    moved = Sequence([Scale([16, 16], axes=("x", "y")), Translation([16, 0], axes=("x", "y"))])
    found = masked(slide, Labels2DModel.parse(values, dims=("y", "x"), transformations={"global": moved}))
    assert found[:, 1:].all() and not found[:, 0].any()


def test_polygons_and_circles(slide):
    found = masked(slide, shapes(shapely.box(16, 0, 55, 32), shapely.box(100, 100, 103, 103)))
    expected = np.zeros(slide[1].shape, bool)
    # Of the fourth column 7 of 16 px are covered.
    expected[:2, 1:3] = True
    np.testing.assert_array_equal(found, expected)
    found = masked(slide, shapes(shapely.Point(80, 80), radius=[40.0]))
    y, x = np.indices(slide[1].shape) * SIDE + SIDE / 2
    distance = np.hypot(x - 80, y - 80)
    assert found[distance < 34].all() and not found[distance > 46].any()


def test_neighbours_cover_a_superpixel_together(slide):
    assert masked(slide, shapes(shapely.box(0, 0, 5, 16), shapely.box(5, 0, 9, 16)))[0, 0]


def test_overlapping_shapes_count_once(slide):
    with pytest.raises(ValueError, match="covers no superpixel"):
        masked(slide, shapes(shapely.box(0, 0, 5, 16), shapely.box(0, 0, 5, 16), shapely.box(1, 0, 5, 16)))


@pytest.mark.parametrize("kind", ["labels", "shapes"])
def test_a_mask_elsewhere_is_refused(slide, kind):
    element = (
        shapes(shapely.box(1000, 1000, 1100, 1100))
        if kind == "shapes"
        else labels_element(np.zeros(slide[1].shape, np.uint8), slide[1])
    )
    with pytest.raises(ValueError, match="'mask' covers no superpixel of image 'he'; check its alignment"):
        masked(slide, element)


def test_an_unknown_mask_lists_those_there_are(slide):
    with pytest.raises(KeyError, match=r"No 'tissue' among the labels, shapes; there are \[\]"):
        read_mask(slide[0], "tissue", "he", slide[1])
