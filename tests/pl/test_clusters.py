"""Clusters are drawn in their colours, where their units are, whatever the units are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from anndata import AnnData
from matplotlib.colors import to_rgb
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from pixel2gene import pl

SIDE = 240  # px
TURN = Affine([[0, -1, SIDE], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def annotating(ids: np.ndarray, kinds: Any, region: str) -> AnnData:
    table = AnnData(np.ones((len(ids), 1), np.float32))
    table.obs["leiden"] = kinds
    table.obs["region"], table.obs["instance_id"] = pd.Categorical([region] * len(ids)), ids
    return TableModel.parse(table, region=[region], region_key="region", instance_key="instance_id")


def slide(region: object, ids: np.ndarray, kinds: Any) -> sd.SpatialData:
    picture = Image2DModel.parse(np.full((3, SIDE, SIDE), 255, np.uint8), dims=("c", "y", "x"))
    return sd.SpatialData.init_from_elements({"he": picture, "units": region, "cells": annotating(ids, kinds, "units")})


def boxes(n: int, transformation: Any = None) -> gpd.GeoDataFrame:
    """n x n bins over all of the image."""
    y, x = (axis.ravel() * SIDE / n for axis in np.indices((n, n)))
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + SIDE / n, y + SIDE / n))
    return ShapesModel.parse(frame, transformations={"global": transformation or Identity()})


def colours_at(ax: plt.Axes, points: np.ndarray) -> np.ndarray:
    """(n, 4) of the topmost raster at (x, y) of the image."""
    image = ax.images[-1]
    values = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    x, y = points.T
    column = ((x - left) / (right - left) * values.shape[1]).astype(int)
    row = ((y - top) / (bottom - top) * values.shape[0]).astype(int)
    return values[row, column] / 255


def legend(ax: plt.Axes) -> dict[str, tuple[float, ...]]:
    shown = ax.get_legend()
    names = [text.get_text() for text in shown.get_texts()]
    return {name: patch.get_facecolor() for name, patch in zip(names, shown.get_patches(), strict=True)}


def kinds_of(n: int, categories: int = 3) -> pd.Categorical:
    codes = np.random.default_rng(0).integers(0, categories, n)
    return pd.Categorical.from_codes(codes, [str(i) for i in range(categories)])


@pytest.mark.parametrize("many", [30_000, 50])
@pytest.mark.parametrize("turned", [False, True])
def test_bins_have_the_colours_of_the_legend(monkeypatch: pytest.MonkeyPatch, many: int, turned: bool) -> None:
    monkeypatch.setattr("pixel2gene.pl._units.MANY", many)
    kinds = kinds_of(400)
    ax = pl.clusters(slide(boxes(20, TURN if turned else None), np.arange(400), kinds), "cells", "leiden")
    middle = 12 * (np.stack(np.indices((20, 20))[::-1], -1).reshape(-1, 2) + 0.5)
    where = np.stack([SIDE - middle[:, 1], middle[:, 0]], 1) if turned else middle
    # Also near their corners.
    for offset in (0, 4, -4):
        expected = [legend(ax)[kind] for kind in kinds]
        np.testing.assert_allclose(colours_at(ax, where + offset), expected, atol=3e-3)
    assert ax.get_legend().get_title().get_text() == "leiden"


def test_many_bins_leave_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixel2gene.pl._units.MANY", 0)
    monkeypatch.setattr("pixel2gene.pl._units.LONGEST", 90)
    turn = Affine([[0.98, -0.17, 20], [0.17, 0.98, -20], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for n in (50, 64, 90, 130):
        units = slide(boxes(n, turn), np.arange(n**2), kinds_of(n**2))
        drawn = np.asarray(pl.clusters(units, "cells", "leiden").images[-1].get_array())
        assert (drawn[30:60, 30:60, 3] == 255).all()


def test_spots_are_round_and_between_them_is_the_image() -> None:
    centres = np.array([[60.0, 60.0], [150.0, 90.0]])
    frame = gpd.GeoDataFrame({"radius": [30.0, 20.0]}, geometry=shapely.points(centres), index=[7, 3])
    spots = ShapesModel.parse(frame, transformations={"global": Identity()})
    ax = pl.clusters(slide(spots, np.array([3, 7]), pd.Categorical(["a", "b"])), "cells", "leiden")
    found = legend(ax)
    assert colours_at(ax, centres) == pytest.approx(np.array([found["b"], found["a"]]), abs=3e-3)
    alpha = np.asarray(ax.images[-1].get_array())[..., 3] > 0
    assert alpha.mean() * SIDE**2 == pytest.approx(np.pi * (30**2 + 20**2), rel=0.02)
    assert not colours_at(ax, np.array([[60 + 25, 60 + 25]]))[0, 3]


def test_cells_have_their_outlines_and_holes() -> None:
    ring = shapely.Polygon([(20, 20), (120, 20), (120, 120), (20, 120)], [[(50, 50), (90, 50), (90, 90), (50, 90)]])
    two = shapely.MultiPolygon([shapely.box(150, 150, 170, 170), shapely.box(200, 200, 220, 220)])
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=[ring, two]), transformations={"global": Identity()})
    ax = pl.clusters(slide(shapes, np.arange(2), ["a", "b"]), "cells", "leiden")
    found = legend(ax)
    at = colours_at(ax, np.array([[30, 30], [160, 160], [210, 210], [70, 70], [185, 185]]))
    assert at[:3] == pytest.approx(np.array([found["a"], found["b"], found["b"]]), abs=3e-3)
    assert (at[3:, 3] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_labels(scale: float) -> None:
    """Superpixels, or cells as labels of another order than the table's."""
    side = int(SIDE / scale)
    values = np.arange(side**2).reshape(side, side) // 7 * 5
    labels = Labels2DModel.parse(values, dims=("y", "x"), transformations={"global": Scale([scale] * 2, ("x", "y"))})
    ids = np.unique(values[values > 0])[::-1][:-4]
    kinds = kinds_of(len(ids))
    ax = pl.clusters(slide(labels, ids, kinds), "cells", "leiden")
    expected = pd.Series(kinds.codes, ids).reindex(values.ravel(), fill_value=-1).to_numpy().reshape(side, side)
    shown = np.asarray(ax.images[-1].get_array()) / 255
    np.testing.assert_array_equal(shown[..., 3] == 0, expected < 0)
    table = np.array(list(legend(ax).values()))
    np.testing.assert_allclose(shown[expected >= 0], table[expected[expected >= 0]], atol=3e-3)


def test_turned_labels_lie_where_their_cells_are() -> None:
    values = np.zeros((SIDE, SIDE), np.int32)
    values[:60, :120] = 1
    labels = Labels2DModel.parse(values, dims=("y", "x"), transformations={"global": TURN})
    ax = pl.clusters(slide(labels, np.array([1]), ["a"]), "cells", "leiden", scalebar=0)
    ax.figure.canvas.draw()
    drawn = np.asarray(ax.figure.canvas.buffer_rgba())
    for (x, y), is_cell in {(SIDE - 30, 60): True, (30, 60): False, (SIDE - 30, 150): False}.items():
        column, row = ax.transData.transform((x, y)).astype(int)
        pixel = drawn[len(drawn) - 1 - row, column, :3] / 255
        assert (np.abs(pixel - to_rgb(legend(ax)["a"])).max() < 0.01) == is_cell


def test_crop() -> None:
    kinds = kinds_of(400)
    ax = pl.clusters(slide(boxes(20), np.arange(400), kinds), "cells", "leiden", crop=(60, 120, 180, 180))
    assert ax.get_xlim() == (60, 180) and ax.get_ylim() == (180, 120)
    row, column = 11, 9
    at = np.array([[12 * column + 6, 12 * row + 6]])
    assert colours_at(ax, at)[0] == pytest.approx(legend(ax)[kinds[20 * row + column]], abs=3e-3)


def test_colours_of_scanpy_and_order_of_categories() -> None:
    kinds = pd.Categorical(["10", "2", "2", "10"], categories=["2", "10"])
    units = slide(boxes(2), np.arange(4), kinds)
    units["cells"].uns["leiden_colors"] = ["#ff0000", "#0000ff"]
    ax = pl.clusters(units, "cells", "leiden")
    assert legend(ax) == {"2": (1, 0, 0, 1), "10": (0, 0, 1, 1)}
    assert colours_at(ax, np.array([[10, 10], [200, 10]])).tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]
    units["cells"].uns["leiden_colors"] = ["#ff0000"]
    with pytest.raises(ValueError, match=r"uns\['leiden_colors'\] has 1 colours for 2 categories"):
        pl.clusters(units, "cells", "leiden")


def test_thirty_categories_have_colours_of_their_own() -> None:
    found = legend(pl.clusters(slide(boxes(20), np.arange(400), kinds_of(400, 30)), "cells", "leiden"))
    assert len(set(found.values())) == len(found) == 30


def test_units_of_no_category_are_not_drawn() -> None:
    ax = pl.clusters(slide(boxes(2), np.arange(4), pd.Categorical(["a", None, "b", "a"])), "cells", "leiden")
    assert colours_at(ax, np.array([[10, 10], [200, 10]]))[:, 3].tolist() == [1, 0]


def test_text_and_truth_values_are_categories() -> None:
    assert set(legend(pl.clusters(slide(boxes(2), np.arange(4), [True, False] * 2), "cells", "leiden"))) == {
        "False",
        "True",
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("nope", "leiden"), KeyError, r"No 'nope' among the tables; there are \['cells'\]"),
        (("cells", "nope"), KeyError, "No 'nope' in obs of table 'cells'; there are .*'leiden'"),
        (("cells", "instance_id"), ValueError, r"holds numbers \(int64\).*astype\('category'\)"),
    ],
)
def test_unknown_keys(arguments: tuple[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pl.clusters(slide(boxes(2), np.arange(4), kinds_of(4)), *arguments)


def test_a_column_without_values() -> None:
    with pytest.raises(ValueError, match="'leiden' of table 'cells' has no categories"):
        pl.clusters(slide(boxes(2), np.arange(4), pd.Categorical([None] * 4)), "cells", "leiden")
