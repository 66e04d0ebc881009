import geopandas as gpd
import numpy as np
import pytest
import shapely
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale

from pixel2gene.spatial.pixel_size import pixel_size


def scale(factor):
    return Scale([factor, factor], ("x", "y"))


def image(**transformations):
    return Image2DModel.parse(
        np.zeros((3, 8, 8), np.uint8),
        dims=("c", "y", "x"),
        transformations=transformations or {"global": Identity()},
    )


def bins(side, n=12, angle=0.0, **transformations):
    y, x = np.indices((n, n)).reshape(2, -1) * side
    squares = shapely.box(x, y, x + side, y + side)
    c, s = np.cos(angle), np.sin(angle)
    squares = shapely.transform(squares, lambda xy: xy @ [[c, s], [-s, c]])
    return ShapesModel.parse(
        gpd.GeoDataFrame(geometry=squares), transformations=transformations or {"global": Identity()}
    )


def spots(xy, radius, **transformations):
    frame = gpd.GeoDataFrame({"radius": np.full(len(xy), radius)}, geometry=[Point(p) for p in xy])
    return ShapesModel.parse(frame, transformations=transformations or {"global": Identity()})


def square_lattice(pitch, n=8):
    return np.indices((n, n)).reshape(2, -1).T * float(pitch)


def hexagonal_lattice(pitch, n=10):
    y, x = np.indices((n, n)).reshape(2, -1)
    return np.column_stack([x + y % 2 / 2, y * np.sqrt(3) / 2]) * pitch


def data(shapes=None, **transformations):
    return SpatialData(images={"he": image(**transformations)}, shapes=shapes or {})


@pytest.mark.parametrize("system", ["micrometers", "Microns", "um", "µm", "μm", "micrometre", "MICROMETERS"])
def test_a_system_in_microns_tells(system):
    assert pixel_size(data(**{"global": Identity(), system: scale(0.2738)}), "he") == pytest.approx(0.2738)


def test_a_system_of_another_name_does_not():
    with pytest.raises(ValueError, match="pass mpp="):
        pixel_size(data(**{"global": scale(0.25), "square_008um": scale(0.3)}), "he")


@pytest.mark.parametrize("angle", [0, 0.2])
def test_bins_tell(angle):
    sdata = data({"slide_square_008um": bins(29.3, angle=angle)})
    assert pixel_size(sdata, "he") == pytest.approx(8 / 29.3)


def test_bins_are_measured_in_pixels_of_the_image():
    sdata = data({"square_016um": bins(16)}, **{"global": scale(0.5)})
    assert pixel_size(sdata, "he") == pytest.approx(0.5)


def test_bins_as_circles_tell():
    sdata = data({"slide_square_002um": spots(square_lattice(5), 2.5)})
    assert pixel_size(sdata, "he") == pytest.approx(0.4)


@pytest.mark.parametrize("radius", [0.275, 0.325])
def test_visium_spots_tell(radius):
    sdata = data({"spots": spots(hexagonal_lattice(300), radius * 300)})
    assert pixel_size(sdata, "he") == pytest.approx(1 / 3)


def test_legacy_spots_tell_although_they_are_not_quite_regular():
    xy = square_lattice(290) + np.random.default_rng(0).normal(0, 6, (64, 2))
    assert pixel_size(data({"spots": spots(xy, 72)}), "he") == pytest.approx(200 / 290, rel=0.02)


def test_few_spots_tell_although_most_are_at_the_border():
    assert pixel_size(data({"spots": spots(square_lattice(400, 5), 100)}), "he") == pytest.approx(0.5)
    assert pixel_size(data({"spots": spots(hexagonal_lattice(200, 5), 55)}), "he") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "circles",
    [
        spots(np.random.default_rng(0).uniform(0, 1000, (500, 2)), 10),
        spots(square_lattice(20), 10),
        spots(hexagonal_lattice(20), 10),
        spots(square_lattice(20, 2), 5),
        spots(hexagonal_lattice(20), 5.5, elsewhere=Identity()),
    ],
    ids=["cells", "square bins", "beads", "too few", "no shared system"],
)
def test_other_circles_tell_nothing(circles):
    with pytest.raises(ValueError, match="Nothing in the data tells"):
        pixel_size(data({"circles": circles}), "he")


def test_the_users_value_wins_where_the_evidence_agrees():
    sdata = data({"square_008um": bins(16)})
    assert pixel_size(sdata, "he", mpp=0.524) == 0.524
    with pytest.raises(ValueError, match="over 5 %"):
        pixel_size(sdata, "he", mpp=0.526)
    assert pixel_size(data(), "he", mpp=0.25) == 0.25


def test_the_transform_comes_before_the_bins():
    sdata = data({"square_008um": bins(16)}, **{"global": Identity(), "um": scale(0.49)})
    assert pixel_size(sdata, "he") == pytest.approx(0.49)


def test_disagreement_lists_the_evidence():
    sdata = data({"square_008um": bins(16)}, **{"global": Identity(), "um": scale(0.25)})
    with pytest.raises(ValueError, match=r"transform to 'um': 0\.25; bins of 8 µm 'square_008um': 0\.5\)"):
        pixel_size(sdata, "he")
    with pytest.raises(ValueError, match=r"mpp as given: 0\.3; "):
        pixel_size(sdata, "he", mpp=0.3)
    with pytest.raises(ValueError, match=r"both mpp= and force=True"):
        pixel_size(sdata, "he", force=True)
    assert pixel_size(sdata, "he", mpp=0.3, force=True) == 0.3


@pytest.mark.parametrize(("mpp", "message"), [(4.56, r"4\.56 µm/px.*nuclei are not resolved"), (0.01, "implausible")])
def test_implausible_sizes_are_refused(mpp, message):
    with pytest.raises(ValueError, match=message):
        pixel_size(data(), "he", mpp=mpp)
    assert pixel_size(data(), "he", mpp=mpp, force=True) == mpp
    assert pixel_size(data(um=scale(mpp)), "he", force=True) == pytest.approx(mpp)


@pytest.mark.parametrize("mpp", [0, -1, np.nan, np.inf])
def test_mpp_must_be_positive(mpp):
    with pytest.raises(ValueError, match="positive"):
        pixel_size(data(), "he", mpp=mpp, force=True)


def test_anisotropic_pixels_are_refused():
    stretched = Affine(np.diag([0.5, 0.25, 1]), ("x", "y"), ("x", "y"))
    with pytest.raises(ValueError, match="a similarity"):
        pixel_size(data(um=stretched), "he")
    assert pixel_size(data(um=stretched), "he", mpp=0.4, force=True) == 0.4


def test_an_unknown_key_lists_the_keys():
    with pytest.raises(KeyError, match=r"'morphology' among the images; there are \['he'\]"):
        pixel_size(data(), "morphology")
