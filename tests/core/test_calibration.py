"""Intervals cover what they say, and are caught where they do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pixel2gene.core.calibration import LEVELS, Calibration, gamma_transform, negative_binomial_transform

UNITS, GENES = 2000, 30


class Fixed:
    """Stands in for a generator, so that v is known."""

    def __init__(self, v: float) -> None:
        self.v = v

    def random(self, shape, dtype):
        return np.full(shape, self.v, dtype)


def distribution(mean: float, dispersion: float):
    if dispersion == 0:
        return stats.poisson(mean)
    return stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))


@given(
    count=st.integers(0, 200),
    mean=st.floats(1e-6, 1e3),
    dispersion=st.one_of(st.just(0.0), st.floats(1e-4, 1e2)),
    v=st.floats(0, 1, width=32),
)
def test_transform_is_the_distribution_function_spread_over_its_step(count, mean, dispersion, v):
    truth = distribution(mean, dispersion)
    expected = truth.cdf(count - 1) + v * truth.pmf(count)
    found = negative_binomial_transform(np.array([[count]]), np.array([[mean]]), np.array([dispersion]), Fixed(v))
    assert found.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("dispersion", [0.0, 1e-300, 1e-9, 1.0, 1e6, 1e300])
@pytest.mark.parametrize("mean", [0.0, 1e-300, 1e-12, 1.0, 1e4])
def test_extremes_are_probabilities(mean, dispersion):
    counts = np.array([[0], [1], [50], [51], [10_000], [10**6]])
    means, dispersions = np.full(counts.shape, mean), np.array([dispersion])
    low = negative_binomial_transform(counts, means, dispersions, Fixed(0))
    high = negative_binomial_transform(counts, means, dispersions, Fixed(1))
    assert (low >= 0).all() and (high <= 1).all() and (low <= high).all()
    # Larger counts are never less extreme.
    assert (high[:-1] <= low[1:] + 1e-6).all()


def test_counts_where_none_can_be_are_at_the_end():
    found = negative_binomial_transform(np.array([[0, 1, 99]]), np.zeros((1, 3)), np.ones(3), Fixed(0.25))
    assert found.tolist() == [[0.25, 1, 1]]


@pytest.mark.parametrize(("mean", "sd"), [(2.0, 1.0), (2.0, 8.0), (1e-3, 1e-5), (500.0, 3.0)])
def test_gamma_transform_is_the_distribution_function(mean, sd):
    values = mean * np.array([[0.01], [0.5], [0.99], [1.0], [1.02], [4.0]])
    truth = stats.gamma((mean / sd) ** 2, scale=sd**2 / mean)
    found = gamma_transform(values, np.full(values.shape, mean), np.full(values.shape, sd))
    assert found == pytest.approx(truth.cdf(values), abs=1e-6)


def test_a_rate_that_is_known_lies_on_one_side_or_in_the_middle():
    values, ones = np.array([[0.5, 1, 2]]), np.ones((1, 3))
    assert gamma_transform(values, ones, 0 * ones) == pytest.approx(np.array([[0, 0.5, 1]]), abs=1e-3)
    nothing = np.zeros((1, 1))
    assert gamma_transform(nothing, nothing, nothing) == pytest.approx(0.5, abs=1e-3)


@pytest.fixture(scope="module")
def drawn():
    """Counts with known means from 0.02 to 200 and dispersions from 0 to 2."""
    rng = np.random.default_rng(0)
    mean = np.geomspace(0.02, 200, GENES) * rng.gamma(4, 1 / 4, (UNITS, GENES))
    dispersion = np.linspace(0, 2, GENES)
    theta = rng.gamma(1 / dispersion[1:], dispersion[1:], (UNITS, GENES - 1))
    return rng.poisson(mean * np.column_stack([np.ones(UNITS), theta])), mean, dispersion


def covered(counts, mean, dispersion, levels=LEVELS):
    calibration = Calibration(counts.mean(axis=0))
    rng = np.random.default_rng(1)
    for part in np.array_split(np.arange(UNITS), 3):
        calibration.add(negative_binomial_transform(counts[part], mean[part], dispersion, rng))
    return calibration.table(levels)


def test_true_predictions_cover_what_they_say(drawn):
    table = covered(*drawn)
    chance = np.sqrt(table.nominal * (1 - table.nominal) / (UNITS * GENES / 10))
    assert (np.abs(table.covered - table.nominal) < 4 * chance).all()
    assert 0.9 in set(table.nominal)


@pytest.mark.parametrize(("factor", "sign"), [(1 / 4, -1), (4, 1)])
def test_wrong_dispersion_is_caught_where_genes_have_counts(drawn, factor, sign):
    counts, mean, dispersion = drawn
    table = covered(counts, mean, factor * dispersion, [0.9]).set_index("decile").covered
    assert (sign * (table.loc[7:] - 0.9) > 0.03).all()


def test_wrong_mean_is_caught(drawn):
    counts, mean, dispersion = drawn
    assert covered(counts, mean / 2, dispersion, [0.9]).covered.iloc[-1] < 0.85


def test_true_gamma_rates_are_covered_and_others_are_not():
    rng = np.random.default_rng(0)
    mean, sd = rng.uniform(0.1, 5, (2, UNITS, GENES))
    values = rng.gamma((mean / sd) ** 2, sd**2 / mean)
    for factor, close in ((1, True), (0.5, False), (2, False)):
        calibration = Calibration(values.mean(axis=0))
        calibration.add(gamma_transform(values, mean, factor * sd))
        table = calibration.table([0.9])
        # Four standard errors.
        assert (np.abs(table.covered - 0.9) < 4 * np.sqrt(0.09 / (UNITS * 3))).all() == close


@given(st.integers(1, 45))
def test_deciles_are_even_and_in_order(genes):
    mean_count = np.random.default_rng(genes).permutation(genes) / 7
    table = Calibration(mean_count).table([0.5])
    assert table.genes.sum() == genes
    assert table.genes.max() - table.genes.min() <= 1
    assert table.mean_count.is_monotonic_increasing
    assert table.decile.between(1, 10).all() and table.decile.is_unique
    assert table.mean_count @ table.genes == pytest.approx(mean_count.sum())
    assert table.covered.isna().all()


@given(st.integers(1, 99))
def test_coverage_is_the_share_of_transforms_within_the_interval(percent):
    transforms = np.linspace(0, 1, 10_001)[:, None] ** 2
    calibration = Calibration(np.ones(1))
    calibration.add(transforms)
    level = percent / 100
    within = np.abs(transforms - 0.5) <= level / 2
    assert calibration.table([level]).covered.item() == pytest.approx(within.mean(), abs=3e-4)
