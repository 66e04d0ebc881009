"""Genes that lean on one another, against maxima found otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize_scalar

from pixel2gene.core.empirical_bayes import posterior

tables = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e4, 1e4))


def normal(candidates, centre, sd):
    """(candidates, genes) log-likelihood."""
    return -(((candidates[:, None] - np.asarray(centre)) / sd) ** 2) / 2


@settings(deadline=None, max_examples=60)
@given(tables)
def test_probabilities_sum_to_1(log_likelihood):
    found = posterior(log_likelihood)
    assert found.shape == log_likelihood.shape and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=0), 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_neither_constants_nor_the_order_of_genes_matter(seed, candidates, genes):
    rng = np.random.default_rng(seed)
    log_likelihood = rng.normal(0, 3, (candidates, genes))
    found = posterior(log_likelihood)
    np.testing.assert_allclose(posterior(log_likelihood + rng.uniform(-1e4, 1e4, genes)), found, atol=1e-6)
    order, turn = rng.permutation(genes), rng.permutation(candidates)
    np.testing.assert_allclose(posterior(log_likelihood[:, order]), found[:, order], atol=1e-6)
    np.testing.assert_allclose(posterior(log_likelihood[turn]), found[turn], atol=1e-6)


@pytest.mark.parametrize("best", range(5))
def test_one_gene_has_its_most_likely_candidate(best):
    log_likelihood = np.array([-0.3, -0.1, -2.0, -0.1, -9.0])
    log_likelihood[best] = 0
    np.testing.assert_allclose(posterior(log_likelihood[:, None])[:, 0], np.arange(5) == best, atol=1e-6)


def test_genes_that_are_all_sure_are_left_alone():
    candidates, chosen = np.arange(6.0), np.array([0, 5, 3, 3, 1])
    found = posterior(normal(candidates, chosen, 0.05))
    np.testing.assert_allclose(found, candidates[:, None] == chosen, atol=1e-9)


def test_a_gene_that_says_nothing_has_the_shares_of_the_others():
    """In closed form: the prior is the share of each candidate among the genes that are sure."""
    sure = np.full((3, 10), -1e3)
    sure[[0] * 7 + [2] * 3, np.arange(10)] = 0
    found = posterior(np.concatenate([sure, np.zeros((3, 4))], axis=1))
    np.testing.assert_allclose(found[:, 10:], np.repeat([[0.7], [0], [0.3]], 4, axis=1), atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_prior_of_two_candidates_is_that_of_highest_likelihood(seed):
    rng = np.random.default_rng(seed)
    log_likelihood = rng.normal(0, 4, (2, 40))
    first, second = np.exp(log_likelihood)
    p = minimize_scalar(
        lambda p: -np.log(p * first + (1 - p) * second).sum(), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    ).x
    np.testing.assert_allclose(posterior(log_likelihood)[0], p * first / (p * first + (1 - p) * second), atol=1e-4)


def test_planted_groups_are_told_apart_and_noisy_genes_go_with_the_many():
    rng = np.random.default_rng(0)
    candidates = np.linspace(0, 10, 41)
    truth = np.repeat([2.0, 7.0], [60, 20])
    sd = np.where(np.arange(80) % 2, 0.3, 1.0)
    noisy = np.array([9.0, 0.0, 5.0])
    log_likelihood = np.concatenate([normal(candidates, rng.normal(truth, sd), sd), normal(candidates, noisy, 20)], 1)
    found = candidates @ posterior(log_likelihood)
    np.testing.assert_allclose(found[:80], truth, atol=0.5)
    # Alone, each would be at its own peak.
    np.testing.assert_allclose(found[80:], truth.mean(), atol=0.6)
