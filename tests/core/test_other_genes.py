"""What other genes foretell: against Gaussian conditioning by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FactorAnalysis

from pixel2gene.core.other_genes import FARTHEST, Factors, fit_factors


def drawn(units, genes, number, seed=0, level=(1, 30)):
    """Counts of units that share factors, what is expected of them, and the covariance of what they share."""
    rng = np.random.default_rng(seed)
    loadings = 0.25 * rng.normal(size=(genes, number))
    expected = rng.uniform(*level, genes) * rng.uniform(0.2, 1.8, (units, 1))
    rate = expected * np.maximum(1 + rng.normal(size=(units, number)) @ loadings.T, 0.05)
    return rng.poisson(rate * rng.gamma(20, 1 / 20, rate.shape)), expected, loadings @ loadings.T


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 8), st.integers(1, 4))
def test_each_gene_is_conditioned_on_all_others(seed, genes, number):
    rng = np.random.default_rng(seed)
    loadings, own, shape = rng.normal(size=(genes, number)), rng.uniform(0.05, 3, genes), np.full(genes, 0.01)
    expected = rng.uniform(0.2, 20, (5, genes))
    counts = rng.poisson(expected)
    found = Factors(loadings, own, shape).foretell(counts, expected)
    for unit in range(5):
        covariance = loadings @ loadings.T + np.diag(own + 1 / expected[unit])
        x = counts[unit] / expected[unit] - 1
        for gene in range(genes):
            others = np.delete(np.arange(genes), gene)
            weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, gene])
            np.testing.assert_allclose(found[unit, gene], x[others] @ weights, rtol=2e-3, atol=1e-3)


def test_the_own_count_of_a_gene_is_not_used():
    rng = np.random.default_rng(0)
    factors = Factors(rng.normal(size=(6, 2)), np.full(6, 0.5), np.full(6, 1.0))
    counts, expected = rng.poisson(4, (4, 6)), np.full((4, 6), 4.0)
    changed = counts.copy()
    changed[:, 2] += 5
    before, after = factors.foretell(counts, expected), factors.foretell(changed, expected)
    np.testing.assert_allclose(before[:, 2], after[:, 2], atol=1e-4)
    assert not np.allclose(before[:, 3], after[:, 3])


def test_a_count_beyond_belief_says_no_more_than_a_large_one():
    factors = Factors(np.ones((3, 1)), np.ones(3), np.ones(3))
    expected = np.full((2, 3), 1.0)
    counts = np.array([[1, 1, 1000], [1, 1, 1 + FARTHEST * np.sqrt(2)]])
    large, larger = factors.foretell(counts, expected)
    np.testing.assert_allclose(large, larger, rtol=1e-5)


def test_what_genes_share_is_found_whatever_the_noise_of_counting():
    counts, expected, shared = drawn(2000, 20, 2)
    factors = fit_factors(counts, expected, np.full(20, 5.0), 2, seed=0)
    found = factors.loadings @ factors.loadings.T
    assert np.abs(found - shared).max() < 0.2 * shared.max()
    assert np.corrcoef(found.ravel(), shared.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(factors.own.mean(), 1 / 20, rtol=0.4)


def test_without_noise_of_counting_it_is_factor_analysis():
    rng = np.random.default_rng(1)
    x = 0.05 * rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 10)) + 0.03 * rng.normal(size=(1000, 10))
    x -= x.mean(axis=0)
    expected = np.full(x.shape, 1e9)
    factors = fit_factors(expected * (1 + x), expected, 1 / x.var(axis=0), 2, seed=0)
    theirs = FactorAnalysis(2).fit(x)
    found = factors.loadings @ factors.loadings.T + np.diag(factors.own)
    np.testing.assert_allclose(found, theirs.get_covariance(), atol=0.05 * x.var(axis=0).max())


def test_noise_has_no_factors_to_speak_of():
    expected = np.full((3000, 20), 5.0)
    counts = np.random.default_rng(2).poisson(expected)
    found = fit_factors(counts, expected, np.full(20, 100.0), 4, seed=0).foretell(counts, expected)
    assert np.abs(found).mean() < 0.05


@pytest.mark.parametrize("number", [1, 4])
def test_units_that_were_not_learnt_from_are_foretold(number):
    counts, expected, _ = drawn(900, 30, number, seed=3)
    factors = fit_factors(counts[:700], expected[:700], np.full(30, 5.0), number, seed=0)
    foretold = expected[700:] * (1 + factors.foretell(counts[700:], expected[700:]))
    off, before = (np.square(counts[700:] - each) / expected[700:] for each in (foretold, expected[700:]))
    assert off.mean() < 0.8 * before.mean()


def test_corners_are_survived():
    rng = np.random.default_rng(4)
    expected = np.full((40, 3), 4.0)
    counts = rng.poisson(expected)
    shape = np.full(3, 2.0)
    assert fit_factors(counts, expected, shape, 16, seed=0).loadings.shape == (3, 2)
    assert fit_factors(counts[:3], expected[:3], shape, 16, seed=0).loadings.shape[1] == 2
    for values in (0.0, 1e-12, 1e6):
        same = np.full((40, 3), values)
        for much in (same, counts):
            for r in (1e-2, 1e4):
                factors = fit_factors(much, same, np.full(3, r), 2, seed=0)
                assert np.isfinite(factors.foretell(much, same)).all()
