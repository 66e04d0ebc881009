"""Slides with different panels in one fit, and each left out in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.core.scoring import COLUMNS
from pixel2gene.spatial.training import relative_depths

FAST = Recipe(folds=2, hidden=(24,), check_steps=(20, 20), max_checks=4)
ONLY_A, ONLY_B = [f"GENE{i:04d}" for i in range(1, 6)], [f"GENE{i:04d}" for i in range(6, 11)]


def make(seed: int) -> SpatialData:
    sdata = p2g.datasets.simulate(size=(384, 384), n_genes=16, counts_per_superpixel=80, measured=1.0, seed=seed)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


def without(sdata: SpatialData, genes: list[str]) -> SpatialData:
    part, table = deepcopy(sdata), sdata["counts"]
    del part["counts"]
    part["counts"] = table[:, ~table.var_names.isin(genes)].copy()
    return part


def fit(slides: object, **options: object) -> p2g.Model:
    return p2g.tl.fit(slides, "counts", image_key="he", **{"recipe": FAST, "progress": False, **options})


@pytest.fixture(scope="module")
def whole() -> dict[str, SpatialData]:
    return {"a": make(1), "b": make(2)}


@pytest.fixture(scope="module")
def slides(whole: dict[str, SpatialData]) -> dict[str, SpatialData]:
    """Each lacks five genes of the other."""
    return {"a": without(whole["a"], ONLY_B), "b": without(whole["b"], ONLY_A)}


@pytest.fixture(scope="module")
def outer(slides: dict[str, SpatialData]) -> p2g.Model:
    return fit(slides, join="outer")


def test_inner_models_the_shared_genes_and_outer_all(slides: dict[str, SpatialData], outer: p2g.Model) -> None:
    inner = fit(slides, recipe=Recipe(folds=2, hidden=(4,), max_checks=1))
    a, b = (set(slides[name]["counts"].var_names) for name in "ab")
    assert set(inner.genes) == a & b and len(inner.genes) == 6
    assert set(outer.genes) == a | b and len(outer.genes) == 16
    # In the order in which they first come.
    assert outer.genes == [
        *slides["a"]["counts"].var_names,
        *(g for g in slides["b"]["counts"].var_names if g not in a),
    ]
    assert outer.scores["pearson"].notna().all()


def test_of_equal_panels_inner_and_outer_are_the_same(whole: dict[str, SpatialData]) -> None:
    inner, outer = (
        fit(whole, join=join, recipe=Recipe(folds=2, hidden=(8,), max_checks=1)) for join in ("inner", "outer")
    )
    assert inner.genes == outer.genes
    assert inner.history == outer.history
    pd.testing.assert_frame_equal(inner.scores, outer.scores, check_exact=True)
    for name, value in inner.network.state_dict().items():
        assert (value == outer.network.state_dict()[name]).all()


def test_a_gene_is_predicted_on_the_slide_that_lacks_it(slides: dict[str, SpatialData], outer: p2g.Model) -> None:
    sdata = deepcopy(slides["b"])
    p2g.tl.predict(sdata, outer, genes=ONLY_A, progress=False)
    truth = p2g.datasets.true_counts(sdata, "predicted").to_numpy()
    found = sdata["predicted"].X
    assert np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(found.T, truth.T, strict=True)]) > 0.2
    # Counted there it would not be zero.
    assert 0.5 < found.sum() / truth.sum() < 2


def test_each_gene_is_scored_where_it_was_measured(slides: dict[str, SpatialData], outer: p2g.Model) -> None:
    both = p2g.tl.evaluate(slides, outer)
    assert both.columns.tolist() == COLUMNS
    for name, lacking in (("a", ONLY_B), ("b", ONLY_A)):
        table = both.loc[name]
        assert table.index.tolist() == outer.genes
        assert table.loc[lacking].isna().all(axis=None)
        assert table.drop(index=lacking)["pearson"].notna().all()
    # What one slide alone measured has its scores from there; log-normalised, they are to another total.
    for name, own in (("a", ONLY_A), ("b", ONLY_B)):
        streamed = ["mean_count", "pearson_counts", "pearson_counts_ceiling", "deviance_explained"]
        pd.testing.assert_frame_equal(both.loc[name].loc[own, streamed], outer.scores.loc[own, streamed], rtol=1e-3)
        np.testing.assert_allclose(both.loc[name].loc[own, "pearson"], outer.scores.loc[own, "pearson"], atol=0.02)


def test_denoising_leaves_out_what_was_not_measured(slides: dict[str, SpatialData], outer: p2g.Model) -> None:
    sdata = deepcopy(slides["a"])
    p2g.tl.denoise(sdata, outer, progress=False)
    measured = [gene for gene in outer.genes if gene not in ONLY_B]
    assert sdata["denoised"].var_names.tolist() == measured
    assert sdata["denoised_map"].coords["c"].values.tolist() == measured
    whole = fit(sdata, genes=measured, recipe=Recipe(folds=2, hidden=(4,), max_checks=1))
    assert whole.genes == measured


def test_a_model_without_any_gene_of_the_slide_is_refused(slides: dict[str, SpatialData], outer: p2g.Model) -> None:
    only = slides["a"]["counts"].var_names.difference(ONLY_A).tolist()
    for verb in (p2g.tl.evaluate, p2g.tl.denoise):
        with pytest.raises(KeyError, match="None of the model's 5 genes is in 'counts'"):
            verb(without(slides["a"], ONLY_A), outer.of_genes(ONLY_A))
    assert p2g.tl.evaluate(slides["a"], outer.of_genes([*ONLY_B, *only[:2]])).notna().any(axis=1).sum() == 2


def test_genes_by_name(slides: dict[str, SpatialData]) -> None:
    once = Recipe(folds=2, hidden=(4,), max_checks=1)
    wanted = [ONLY_B[0], "GENE0012", ONLY_A[0]]
    assert fit(slides, genes=wanted, join="outer", recipe=once).genes == wanted
    with pytest.raises(KeyError, match="were not measured"):
        fit(slides, genes=wanted, recipe=once)
    with pytest.raises(KeyError, match=r"were not measured: \['nope'\]"):
        fit(slides, genes=[*wanted, "nope"], join="outer", recipe=once)
    with pytest.raises(ValueError, match=r"\['a', 'b'\] share no gene with another"):
        fit(slides, genes=[ONLY_A[0], ONLY_B[0]], join="outer", recipe=once)


def test_what_makes_no_sense_is_refused(slides: dict[str, SpatialData]) -> None:
    with pytest.raises(ValueError, match="no join 'left': choose 'inner'"):
        fit(slides, join="left")
    with pytest.raises(ValueError, match="knows no slides with different panels"):
        fit(slides, join="outer", recipe=PaperRecipe())


@pytest.mark.parametrize("shared", [30, 1])
def test_depths_are_found_whatever_the_panels(shared: int) -> None:
    rng = np.random.default_rng(0)
    depth, rate = np.array([2.0, 0.5, 0.5]), rng.gamma(1, 1, 90)
    panels = np.zeros((3, 90), bool)
    for i in range(3):
        panels[i, 30 * i : 30 * (i + 1) + shared] = True
    panels[2, :shared] = True
    np.testing.assert_allclose(relative_depths(panels * np.outer(depth, rate), panels), depth, rtol=1e-3)


def test_of_equal_panels_depth_is_the_total_density() -> None:
    density = np.random.default_rng(0).gamma(1, 1, (3, 20))
    total = density.sum(axis=1)
    np.testing.assert_allclose(relative_depths(density, np.ones((3, 20), bool)), total / total.mean())


def test_cross_validation_is_fit_and_evaluate_of_each_slide(slides: dict[str, SpatialData]) -> None:
    options = {"recipe": Recipe(folds=2, hidden=(8,), max_checks=1), "progress": False}
    table = p2g.tl.cross_validate(slides, "counts", image_key="he", **options)
    assert table.index.names == ["slide", "gene"] and table.columns.tolist() == COLUMNS
    for name, other in (("a", "b"), ("b", "a")):
        model = fit({other: slides[other]}, **options)
        pd.testing.assert_frame_equal(table.loc[name], p2g.tl.evaluate(slides[name], model), check_flags=False)
        assert table.attrs["pixel2gene"][name]["held_out"] == "slide"
        # Genes are those of the training slide: what the slide left out lacks has no score.
        assert set(table.loc[name].index) == set(slides[other]["counts"].var_names)
        assert table.loc[name]["mean_count"].isna().sum() == 5


def twice(slides: dict[str, SpatialData]) -> object:
    return [slides["a"], slides["a"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda slides: slides["a"], "at least 2 slides are needed"),
        (lambda slides: [slides["a"]], "at least 2 slides are needed"),
        (twice, "have the same H&E"),
    ],
)
def test_cross_validation_needs_two_slides(
    slides: dict[str, SpatialData], given: Callable[[dict[str, SpatialData]], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        p2g.tl.cross_validate(given(slides), "counts", image_key="he", progress=False)
