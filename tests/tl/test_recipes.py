"""`tl.fit` with the recipes that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe

SHORT = PaperRecipe(hidden=(32, 32), epochs=40)


def fit(sdata: SpatialData, **options: object) -> p2g.Model:
    return p2g.tl.fit(sdata, "counts", image_key="he", progress=False, **options)


@pytest.fixture(scope="module")
def paper(embedded_once: SpatialData) -> p2g.Model:
    return fit(embedded_once, recipe=SHORT)


def test_the_paper_holds_out_small_blocks_of_ten_folds(paper: p2g.Model) -> None:
    assert paper.recipe == SHORT
    assert paper.network.architecture.members == 10
    (slide,) = paper.slides
    assert slide.side == 8
    assert set(slide.fold[slide.fold >= 0]) == set(range(10))


def test_the_paper_sees_something(paper: p2g.Model) -> None:
    assert paper.scores["pearson_counts"].mean() > 0.1
    assert len(paper.history.deviance) == 1


def test_predict_and_denoise_work_as_ever(embedded_once: SpatialData, paper: p2g.Model, tmp_path: Path) -> None:
    sdata = deepcopy(embedded_once)
    paper.save(tmp_path / "paper.p2g")
    p2g.tl.predict(sdata, p2g.Model.load(tmp_path / "paper.p2g"), progress=False)
    p2g.tl.denoise(sdata, paper, progress=False)
    for key in ("predicted", "denoised"):
        truth = p2g.datasets.true_counts(sdata, key).to_numpy()
        found = sdata[key].X
        assert (found >= 0).all()
        # The best units of each kind were selected, so slightly more is expected everywhere.
        assert 0.8 < found.sum() / truth.sum() < 1.3
        assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, truth.T, strict=True)]) > 0.3


def test_blocks_stay_of_8_where_there_are_fewer_folds(embedded_once: SpatialData) -> None:
    paper = fit(embedded_once, recipe=replace(SHORT, epochs=1), folds=2)
    default = fit(embedded_once, recipe=Recipe(max_checks=1), folds=2)
    assert paper.recipe == replace(SHORT, epochs=1, folds=2)
    assert paper.network.architecture.members == default.network.architecture.members == 2
    assert paper.slides[0].side == 8


def test_the_default_is_the_recipe_of_that_name(fitted_once: p2g.Model) -> None:
    assert fitted_once.recipe == Recipe()


def test_a_recipe_of_ones_own(embedded_once: SpatialData) -> None:
    own = Recipe(folds=3, library_size=True, hidden=(8,), max_checks=1)
    assert fit(embedded_once, recipe=own).recipe == own
    assert fit(embedded_once, recipe=own, library_size=False, folds=2).recipe == replace(
        own, folds=2, library_size=False
    )


def test_an_unknown_recipe_lists_those_that_there_are(embedded_once: SpatialData) -> None:
    with pytest.raises(ValueError, match=r"no recipe 'papr': choose from \['default', 'paper'\]"):
        fit(embedded_once, recipe="papr")


def test_the_paper_knows_no_library_size(embedded_once: SpatialData) -> None:
    with pytest.raises(ValueError, match="knows no library size"):
        fit(embedded_once, recipe="paper", library_size=True)


def test_too_few_blocks_for_ten_folds(embedded_once: SpatialData) -> None:
    small = deepcopy(embedded_once)
    near = (small["counts"].obsm["spatial"] < 16 * 8 * 3).all(axis=1)
    small["counts"] = small["counts"][near].copy()
    with pytest.raises(ValueError, match="blocks of 8 x 8 superpixels, fewer than the 10 folds"):
        fit(small, recipe="paper")
