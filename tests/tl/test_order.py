"""In another order or frame, a slide is the same slide."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData, deepcopy
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

# Few units to look at and to train the outputs of, so that they are drawn at random.
SHORT = Recipe(folds=2, hidden=(8,), max_checks=2, check_units=100, lead_genes=4)


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    made = {}
    for name, seed in (("a", 3), ("b", 4)):
        made[name] = p2g.datasets.simulate(
            size=(256, 320), n_genes=6, counts_per_superpixel=60, measured=1.0, seed=seed
        )
        p2g.tl.tissue(made[name], "he", progress=False)
        p2g.tl.embed(made[name], "he", progress=False)
    return made


def shuffled(sdata: SpatialData, seed: int = 0) -> SpatialData:
    """Rows and columns of the table in another order."""
    rng = np.random.default_rng(seed)
    table = sdata["counts"]
    other = table[rng.permutation(table.n_obs)][:, rng.permutation(table.n_vars)].copy()
    elements = {name: element for _, name, element in sdata.gen_elements() if name != "counts"}
    return SpatialData.init_from_elements({**elements, "counts": other}, attrs=sdata.attrs)


def fit(sdata: object, **options: object) -> p2g.Model:
    return p2g.tl.fit(sdata, "counts", image_key="he", recipe=SHORT, progress=False, **options)


def require_equal(found: p2g.Model, expected: p2g.Model) -> None:
    assert found.history == expected.history
    pd.testing.assert_frame_equal(found.scores.loc[expected.genes], expected.scores, check_exact=True)
    for name, value in expected.network.state_dict().items():
        assert (found.of_genes(expected.genes).network.state_dict()[name] == value).all()


def test_bins_and_genes_in_another_order_are_the_same_model(slides: dict[str, SpatialData]) -> None:
    model, other = fit(slides["a"]), fit(shuffled(slides["a"]))
    assert other.genes != model.genes and sorted(other.genes) == sorted(model.genes)
    require_equal(other, model)
    named = fit(slides["a"], genes=model.genes[::-1])
    assert named.genes == model.genes[::-1]
    require_equal(named, model)


def test_slides_in_another_order_are_the_same_model(slides: dict[str, SpatialData]) -> None:
    model, other = fit(slides), fit(dict(reversed(slides.items())))
    assert [slide.name for slide in other.slides] == ["b", "a"]
    require_equal(other, model)
    for one, same in zip(model.slides, reversed(other.slides), strict=True):
        assert (one.name, one.depth) == (same.name, same.depth)
        np.testing.assert_array_equal(one.fold, same.fold)


def test_denoised_bins_in_another_order_are_the_same(slides: dict[str, SpatialData]) -> None:
    first, second = slides["a"], shuffled(slides["a"])
    model = fit(first)
    p2g.tl.denoise(first, model, progress=False, overwrite=True)
    p2g.tl.denoise(second, model, progress=False)
    expected, found = first["denoised"], second["denoised"]
    assert found.obs_names.tolist() != expected.obs_names.tolist()
    again = found[expected.obs_names, expected.var_names]
    # What remains is the order of sums.
    np.testing.assert_allclose(again.X, expected.X, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.layers["sd"], expected.layers["sd"], rtol=1e-3, atol=1e-6)


def test_scores_and_intervals_do_not_depend_on_the_order(slides: dict[str, SpatialData]) -> None:
    first, second = slides["a"], shuffled(slides["a"])
    model = fit(first)
    again = fit(second, genes=model.genes[::-1])
    expected, found = p2g.tl.evaluate(first, model), p2g.tl.evaluate(second, again)
    pd.testing.assert_frame_equal(found.loc[expected.index], expected, rtol=1e-5)
    pd.testing.assert_frame_equal(p2g.tl.calibration(second, again), p2g.tl.calibration(first, model))


def test_a_turned_and_moved_coordinate_system_is_the_same_slide(slides: dict[str, SpatialData]) -> None:
    moved = deepcopy(slides["a"])
    turn = Affine([[0, -1, -3000], [1, 0, 70], [0, 0, 1]], ("x", "y"), ("x", "y"))
    for kind, _, element in moved.gen_elements():
        if kind != "tables":
            for system, old in get_transformation(element, get_all=True).items():
                set_transformation(element, Sequence([old, turn]), to_coordinate_system=system)
    require_equal(fit(moved), fit(slides["a"]))


def test_a_slide_of_one_superpixel(slides: dict[str, SpatialData]) -> None:
    model = fit(slides["a"])
    pixels = np.asarray(slides["a"]["he"].data[:, 96:112, 96:112])
    one = SpatialData(images={"he": Image2DModel.parse(pixels, dims=("c", "y", "x"))})
    one["mine"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 16, 16)]))
    p2g.tl.embed(one, "he", tissue_key="mine", mpp=0.5, progress=False)
    p2g.tl.predict(one, model, progress=False)
    assert one["predicted"].shape == (1, 6) and np.isfinite(one["predicted"].X).all()
    p2g.tl.aggregate(one, "predicted", "mine", progress=False)
    np.testing.assert_allclose(one["predicted_mine"].X, one["predicted"].X, rtol=1e-3)
