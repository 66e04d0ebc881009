import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.sparse import csr_array, csr_matrix, random_array
from skimage.metrics import structural_similarity
from sklearn.metrics import d2_tweedie_score, mean_poisson_deviance, root_mean_squared_error

from pixel2gene.core.metrics import (
    Correlation,
    Scores,
    halve,
    log_normalise,
    masked_ssim,
    morans_i,
    noise_ceiling,
    poisson_deviance,
    spearman,
)

GENES = ["a", "b", "c", "d"]


def halved(counts, seed=0):
    return csr_array(np.random.default_rng(seed).binomial(counts.astype(int), 0.5).astype(counts.dtype))


def correlation(x, y):
    """Of each column."""
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, y.T, strict=True)])


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
    expected = [80 * mean_poisson_deviance(counts[:, gene], mean[:, gene]) for gene in range(4)]
    np.testing.assert_allclose(poisson_deviance(csr_array(counts), mean), expected, rtol=1e-5)


def test_scores(data):
    counts, mean, exposure = data
    half = halved(counts).toarray()
    base = counts.sum(axis=0) / exposure.sum()
    scores = Scores(GENES, base, 20.0)
    for part in np.array_split(np.arange(80), 3):
        scores.add(csr_array(counts[part]), csr_array(half[part]), mean[part], exposure[part])
    table = scores.table()
    assert table.index.tolist() == GENES and table.index.name == "gene"
    null = np.outer(exposure, base)
    logged = log_normalise(counts, 20), log_normalise(mean, 20)
    reliability = correlation(log_normalise(half, 20), log_normalise(counts - half, 20))
    for gene, row in enumerate(table.itertuples()):
        y, m = counts[:, gene], mean[:, gene]
        assert row.mean_count == pytest.approx(y.mean())
        assert row.pearson_counts == pytest.approx(np.corrcoef(y, m)[0, 1])
        assert row.pearson == pytest.approx(np.corrcoef(logged[0][:, gene], logged[1][:, gene])[0, 1])
        assert row.rmse == pytest.approx(root_mean_squared_error(logged[0][:, gene], logged[1][:, gene]))
        r = reliability[gene]
        assert row.pearson_ceiling == pytest.approx(np.sqrt(2 * r / (1 + r)) if r > 0 else np.nan, nan_ok=True)
        variance = y.var(ddof=1)
        assert row.pearson_counts_ceiling == pytest.approx(np.sqrt((variance - y.mean()) / variance), rel=1e-5)
        assert row.pearson_share == pytest.approx(row.pearson / row.pearson_ceiling, nan_ok=True)
        assert row.pearson_counts_share == pytest.approx(row.pearson_counts / row.pearson_counts_ceiling)
        deviances = mean_poisson_deviance(y, m), mean_poisson_deviance(y, null[:, gene])
        assert row.deviance_explained == pytest.approx(1 - deviances[0] / deviances[1], rel=1e-4)


def test_deviance_explained_is_scikit_learns_where_all_units_are_alike(data):
    counts, mean, _ = data
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(csr_array(counts), halved(counts), mean, np.ones(80))
    expected = [d2_tweedie_score(counts[:, gene], mean[:, gene], power=1) for gene in range(4)]
    np.testing.assert_allclose(scores.table()["deviance_explained"], expected, rtol=1e-4)


def test_genes_that_do_not_vary_have_no_scores(data):
    counts, mean, _ = data
    counts[:, 1] = 0
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(csr_array(counts), halved(counts), mean, np.ones(80))
    table = scores.table()
    assert table.loc["b", "mean_count"] == 0
    assert table.loc["b"].drop("mean_count").isna().all()
    assert table.drop(index="b").notna().all(axis=None)


def test_a_gene_of_one_count_has_its_deviance(data):
    counts, mean, _ = data
    counts[:, 1] = 0
    counts[5, 1] = 1
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(csr_array(counts), halved(counts), mean, np.ones(80))
    expected = d2_tweedie_score(counts[:, 1], mean[:, 1], power=1)
    assert scores.table().loc["b", "deviance_explained"] == pytest.approx(expected, rel=1e-4)


def test_an_impossible_prediction_has_a_finite_deviance(data):
    counts, mean, _ = data
    mean[:, 1] = 0
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(csr_array(counts), halved(counts), mean, np.ones(80))
    explained = scores.table()["deviance_explained"]
    assert np.isfinite(explained).all() and explained["b"] < -1


def test_one_unit_has_no_scores(data):
    counts, mean, exposure = (part[:1] for part in data)
    scores = Scores(GENES, counts[0] / exposure[0], counts.sum())
    scores.add(csr_array(counts), halved(counts), mean, exposure)
    assert scores.table().drop(columns="mean_count").isna().all(axis=None)


def test_a_constant_count_has_no_scores_as_it_is(data):
    counts, mean, _ = data
    counts[:, 1] = 3
    scores = Scores(GENES, counts.mean(axis=0), 20.0)
    scores.add(csr_array(counts), halved(counts), mean, np.ones(80))
    row = scores.table().loc["b"]
    assert row[["pearson_counts", "deviance_explained", "pearson_counts_ceiling", "pearson_counts_share"]].isna().all()
    # Its share of the total varies.
    assert np.isfinite(row[["pearson", "rmse"]]).all()


columns = hnp.arrays(np.float64, st.tuples(st.integers(2, 30), st.just(3)), elements=st.integers(-5, 5))


@settings(deadline=None, max_examples=60)
@given(columns, st.integers(0, 2**32 - 1))
def test_spearman_is_scipys(x, seed):
    y = np.random.default_rng(seed).integers(0, 6, x.shape)
    for column, found in enumerate(spearman(x, y)):
        a, b = x[:, column], y[:, column]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(stats.spearmanr(a, b).statistic)


@settings(deadline=None, max_examples=30)
@given(columns, st.floats(0.1, 5), st.floats(-3, 3))
def test_spearman_knows_no_scale(x, factor, shift):
    y = np.random.default_rng(len(x)).normal(size=x.shape)
    np.testing.assert_array_equal(spearman(x, y), spearman(np.exp(factor * x + shift), y))
    np.testing.assert_allclose(spearman(x, y), spearman(y, x))


def test_halves_are_binomial_and_add_up():
    counts = csr_array(np.random.default_rng(0).poisson(3, (4000, 2)).astype(np.float32))
    half = halve(counts, np.random.default_rng(1))
    rest = (counts - half).toarray()
    assert half.dtype == np.float32 and half.shape == counts.shape
    assert rest.min() >= 0 and (half.data == np.rint(half.data)).all()
    np.testing.assert_allclose(half.toarray().mean(axis=0), 1.5, atol=4 * np.sqrt(1.5 / 4000))
    # Poisson halves are independent.
    np.testing.assert_allclose(correlation(half.toarray(), rest), 0, atol=4 / np.sqrt(4000))


@given(hnp.arrays(np.float64, 8, elements=st.floats(-1, 1)))
def test_ceiling_is_between_0_and_1_and_grows_with_reliability(half):
    ceiling = noise_ceiling(half)
    np.testing.assert_array_equal(np.isnan(ceiling), half <= 0)
    positive = np.sort(half[half > 0])
    assert ((noise_ceiling(positive) >= 0) & (noise_ceiling(positive) <= 1)).all()
    assert (np.diff(noise_ceiling(positive)) >= 0).all()


@pytest.fixture(scope="module")
def world():
    """Rates of 12 genes in 20 000 units of differing size, and counts."""
    rng = np.random.default_rng(4)
    level = np.geomspace(1, 20, 12)
    rate = level * rng.gamma(6, 1 / 6, (20_000, 1)) * rng.gamma(4, 1 / 4, (20_000, 12))
    return rate, rng.poisson(rate).astype(float)


def test_random_halves_agree_with_the_closed_form(world):
    _, counts = world
    half = halved(counts).toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    closed = np.sqrt((variance - mean) / variance)
    np.testing.assert_allclose(noise_ceiling(correlation(half, counts - half)), closed, atol=0.02)
    scores = Scores(list("abcdefghijkl"), mean, counts.sum() / len(counts))
    scores.add(csr_array(counts), csr_array(half), counts, np.ones(len(counts)))
    np.testing.assert_allclose(scores.table()["pearson_counts_ceiling"], closed)


def test_the_true_rate_reaches_the_ceiling(world):
    rate, counts = world
    half = halved(counts).toarray()
    scores = Scores(list("abcdefghijkl"), counts.mean(axis=0), counts.sum() / len(counts))
    scores.add(csr_array(counts), csr_array(half), rate, np.ones(len(counts)))
    table = scores.table()
    # Four times what another seed changes at most.
    np.testing.assert_allclose(table["pearson_counts_share"], 1, atol=0.045)
    assert table["pearson_counts_share"].mean() == pytest.approx(1, abs=0.006)
    # Depth acts on a correlation as the formula says only where the scale is linear.
    np.testing.assert_allclose(table["pearson_share"], 1, atol=0.15)
    assert table["pearson_share"].mean() == pytest.approx(1, abs=0.05)
    by_rank = spearman(counts, rate) / noise_ceiling(spearman(half, counts - half))
    np.testing.assert_allclose(by_rank, 1, atol=0.1)
    assert by_rank.mean() == pytest.approx(1, abs=0.03)


def test_morans_i_is_its_formula():
    rng = np.random.default_rng(0)
    graph = csr_array(random_array((30, 30), density=0.2, rng=rng))
    values = rng.normal(size=(30, 4))
    values[:, 2] = 1.0
    z, weight = values - values.mean(axis=0), graph.toarray()
    expected = [
        30
        / weight.sum()
        * sum(weight[i, j] * z[i, g] * z[j, g] for i in range(30) for j in range(30))
        / (z[:, g] @ z[:, g])
        for g in (0, 1, 3)
    ]
    found = morans_i(graph, values)
    np.testing.assert_allclose(found[[0, 1, 3]], expected)
    assert np.isnan(found[2])


def test_morans_i_equals_scanpys():
    rng = np.random.default_rng(3)
    graph = csr_array(random_array((50, 50), density=0.2, rng=rng))
    values = rng.normal(size=(50, 4))
    np.testing.assert_allclose(morans_i(graph, values), sc.metrics.morans_i(csr_matrix(graph), values.T), rtol=1e-6)


def test_morans_i_of_nothing_connected_is_nan():
    assert np.isnan(morans_i(csr_array((5, 5)), np.random.default_rng(0).normal(size=(5, 2)))).all()


def maps(seed, shape=(15, 19)):
    x, y = np.random.default_rng(seed).normal(size=(2, *shape)).cumsum(axis=-1)
    return x, y


def test_unmasked_ssim_is_scikit_images():
    x, y = np.stack([maps(seed) for seed in range(3)], axis=1)
    found = masked_ssim(x, y, np.ones(x.shape[1:], bool), np.array([1.0, 5.0, 20.0]))
    expected = [structural_similarity(*maps(i), win_size=7, data_range=size) for i, size in enumerate((1, 5, 20))]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_masked_ssim_is_its_definition():
    x, y = maps(0)
    mask = np.random.default_rng(1).random(x.shape) < 0.4
    mask[:, 12:] = False
    mask[7, 15] = True
    similarity = []
    for i, j in np.argwhere(mask):
        window = np.s_[i - 3 : i + 4, j - 3 : j + 4]
        if not (3 <= i < 12 and 3 <= j < 16) or mask[window].sum() < 2:
            continue
        a, b = x[window][mask[window]], y[window][mask[window]]
        (xx, xy), (_, yy) = np.cov(a, b)
        c1, c2 = 0.04**2, 0.12**2
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        similarity.append(luminance * (2 * xy + c2) / (xx + yy + c2))
    assert masked_ssim(x, y, mask, 4.0) == pytest.approx(np.mean(similarity))
    outside = np.where(mask, x, np.nan)
    assert masked_ssim(outside, y, mask, 4.0) == pytest.approx(np.mean(similarity))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.3, 1), st.floats(0.1, 10))
def test_ssim_is_symmetric_and_1_of_the_same(seed, density, size):
    x, y = maps(seed)
    mask = np.random.default_rng(seed).random(x.shape) < density
    found = masked_ssim(x, y, mask, size)
    assert found == pytest.approx(masked_ssim(y, x, mask, size))
    assert -1 <= found <= 1
    assert masked_ssim(x, x, mask, size) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "kept", "size"),
    [((15, 19), 48, 1.0), ((6, 19), 114, 1.0), ((15, 19), 285, 0.0)],
    ids=["fewer than a window", "narrower than a window", "no range"],
)
def test_ssim_of_too_little_is_nan(shape, kept, size):
    x, y = maps(0, shape)
    mask = np.arange(x.size).reshape(shape) < kept
    assert np.isnan(masked_ssim(x, y, mask, size))
