import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from shapely import MultiPolygon, Point, Polygon, box
from shapely.affinity import affine_transform
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel

from pixel2gene.spatial import overlap as module
from pixel2gene.spatial.overlap import circle_overlap, label_overlap, overlap, point_overlap, polygon_overlap

EYE = np.eye(3)
SHAPE = (7, 9)


def objects(*geometries):
    array = np.empty(len(geometries), dtype=object)
    array[:] = geometries
    return array


def brute_force(geometries, matrix, shape):
    """Shares by shapely's intersections."""
    (a, b, c), (d, e, f) = matrix[:2]
    rows, columns = np.indices(shape).reshape(2, -1)
    superpixels = shapely.box(columns, rows, columns + 1, rows + 1)
    moved = objects(*(affine_transform(geometry, [a, b, d, e, c, f]) for geometry in geometries))
    return shapely.area(shapely.intersection(moved[:, None], superpixels[None]))


def similarity(angle, scale, dx=0.0, dy=0.0, mirror=False):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, dx], [s, c, dy], [0, 0, 1]]) @ np.diag([-1 if mirror else 1, 1, 1])


def star(radii, x, y):
    """Polygon that is concave where its radii alternate."""
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return Polygon(np.column_stack([x + radii * np.cos(angle), y + radii * np.sin(angle)]))


# Half of the numbers lie on the grid lines, where the kernel's cases meet.
position = st.one_of(st.floats(-4, 13, allow_subnormal=False), st.integers(-4, 13).map(float))
stars = st.builds(star, st.lists(st.floats(0.05, 6), min_size=3, max_size=12).map(np.array), position, position).filter(
    lambda polygon: polygon.is_valid
)
boxes = st.builds(lambda x, y, w, h: box(x, y, x + w, y + h), position, position, st.integers(1, 6), st.floats(0.1, 9))
ringed = st.builds(
    lambda outer, x, y: Polygon(outer.exterior.coords, [star(np.full(5, 0.4), x, y).exterior.coords]),
    boxes,
    position,
    position,
).filter(lambda polygon: polygon.is_valid)
several = st.builds(lambda a, b: MultiPolygon([a, b]), boxes, stars).filter(lambda polygon: polygon.is_valid)
polygons = st.one_of(stars, boxes, ringed, several)
matrices = st.builds(
    lambda angle, scale, dx, dy, mirror, shear: (
        similarity(angle, scale, dx, dy, mirror) @ [[1, shear, 0], [0, 1, 0], [0, 0, 1]]
    ),
    st.one_of(st.sampled_from([0, np.pi / 2, np.pi]), st.floats(0, 7)),
    st.floats(0.2, 2),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.booleans(),
    st.sampled_from([0, 0.5]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(polygons, min_size=1, max_size=4), st.one_of(st.just(EYE), matrices))
def test_polygons_equal_brute_force(geometries, matrix):
    found = polygon_overlap(objects(*geometries), matrix, SHAPE)
    np.testing.assert_allclose(found.toarray(), brute_force(geometries, matrix, SHAPE), atol=3e-6)


@settings(deadline=None)
@given(polygons, matrices)
def test_area_inside_the_grid_is_conserved(polygon, matrix):
    (a, b, c), (d, e, f) = matrix[:2]
    inside = affine_transform(polygon, [a, b, d, e, c, f]).intersection(box(0, 0, SHAPE[1], SHAPE[0])).area
    assert polygon_overlap(objects(polygon), matrix, SHAPE).sum() == pytest.approx(inside, rel=1e-5, abs=1e-4)


@settings(deadline=None)
@given(stars, matrices, st.integers(0, 11), st.booleans())
def test_start_and_direction_of_the_vertices_do_not_matter(polygon, matrix, start, backwards):
    vertices = np.roll(shapely.get_coordinates(polygon)[:-1], start, axis=0)
    same = Polygon(vertices[::-1] if backwards else vertices)
    expected = polygon_overlap(objects(polygon), matrix, SHAPE).toarray()
    np.testing.assert_allclose(polygon_overlap(objects(same), matrix, SHAPE).toarray(), expected, atol=3e-6)


@settings(deadline=None)
@given(polygons)
def test_a_reflected_grid_gives_the_reflected_overlap(polygon):
    height, width = SHAPE
    mirror = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]])
    expected = polygon_overlap(objects(polygon), EYE, SHAPE).toarray().reshape(SHAPE)[:, ::-1]
    found = polygon_overlap(objects(polygon), mirror, SHAPE).toarray().reshape(SHAPE)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_a_hole_is_not_covered():
    ring = Polygon(box(1, 1, 4, 4).exterior.coords, [box(2, 2, 3, 3).exterior.coords])
    covered = polygon_overlap(objects(ring), EYE, (5, 5)).toarray().reshape(5, 5)
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 1
    expected[2, 2] = 0
    np.testing.assert_array_equal(covered, expected)


def test_bins_on_the_grid_give_the_identity():
    rows, columns = np.indices((6, 5)).reshape(2, -1) * 8.0
    found = polygon_overlap(shapely.box(columns, rows, columns + 8, rows + 8), np.diag([1 / 8, 1 / 8, 1]), (6, 5))
    assert isinstance(found, csr_array)
    assert found.dtype == np.float32
    assert found.nnz == 30
    np.testing.assert_array_equal(found.toarray(), np.eye(30))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_tiling_covers_every_superpixel_once(mirror):
    rows, columns = np.indices((80, 80)).reshape(2, -1) * 8.0 - 320
    bins = shapely.box(columns, rows, columns + 8, rows + 8)
    found = polygon_overlap(bins, similarity(0.3, 1 / 7, 15, 15, mirror), (30, 30))
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_units_off_the_grid_and_without_area_have_empty_rows():
    away = [box(x, y, x + 2, y + 2) for x, y in [(-5, 1), (20, 1), (1, -5), (1, 20), (-5, -5), (9, 0), (0, 7)]]
    units = objects(*away, Polygon(), None, Point(1, 1), box(1, 1, 2, 2))
    found = polygon_overlap(units, EYE, SHAPE)
    np.testing.assert_array_equal(np.diff(found.indptr), [0] * 10 + [1])
    assert polygon_overlap(objects(), EYE, SHAPE).shape == (0, 63)
    assert polygon_overlap(units[:9], EYE, SHAPE).nnz == 0


def test_a_polygon_far_larger_than_the_grid_covers_it():
    found = polygon_overlap(objects(box(-1e9, -1e9, 1e9, 1e9)), similarity(0.4, 1), (300, 400))
    np.testing.assert_array_equal(found.toarray(), 1)


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    units = objects(*(star(rng.uniform(0.5, 4, 9), *rng.uniform(0, 8, 2)) for _ in range(50)))
    whole = polygon_overlap(units, EYE, SHAPE).toarray()
    monkeypatch.setattr(module, "_CHUNK", 40)
    np.testing.assert_array_equal(polygon_overlap(units, EYE, SHAPE).toarray(), whole)


def test_circles_have_the_area_of_circles():
    centres, radii = np.array([[3.3, 3.4], [5.0, 3.0], [4.5, 3.5]]), np.array([2.0, 1.0, 0.3])
    found = circle_overlap(centres, radii, EYE, SHAPE)
    np.testing.assert_allclose(found.sum(axis=1), np.pi * radii**2, rtol=1e-5)
    found = circle_overlap(centres[2:], radii[2:], np.array([[2.0, 1, -5], [0, 1, 0], [0, 0, 1]]), SHAPE)
    assert found.sum() == pytest.approx(2 * np.pi * 0.09, rel=1e-4)


def test_circles_equal_discs():
    centre, radius = np.array([[3.3, 3.4]]), np.array([2.7])
    found = circle_overlap(centre, radius, EYE, SHAPE).toarray()
    expected = brute_force([Point(3.3, 3.4).buffer(2.7, quad_segs=500)], EYE, SHAPE)
    np.testing.assert_allclose(found, expected, atol=0.005)


def pixel_polygons(labels, ids):
    """Union of the squares of each label's pixels."""
    squares = [[box(x, y, x + 1, y + 1) for y, x in np.argwhere(labels == label)] for label in ids]
    return objects(*(shapely.union_all(square) for square in squares))


@pytest.mark.parametrize("scale", [0.06, 0.4, 1.0])
def test_labels_equal_the_polygons_of_their_pixels(scale):
    labels = np.random.default_rng(0).integers(0, 5, (12, 13))
    ids, matrix, shape = np.array([3, 1, 4]), similarity(0.2, scale, 4, 1), (20, 20)
    found = label_overlap(da.from_array(labels, chunks=(5, 6)), ids, matrix, shape)
    expected = polygon_overlap(pixel_polygons(labels, ids), matrix, shape)
    np.testing.assert_allclose(found.toarray(), expected.toarray(), atol=0.04)
    np.testing.assert_allclose(found.sum(axis=1), expected.sum(axis=1), rtol=1e-4)


def test_labels_on_a_subdivided_grid_are_exact():
    labels = np.random.default_rng(0).integers(0, 4, (32, 48))
    found = label_overlap(da.from_array(labels, chunks=20), np.array([1, 2, 3]), np.diag([1 / 16, 1 / 16, 1]), (2, 3))
    expected = [np.mean((labels == i).reshape(2, 16, 3, 16), axis=(1, 3)).ravel() for i in (1, 2, 3)]
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)


def test_labels_of_the_grid_itself_give_the_identity(monkeypatch):
    monkeypatch.setattr(module, "_BAND", 2000)
    labels = np.arange(63).reshape(SHAPE) + 1
    found = label_overlap(da.from_array(labels), np.arange(63) + 1, EYE, SHAPE)
    np.testing.assert_allclose(found.toarray(), np.eye(63), rtol=1e-6)
    assert found.dtype == np.float32


def test_labels_that_do_not_occur_have_empty_rows():
    labels = da.from_array(np.array([[0, 7], [7, 0]], dtype=np.uint16))
    np.testing.assert_array_equal(label_overlap(labels, np.array([9, 7, 2]), EYE, (2, 2)).sum(axis=1), [0, 2, 0])
    assert label_overlap(labels, np.array([], dtype=int), EYE, (2, 2)).shape == (0, 4)
    with pytest.raises(ValueError, match="1 duplicates"):
        label_overlap(labels, np.array([7, 7]), EYE, (2, 2))


def test_points_equal_a_histogram():
    xy = np.random.default_rng(0).uniform(-3, 30, (500, 2))
    found = point_overlap(xy, np.diag([0.5, 0.25, 1]), SHAPE)
    expected = np.histogram2d(xy[:, 1] * 0.25, xy[:, 0] * 0.5, bins=(np.arange(8), np.arange(10)))[0]
    np.testing.assert_array_equal(found.sum(axis=0).reshape(SHAPE), expected)
    assert set(np.diff(found.indptr)) == {0, 1}
    assert point_overlap(xy[:0], EYE, SHAPE).shape == (0, 63)


def squares_and_spots():
    index = ["c", "a", "b"]
    squares = gpd.GeoDataFrame(geometry=[box(x, 0, x + 1, 1) for x in (2, 0, 1)], index=index)
    spots = gpd.GeoDataFrame({"radius": 0.5}, geometry=[Point(x + 0.5, 0.5) for x in (2, 0, 1)], index=index)
    return ShapesModel.parse(squares), ShapesModel.parse(spots)


def test_overlap_takes_the_rows_in_the_order_of_ids():
    squares, spots = squares_and_spots()
    np.testing.assert_array_equal(overlap(squares, ["b", "c"], EYE, (1, 3)).toarray(), [[0, 1, 0], [0, 0, 1]])
    disc = np.pi / 4
    np.testing.assert_allclose(
        overlap(spots, ["b", "c"], EYE, (1, 3)).toarray(), [[0, disc, 0], [0, 0, disc]], atol=1e-3
    )
    points = PointsModel.parse(pd.DataFrame({"x": [0.5, 1.5, 2.5], "y": [0.5, 0.5, 0.5]}))
    np.testing.assert_array_equal(overlap(points, [2, 0], EYE, (1, 3)).toarray(), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_overlap_reads_labels_at_full_resolution(scale_factors):
    labels = Labels2DModel.parse(np.arange(16).reshape(4, 4), dims=("y", "x"), scale_factors=scale_factors)
    found = overlap(labels, [5, 3], np.diag([0.5, 0.5, 1]), (2, 2)).toarray()
    np.testing.assert_allclose(found, [[0.25, 0, 0, 0], [0, 0.25, 0, 0]])


def test_overlap_names_what_is_wrong():
    squares, spots = squares_and_spots()
    with pytest.raises(KeyError, match=r"2 of 3 ids .* \['x', 'y'\]"):
        overlap(squares, ["a", "x", "y"], EYE, SHAPE)
    with pytest.raises(ValueError, match="1 duplicates"):
        overlap(squares.set_axis(["a", "a", "b"]), ["a"], EYE, SHAPE)
    with pytest.raises(ValueError, match="'radius'"):
        overlap(spots.drop(columns="radius"), ["a"], EYE, SHAPE)
    with pytest.raises(ValueError, match="got a ndarray"):
        overlap(np.zeros(3), [0], EYE, SHAPE)
