"""What other genes foretell: against Gaussian conditioning by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from pixel2gene.core.other_genes import FARTHEST, Factors, fit_factors, residuals, spread


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 8), st.integers(1, 4), st.floats(0.05, 3))
def test_each_gene_is_conditioned_on_all_others(seed, genes, number, noise):
    rng = np.random.default_rng(seed)
    loadings, x = rng.normal(size=(genes, number)), rng.normal(size=(5, genes))
    covariance = loadings @ loadings.T + noise * np.eye(genes)
    found = Factors(loadings, noise).foretell(x)
    for gene in range(genes):
        others = np.delete(np.arange(genes), gene)
        weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, gene])
        np.testing.assert_allclose(found[:, gene], x[:, others] @ weights, rtol=1e-3, atol=1e-4)


def test_the_own_count_of_a_gene_is_not_used():
    rng = np.random.default_rng(0)
    factors, x = Factors(rng.normal(size=(6, 2)), 0.5), rng.normal(size=(4, 6))
    changed = x.copy()
    changed[:, 2] += 100
    np.testing.assert_allclose(factors.foretell(x)[:, 2], factors.foretell(changed)[:, 2], atol=1e-3)
    assert not np.allclose(factors.foretell(x)[:, 3], factors.foretell(changed)[:, 3])


@pytest.mark.parametrize("shape", [(400, 12), (30, 40)])
def test_factors_are_the_probabilistic_principal_components(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1])) + 0.5 * rng.normal(size=shape)
    # Of mean 0, and divided by n - 1 there.
    x -= x.mean(axis=0)
    factors = fit_factors(x, 3, seed=0)
    told = PCA(3, svd_solver="full").fit(x)
    scale = (shape[0] - 1) / shape[0]
    found = factors.loadings @ factors.loadings.T + factors.noise * np.eye(shape[1])
    # With as few units as genes, scikit-learn averages over the directions that the units span.
    if shape[0] > shape[1]:
        np.testing.assert_allclose(found, scale * told.get_covariance(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.trace(found), np.square(x).sum() / shape[0], rtol=1e-3)
    directions = np.linalg.qr(factors.loadings)[0]
    np.testing.assert_allclose(np.abs(np.linalg.det(directions.T @ told.components_.T)), 1, atol=1e-3)


def test_noise_has_no_factors_to_speak_of():
    x = np.random.default_rng(2).normal(size=(5000, 20))
    assert np.abs(fit_factors(x, 4, seed=0).foretell(x)).mean() < 0.1


def test_more_factors_than_can_be_are_not_sought():
    x = np.random.default_rng(3).normal(size=(40, 3))
    assert fit_factors(x, 16, seed=0).loadings.shape == (3, 2)
    assert fit_factors(x[:3], 16, seed=0).loadings.shape[1] == 2
    assert np.isfinite(fit_factors(np.zeros((10, 5)), 4, seed=0).foretell(np.zeros((2, 5)))).all()


def test_residuals_of_negative_binomial_counts_have_variance_1():
    rng = np.random.default_rng(4)
    mean, shape = rng.uniform(2, 20, (20_000, 3)), np.array([0.8, 4.0, 1e6])
    counts = rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape))
    found = residuals(counts, mean, shape)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(found.std(axis=0), 1, rtol=0.1)
    assert np.abs(found).max() <= FARTHEST
    np.testing.assert_allclose(spread(mean, shape) ** 2, mean + mean**2 / shape, rtol=1e-5)
