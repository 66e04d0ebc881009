import numpy as np
import pytest
from scipy import stats

from pixel2gene.core import posterior as module
from pixel2gene.core.posterior import SHAPES, ShapeEstimator, gamma_poisson_posterior


@pytest.mark.parametrize("count", [0, 1, 7, 60])
@pytest.mark.parametrize("mean", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("shape", [0.3, 2.0, 50.0])
def test_equals_bayes_by_numerical_integration(count, mean, shape):
    # On the logarithm of the rate, where the prior's pole at 0 is none.
    log_rate = np.linspace(-400, 8, 2_000_000)
    rate = np.exp(log_rate)
    log_weight = stats.gamma.logpdf(rate, shape, scale=mean / shape) + log_rate + stats.poisson.logpmf(count, rate)
    weight = np.exp(log_weight - log_weight.max())
    first, second = (np.average(rate**power, weights=weight) for power in (1, 2))
    found, sd = gamma_poisson_posterior(np.array([[count]]), np.array([[mean]]), np.array([shape]))
    np.testing.assert_allclose(found[0, 0], first, rtol=1e-4)
    np.testing.assert_allclose(sd[0, 0], np.sqrt(second - first**2), rtol=1e-4)


def test_equals_scipys_gamma():
    rng = np.random.default_rng(0)
    counts, mean, shape = rng.poisson(3, (50, 4)), rng.uniform(0.1, 5, (50, 4)), np.array([0.2, 1, 5, 80])
    expected = stats.gamma(shape + counts, scale=1 / (shape / mean + 1))
    found, sd = gamma_poisson_posterior(counts, mean, shape)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(sd, expected.std(), rtol=1e-5)
    assert found.dtype == sd.dtype == np.float32


def test_limits():
    counts, mean = np.array([[0, 4, 9]]), np.array([[2.0, 0.5, 30.0]])
    trusted, sd = gamma_poisson_posterior(counts, mean, np.full(3, 1e9))
    np.testing.assert_allclose(trusted, mean, rtol=1e-5)
    assert (sd < 1e-2).all()
    ignored, _ = gamma_poisson_posterior(counts, mean, np.full(3, 1e-9))
    np.testing.assert_allclose(ignored, counts, atol=1e-6)
    between, _ = gamma_poisson_posterior(counts, mean, np.full(3, 2.0))
    assert (np.minimum(counts, mean) < between).all() and (between < np.maximum(counts, mean)).all()


def test_a_mean_of_zero_is_survived():
    found, sd = gamma_poisson_posterior(np.array([[0, 3]]), np.zeros((1, 2)), np.ones(2))
    assert np.isfinite(found).all() and np.isfinite(sd).all()


@pytest.mark.parametrize("shape", [0.3, 1.0, 6.0])
def test_a_planted_dispersion_is_recovered(shape):
    rng = np.random.default_rng(3)
    mean = rng.uniform(2, 12, (12_000, 2))
    counts = rng.poisson(rng.gamma(shape, mean / shape))
    estimator = ShapeEstimator(2)
    for part in np.array_split(np.arange(len(mean)), 7):
        estimator.add(counts[part], mean[part])
    np.testing.assert_allclose(estimator.shape, shape, rtol=0.15)


def test_poisson_counts_have_a_large_shape():
    rng = np.random.default_rng(0)
    mean = rng.uniform(2, 12, (12_000, 1))
    estimator = ShapeEstimator(1)
    estimator.add(rng.poisson(mean), mean)
    assert estimator.shape[0] > 100


def test_likelihood_is_that_of_the_negative_binomial():
    rng = np.random.default_rng(1)
    mean = rng.uniform(0.01, 20, (300, 3))
    counts = rng.poisson(rng.gamma(0.5, mean / 0.5))
    estimator = ShapeEstimator(3)
    estimator.add(counts, mean)
    found = estimator._log_likelihood
    r = SHAPES[:, None, None]
    expected = stats.nbinom.logpmf(counts, r, r / (r + mean)).sum(axis=1)
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-6, atol=1e-5)


def test_the_peak_lies_between_the_points_of_the_grid(monkeypatch):
    """A coarse grid finds the maximum of the likelihood on a fine one."""
    rng = np.random.default_rng(2)
    mean = rng.uniform(2, 12, (3_000, 1))
    counts = rng.poisson(rng.gamma(1.7, mean / 1.7))
    fine = np.geomspace(0.5, 5, 400)
    likelihood = [stats.nbinom.logpmf(counts, r, r / (r + mean)).sum() for r in fine]
    estimator = ShapeEstimator(1)
    estimator.add(counts, mean)
    np.testing.assert_allclose(estimator.shape, fine[np.argmax(likelihood)], rtol=0.02)
    assert np.diff(np.log(module.SHAPES)).std() < 1e-9
