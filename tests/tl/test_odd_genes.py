"""Genes that hardly vary, or hardly are: a defined result, or a clear error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

FAST = Recipe(folds=3, hidden=(24, 8), check_steps=(20, 20), max_checks=4)
ODD = ["CONSTANT", "ONE_UNIT", "ONE_COUNT"]


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    sdata = p2g.datasets.simulate(size=(384, 384), n_genes=8, counts_per_superpixel=40, measured=1.0, seed=1)
    counts = sdata["counts"].X.toarray()
    counts[:, 0] = 1
    counts[:, 1:3] = 0
    middle = len(counts) // 2
    counts[middle, 1], counts[middle, 2] = 40, 1
    sdata["counts"].X = csr_matrix(counts)
    sdata["counts"].var_names = [*ODD, *sdata["counts"].var_names[3:]]
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


@pytest.fixture(scope="module")
def model(slide: SpatialData) -> p2g.Model:
    genes = slide["counts"].var_names.tolist()
    return p2g.tl.fit(slide, "counts", image_key="he", genes=genes, recipe=FAST, progress=False)


def test_genes_are_chosen_by_their_total(slide: SpatialData) -> None:
    totals = np.asarray(slide["counts"].X.sum(axis=0)).ravel()
    at_least = int(np.sort(totals)[-3])
    fast = Recipe(folds=2, hidden=(24, 8), max_checks=1)
    model = p2g.tl.fit(slide, "counts", image_key="he", min_counts=at_least, recipe=fast, progress=False)
    assert model.genes == slide["counts"].var_names[totals >= at_least].tolist()
    with pytest.raises(ValueError, match="None of the 8 genes that are no control probes has 1000000 counts or more"):
        p2g.tl.fit(slide, "counts", image_key="he", min_counts=1_000_000, progress=False)


def test_all_verbs_give_finite_results(slide: SpatialData, model: p2g.Model) -> None:
    sdata = deepcopy(slide)
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    for key in ("predicted", "denoised"):
        table = sdata[key]
        for values in (table.X, *table.layers.values()):
            assert np.isfinite(values).all() and (values >= 0).all()
    weights = sdata["denoised"].var[["weight_histology", "weight_neighbours", "weight_own"]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_a_constant_gene_stays_constant(slide: SpatialData, model: p2g.Model) -> None:
    sdata = deepcopy(slide)
    p2g.tl.denoise(sdata, model, progress=False)
    values = sdata["denoised"][:, "CONSTANT"].X.ravel()
    # Bins that are partly on glass have less tissue to count in.
    np.testing.assert_allclose(np.quantile(values, [0.05, 0.5, 0.95]), 1, rtol=0.25)


def test_a_gene_of_one_unit_does_not_spread(slide: SpatialData, model: p2g.Model) -> None:
    sdata = deepcopy(slide)
    p2g.tl.denoise(sdata, model, progress=False)
    table = sdata["denoised"]
    values = table[:, "ONE_UNIT"].X.ravel()
    there = slide["counts"][table.obs_names, "ONE_UNIT"].X.toarray().ravel() > 0
    assert values[there] > 20 and np.median(values[~there]) < 0.1


def test_scores_that_are_not_defined_are_missing(slide: SpatialData, model: p2g.Model) -> None:
    scores = p2g.tl.evaluate(slide, model)
    assert np.isnan(scores.loc["CONSTANT", ["spearman", "spearman_ceiling"]].astype(float)).all()
    assert np.isfinite(scores.loc[model.genes[3:], "pearson"]).all()
    assert p2g.tl.calibration(slide, model)["covered"].between(0, 1).all()
    assert "ONE_COUNT" in str(model.card().html)


def test_a_gene_without_counts_on_the_slide(slide: SpatialData, model: p2g.Model) -> None:
    """It was in the training, and is denoised to nearly nothing here."""
    sdata = deepcopy(slide)
    gene = model.genes[3]
    counts = sdata["counts"].X.toarray()
    counts[:, 3] = 0
    sdata["counts"].X = csr_matrix(counts)
    p2g.tl.denoise(sdata, model, progress=False)
    values = sdata["denoised"][:, gene].X
    assert np.isfinite(values).all()
    assert values.mean() < 0.2 * slide["counts"][:, gene].X.toarray().mean()
    with pytest.raises(ValueError, match=f"1 of the genes asked for have no counts: .'{gene}'"):
        p2g.tl.fit(sdata, "counts", image_key="he", genes=model.genes, recipe=FAST, progress=False)


def test_one_fold_holds_nothing_out(slide: SpatialData) -> None:
    with pytest.raises(ValueError, match="folds=1 given; a whole number of at least 2"):
        p2g.tl.fit(slide, "counts", image_key="he", folds=1, progress=False)


@pytest.mark.parametrize("number", [1, 2])
def test_one_gene_or_two_are_learnt(slide: SpatialData, number: int) -> None:
    genes = slide["counts"].var_names[-number:].tolist()
    model = p2g.tl.fit(slide, "counts", image_key="he", genes=genes, recipe=FAST, progress=False)
    sdata = deepcopy(slide)
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)
    assert sdata["predicted"].shape[1] == sdata["denoised"].shape[1] == number
    assert np.isfinite(sdata["predicted"].X).all() and np.isfinite(sdata["denoised"].X).all()
