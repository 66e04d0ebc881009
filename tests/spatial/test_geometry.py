import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from pixel2gene.spatial.geometry import affine, raster_levels, square_pixels


def image(transformations, scale_factors=None):
    return Image2DModel.parse(
        np.zeros((3, 40, 60), np.uint8),
        dims=("c", "y", "x"),
        scale_factors=scale_factors,
        transformations=transformations,
    )


def spots(transformations):
    frame = gpd.GeoDataFrame({"radius": [1.0, 1.0]}, geometry=[Point(1, 2), Point(3, 4)])
    return ShapesModel.parse(frame, transformations=transformations)


def rotation(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_affine_goes_through_the_shared_system(scale_factors):
    to_global = Affine(np.array([[0, -2, 5], [2, 0, 7], [0, 0, 1.0]]), ("x", "y"), ("x", "y"))
    sdata = SpatialData(
        images={"he": image({"global": to_global}, scale_factors)},
        shapes={"spots": spots({"global": Sequence([Scale([4, 4], ("x", "y")), Translation([1, 2], ("x", "y"))])})},
    )
    x, y, _ = affine(sdata, "spots", "he") @ [1, 2, 1]
    # The spot lies at (5, 10) in the global system.
    assert (-2 * y + 5, 2 * x + 7) == pytest.approx((5, 10))


def test_affine_of_every_kind_of_element():
    scale = {"global": Scale([3, 3], ("x", "y"))}
    points = PointsModel.parse(
        pd.DataFrame({"x": [1.0], "y": [2.0], "z": [3.0]}),
        transformations={"global": Scale([3, 3, 9], ("x", "y", "z"))},
    )
    labels = Labels2DModel.parse(np.ones((8, 8), int), dims=("y", "x"), scale_factors=[2], transformations=scale)
    sdata = SpatialData(
        images={"he": image({"global": Identity()}, [2]), "low": image(scale)},
        labels={"cells": labels},
        points={"transcripts": points},
        shapes={"spots": spots(scale)},
    )
    for key in ("low", "cells", "transcripts", "spots"):
        np.testing.assert_allclose(affine(sdata, key, "he"), np.diag([3, 3, 1]))
    np.testing.assert_array_equal(affine(sdata, "he", "he"), np.eye(3))


def test_affine_tolerates_half_a_pixel_between_systems():
    def offset(by):
        systems = {"a": Identity(), "b": Translation([by, 0], ("x", "y"))}
        return SpatialData(images={"he": image({"a": Identity(), "b": Identity()})}, shapes={"spots": spots(systems)})

    np.testing.assert_array_equal(affine(offset(0.4), "spots", "he"), np.eye(3))
    with pytest.raises(ValueError, match=r"disagree .*'a' 0\.0 px, 'b' 0\.6 px"):
        affine(offset(0.6), "spots", "he")


def test_affine_sees_disagreement_far_from_the_origin():
    systems = {"a": Identity(), "b": Scale([1.02, 1.02], ("x", "y"))}
    sdata = SpatialData(images={"he": image({"a": Identity(), "b": Identity()})}, shapes={"spots": spots(systems)})
    with pytest.raises(ValueError, match=r"'b' 1\.2 px"):
        affine(sdata, "spots", "he")


def test_affine_without_shared_system_lists_both():
    sdata = SpatialData(images={"he": image({"left": Identity()})}, shapes={"spots": spots({"right": Identity()})})
    with pytest.raises(ValueError, match=r"no coordinate system: 'spots' is in \['right'\], 'he' in \['left'\]"):
        affine(sdata, "spots", "he")


def test_affine_lists_the_keys_there_are():
    sdata = SpatialData(images={"he": image({"global": Identity()})}, shapes={"spots": spots({"global": Identity()})})
    with pytest.raises(KeyError, match=r"'bins'.*\['he', 'spots'\]"):
        affine(sdata, "bins", "he")
    with pytest.raises(KeyError, match=r"'spots' among the images; there are \['he'\]"):
        affine(sdata, "spots", "spots")


def test_square_pixels_of_similarities():
    moved = rotation(0.7) @ np.diag([2.5, -2.5, 1]) @ np.array([[1, 0, 9], [0, 1, -4], [0, 0, 1]])
    assert square_pixels(moved) == pytest.approx(2.5)
    assert square_pixels(np.diag([1, 1.009, 1])) == pytest.approx(1.0045, abs=1e-4)


@pytest.mark.parametrize(
    "matrix", [np.diag([1, 1.02, 1]), [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]], np.diag([0, 0, 1]), np.diag([1, 0, 1])]
)
def test_square_pixels_refuses_other_transforms(matrix):
    with pytest.raises(ValueError, match="a similarity"):
        square_pixels(matrix)


def test_raster_levels_start_at_full_resolution():
    assert [level.sizes["x"] for level in raster_levels(image({"global": Identity()}, [2, 2]))] == [60, 30, 15]
    assert [level.sizes["x"] for level in raster_levels(image({"global": Identity()}))] == [60]
