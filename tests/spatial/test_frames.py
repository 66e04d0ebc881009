"""What lies where on the H&E, whatever frame, chunks or numbers it is given in."""

from __future__ import annotations

from typing import Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine

from pixel2gene.spatial.geometry import affine, square_pixels
from pixel2gene.spatial.grid import Grid, superpixel_grid
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.overlap import label_overlap, overlap

Matrix = NDArray[np.float64]
KEYS = ("polygons", "circles", "labels", "points")
# Off all lines of the grid, on which rounding decides to which side a point or the sample of a label belongs.
OFF = 0.1234


def similarity(angle: float, scale: float, dx: float, dy: float, mirror: bool) -> Matrix:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, dx], [s, c, dy], [0, 0, 1]]) @ np.diag([-1 if mirror else 1, 1, 1])


def mapped(matrix: Matrix) -> dict[str, Any]:
    return {"global": Affine(matrix, ("x", "y"), ("x", "y"))}


frames = st.builds(
    similarity,
    st.one_of(st.sampled_from([0, np.pi / 2, np.pi, -np.pi / 2]), st.floats(-4, 4)),
    st.floats(0.05, 20),
    st.floats(-1e4, 1e4),
    st.floats(-1e4, 1e4),
    st.booleans(),
)
# From the pixels of labels, say, to those of the image: also anisotropic and sheared.
placed = st.builds(
    lambda angle, x, y, dx, dy, shear: (
        similarity(angle, 1, dx + OFF, dy + OFF, False) @ [[x, shear, 0], [0, y, 0], [0, 0, 1]]
    ),
    st.sampled_from([0, 0.3, np.pi / 2]),
    st.floats(2, 9),
    st.floats(2, 9),
    st.integers(-20, 40),
    st.integers(-20, 40),
    st.sampled_from([0.0, 1.5]),
)
# Of the image in superpixels: never square twice, one superpixel too.
sizes = st.sampled_from([(1, 1), (1, 5), (4, 3), (6, 2)])


def slide(size: tuple[int, int], frame: Matrix, place: Matrix, seed: int) -> SpatialData:
    """An image, and units of all kinds on and beside it."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 8, (5, 2))
    turns = np.sort(rng.uniform(0, 2 * np.pi, (5, 7)))
    corners = xy[:, None] + rng.uniform(0.5, 3, (5, 7, 1)) * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    polygons = gpd.GeoDataFrame(geometry=shapely.convex_hull(shapely.multipoints(corners)))
    circles = gpd.GeoDataFrame({"radius": rng.uniform(0.3, 2, 5)}, geometry=gpd.points_from_xy(*xy.T))
    systems = mapped(frame @ place)
    return SpatialData(
        images={
            "he": Image2DModel.parse(np.zeros((3, 16 * size[0], 16 * size[1]), np.uint8), transformations=mapped(frame))
        },
        labels={"labels": Labels2DModel.parse(rng.integers(0, 4, (6, 9)), transformations=systems)},
        points={"points": PointsModel.parse(pd.DataFrame(xy, columns=["x", "y"]), transformations=systems)},
        shapes={
            "polygons": ShapesModel.parse(polygons, transformations=systems),
            "circles": ShapesModel.parse(circles, transformations=systems),
        },
    )


def shares(sdata: SpatialData, key: str, grid: Grid, turn: Matrix | None = None) -> NDArray[np.float32]:
    """(units, rows, columns) overlap."""
    matrix = grid.from_pixels @ affine(sdata, key, "he")
    shape = grid.shape
    if turn is not None:
        matrix, shape = turn @ matrix, shape[::-1]
    ids = [1, 2, 3] if key == "labels" else np.arange(5)
    return np.asarray(overlap(sdata[key], ids, matrix, shape).toarray().reshape(-1, *shape))


@settings(deadline=None, max_examples=25)
@given(sizes, frames, placed, st.integers(0, 1000))
def test_the_frame_does_not_matter(size: tuple[int, int], frame: Matrix, place: Matrix, seed: int) -> None:
    plain, moved = slide(size, np.eye(3), place, seed), slide(size, frame, place, seed)
    grid = superpixel_grid(moved, "he", 0.5)
    assert grid.shape == size
    for key in KEYS:
        np.testing.assert_allclose(shares(moved, key, grid), shares(plain, key, grid), atol=1e-4, err_msg=key)


@settings(deadline=None, max_examples=25)
@given(sizes, placed, st.integers(0, 1000))
def test_a_turned_slide_has_the_turned_overlap(size: tuple[int, int], place: Matrix, seed: int) -> None:
    sdata = slide(size, np.eye(3), place, seed)
    grid = superpixel_grid(sdata, "he", 0.5)
    turn = np.array([[0, -1, size[0]], [1, 0, 0], [0, 0, 1.0]])
    for key in KEYS:
        expected = np.rot90(shares(sdata, key, grid), -1, axes=(1, 2))
        np.testing.assert_allclose(shares(sdata, key, grid, turn), expected, atol=1e-5, err_msg=key)


@settings(deadline=None, max_examples=50)
@given(placed, st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_labels_of_any_pixels_keep_their_area(place: Matrix, rows: int, columns: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(1, 4, (rows, columns))
    # Far inside the grid.
    matrix = np.array([[1, 0, 15], [0, 1, 15], [0, 0, 1]]) @ np.diag([1 / 16, 1 / 16, 1]) @ place
    found = label_overlap(da.from_array(labels), np.array([1, 2, 3]), matrix, (30, 30)).sum(axis=1)
    pixel = abs(np.linalg.det(matrix[:2, :2]))
    np.testing.assert_allclose(found, [pixel * (labels == one).sum() for one in (1, 2, 3)], rtol=1e-5)


def chunks(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    cuts = st.sets(st.integers(1, size - 1), max_size=4).map(sorted)
    return cuts.map(lambda at: tuple(np.diff([0, *at, size]).tolist()))


@settings(deadline=None, max_examples=25)
@given(chunks(37), chunks(53), st.sampled_from([1.0, 1.7, 4.0]))
def test_chunks_of_rasters_do_not_show(rows: tuple[int, ...], columns: tuple[int, ...], scale: float) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (3, 37, 53), np.uint8), rng.integers(0, 6, (37, 53))
    whole, cut = (
        open_image(
            SpatialData(images={"he": Image2DModel.parse(da.from_array(pixels, chunks=how), dims=("c", "y", "x"))}),
            "he",
        )
        for how in (-1, (3, rows, columns))
    )
    np.testing.assert_array_equal(cut.read(scale, -2, 12, -1, 20), whole.read(scale, -2, 12, -1, 20))
    matrix = similarity(0.2, 0.3, OFF, -2, mirror=False)
    areas = [
        label_overlap(da.from_array(labels, chunks=how), np.arange(1, 6), matrix, (12, 16)).toarray()
        for how in (-1, (rows, columns))
    ]
    np.testing.assert_allclose(areas[1], areas[0], atol=1e-6)


def test_a_million_instances_of_large_ids() -> None:
    side = 1000
    ids = np.linspace(1, 2**31 - 1, side**2).astype(np.int64)
    labels = np.random.default_rng(0).permutation(ids).reshape(side, side).astype(np.int32)
    found = label_overlap(da.from_array(labels, chunks=400), ids, np.diag([1 / 8, 1 / 8, 1]), (125, 125))
    assert found.shape[0] == len(np.unique(ids)) == side**2
    np.testing.assert_array_equal(np.diff(found.indptr), 1)
    np.testing.assert_allclose(found.data, 1 / 64)
    place = np.empty(side**2, np.int64)
    place[np.searchsorted(ids, labels.ravel())] = (np.indices((side, side)) // 8 * [[[125]], [[1]]]).sum(axis=0).ravel()
    np.testing.assert_array_equal(found.indices, place)


def test_ids_of_more_than_a_million_superpixels_are_exact() -> None:
    ids = Grid((4200, 4100), 16, {}).ids(np.ones((4200, 4100), bool))
    # Single precision would round from 2**24 on.
    assert ids[-1, -1] == 4200 * 4100 and ids[-1, -2] == ids[-1, -1] - 1


@settings(deadline=None)
@given(frames, st.floats(-4, 4), st.floats(0.5, 2))
def test_shear_is_refused_in_whatever_direction(frame: Matrix, angle: float, stretch: float) -> None:
    sheared = frame @ similarity(angle, 1, 0, 0, mirror=False) @ np.diag([stretch, 1, 1])
    large, small = max(stretch, 1), min(stretch, 1)
    if large < small * 1.0099:
        assert square_pixels(sheared) == pytest.approx(square_pixels(frame) * np.sqrt(stretch), rel=1e-6)
    elif large > small * 1.0101:
        with pytest.raises(ValueError, match="depending on their direction; a similarity"):
            square_pixels(sheared)
