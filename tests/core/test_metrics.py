import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import d2_tweedie_score, mean_poisson_deviance

from pixel2gene.core.metrics import Correlation, Scores, log_normalise, poisson_deviance

GENES = ["a", "b", "c", "d"]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 2, (80, 4))
    return rng.poisson(mean).astype(np.float32), mean.astype(np.float32), rng.uniform(0.5, 2, 80)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(3, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float64, (2, n, 3), elements=st.integers(-1000, 1000)),
            st.lists(st.integers(1, n - 1), max_size=6),
        )
    ),
    st.sampled_from([0.0, 1e5]),
)
def test_any_chunks_give_numpys_correlation(drawn, offset):
    (x, y), cuts = drawn
    x = x + offset
    correlation = Correlation(3)
    for part in np.split(np.arange(len(x)), sorted(set(cuts))):
        correlation.add(x[part], y[part])
    for column, found in enumerate(correlation.pearson):
        a, b = x[:, column], y[:, column]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(found)
        else:
            np.testing.assert_allclose(found, np.corrcoef(a, b)[0, 1], atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e7])
def test_a_constant_has_no_correlation(constant):
    correlation = Correlation(2)
    varied = np.random.default_rng(0).normal(size=(30, 2))
    correlation.add(np.stack([np.full(30, constant), varied[:, 0]], axis=1), varied)
    assert np.isnan(correlation.pearson[0])
    np.testing.assert_allclose(correlation.pearson[1], np.corrcoef(varied.T)[0, 1])


def test_small_values_correlate():
    x = np.random.default_rng(0).normal(size=(50, 1)) * 1e-4
    correlation = Correlation(1)
    correlation.add(x, -3 * x)
    np.testing.assert_allclose(correlation.pearson, -1)


def test_no_rows_give_nan():
    assert np.isnan(Correlation(2).pearson).all()


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
def test_log_normalise_equals_scanpy(data):
    counts = data[0]
    counts[3] = 0
    table = ad.AnnData(counts.copy())
    sc.pp.normalize_total(table, target_sum=50)
    sc.pp.log1p(table)
    np.testing.assert_allclose(log_normalise(counts, 50), table.X, rtol=1e-5)


def test_deviance_equals_scikit_learn(data):
    counts, mean, _ = data
    expected = [mean_poisson_deviance(counts[:, gene], mean[:, gene]) for gene in range(4)]
    np.testing.assert_allclose(poisson_deviance(counts, mean).mean(axis=0), expected, rtol=1e-5)


def test_deviance_of_a_perfect_or_an_impossible_prediction():
    assert poisson_deviance(np.array([0.0, 3.0]), np.array([0.0, 3.0])) == pytest.approx([0, 0], abs=1e-7)
    assert np.isfinite(poisson_deviance(np.array([5.0]), np.array([0.0]))).all()


def test_scores(data):
    counts, mean, exposure = data
    base = counts.sum(axis=0) / exposure.sum()
    scores = Scores(GENES, base, 20.0)
    for part in np.array_split(np.arange(80), 3):
        scores.add(counts[part], mean[part], exposure[part])
    table = scores.table()
    assert table.index.tolist() == GENES and table.index.name == "gene"
    null = np.outer(exposure, base)
    logged = log_normalise(counts, 20), log_normalise(mean, 20)
    for gene, row in enumerate(table.itertuples()):
        y, m = counts[:, gene], mean[:, gene]
        assert row.mean_count == pytest.approx(y.mean())
        assert row.pearson_counts == pytest.approx(np.corrcoef(y, m)[0, 1])
        assert row.pearson == pytest.approx(np.corrcoef(logged[0][:, gene], logged[1][:, gene])[0, 1])
        deviances = mean_poisson_deviance(y, m), mean_poisson_deviance(y, null[:, gene])
        assert row.deviance_explained == pytest.approx(1 - deviances[0] / deviances[1], rel=1e-4)


def test_deviance_explained_is_scikit_learns_where_all_units_are_alike(data):
    counts, mean, _ = data
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(counts, mean, np.ones(80))
    expected = [d2_tweedie_score(counts[:, gene], mean[:, gene], power=1) for gene in range(4)]
    np.testing.assert_allclose(scores.table()["deviance_explained"], expected, rtol=1e-4)


def test_an_unmeasured_gene_has_no_correlation(data):
    counts, mean, exposure = data
    counts[:, 1] = 0
    scores = Scores(GENES, counts.sum(axis=0) / exposure.sum(), 20.0)
    scores.add(counts, mean, exposure)
    table = scores.table()
    assert np.isnan(table.loc["b", ["pearson", "pearson_counts"]].to_numpy(float)).all()
    assert table.drop(index="b").notna().all(axis=None)
