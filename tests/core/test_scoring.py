"""The table of scores against other libraries, on small slides whose network is random."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_array, eye_array
from scipy.spatial.distance import cdist
from sklearn.metrics import root_mean_squared_error

from pixel2gene.core import scoring as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.metrics import log_normalise, masked_ssim
from pixel2gene.core.regression import Measurement, predict_units
from pixel2gene.core.scoring import COLUMNS, Layout, Maps, full_scores, held_out_scores, neighbours

CPU = torch.device("cpu")
GENES = ["a", "b", "c", "d", "e"]
SHAPE = (14, 20)


def lattice(rows, columns):
    return np.argwhere(np.ones((rows, columns), bool))[:, ::-1] + 0.5


@pytest.fixture
def network():
    return Ensemble(Architecture(3, 6, 5, (7,), 0.0, 0.0), torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def slide():
    """Superpixels that are units, in a box of 12 x 16 of the grid."""
    rng = np.random.default_rng(1)
    box = np.zeros(SHAPE, bool)
    box[1:13, 2:18] = True
    superpixels = np.flatnonzero(box)
    n = len(superpixels)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    counts = csr_array(rng.poisson(rng.gamma(1, 3, (n, 5))).astype(np.float32))
    depth = rng.uniform(0.5, 2, n).astype(np.float32)
    fold = rng.integers(-1, 3, n).astype(np.int8)
    data = Measurement(features, csr_array(eye_array(n, dtype=np.float32)), counts, depth, fold, np.arange(n))
    return data, Layout(SHAPE, superpixels, lattice(*SHAPE)[superpixels])


def held_out(network, data):
    mean = np.empty(data.counts.shape)
    for units, some in predict_units(network, data, CPU, held_out=True):
        mean[units] = some
    return mean


def moran(values, centres):
    """Of the six nearest and those hardly farther, from all distances."""
    distance = cdist(centres, centres)
    np.fill_diagonal(distance, np.inf)
    weight = (distance <= 1.1 * np.sort(distance, axis=1)[:, [5]]).astype(float)
    weight /= weight.sum(axis=1, keepdims=True)
    z = values - values.mean()
    return len(z) / weight.sum() * (z @ weight @ z) / (z @ z)


def test_every_column(network, slide):
    data, layout = slide
    table = full_scores(network, data, GENES, layout, CPU)
    assert table.columns.tolist() == COLUMNS
    assert table.index.tolist() == GENES and table.index.name == "gene"
    counts, mean = data.counts.toarray(), held_out(network, data)
    target = counts.sum() / len(counts)
    log_counts, log_mean = log_normalise(counts, target), log_normalise(mean, target)
    mask = np.zeros(SHAPE, bool)
    mask.flat[layout.superpixels] = True
    for g, row in enumerate(table.itertuples()):
        x, y = log_counts[:, g], log_mean[:, g]
        maps = np.zeros((2, *SHAPE))
        maps[:, mask] = x, y
        assert row.mean_count == pytest.approx(counts[:, g].mean())
        assert row.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row.pearson_counts == pytest.approx(stats.pearsonr(counts[:, g], mean[:, g]).statistic)
        assert row.spearman == pytest.approx(stats.spearmanr(counts[:, g], mean[:, g]).statistic)
        assert row.rmse == pytest.approx(root_mean_squared_error(x, y))
        assert row.ssim == pytest.approx(float(masked_ssim(*maps, mask, np.ptp(x))), abs=1e-6)
        assert row.morans_i_counts == pytest.approx(moran(x, layout.centres))
        assert row.morans_i_predicted == pytest.approx(moran(y, layout.centres))
        assert row.spearman_share == pytest.approx(row.spearman / row.spearman_ceiling, nan_ok=True)


def test_one_pass_gives_the_same_columns(network, slide):
    data, layout = slide
    streamed = held_out_scores(network, data, GENES, CPU)
    pd.testing.assert_frame_equal(full_scores(network, data, GENES, layout, CPU)[streamed.columns], streamed)
    assert set(COLUMNS) - set(streamed) == {
        "spearman",
        "ssim",
        "morans_i_counts",
        "morans_i_predicted",
        "spearman_ceiling",
        "spearman_share",
    }


@pytest.mark.parametrize("values", [1, 400, 900])
def test_blocks_give_the_same_as_all_at_once(network, slide, values, monkeypatch):
    data, layout = slide
    whole = full_scores(network, data, GENES, layout, CPU)
    monkeypatch.setattr(module, "BLOCK_VALUES", values)
    pd.testing.assert_frame_equal(full_scores(network, data, GENES, layout, CPU), whole, rtol=1e-4)


def test_blocks_are_bounded(network, slide, monkeypatch):
    data, layout = slide
    sizes = []

    def watched(network, data, device, *, held_out, genes=None):
        if genes is not None:
            sizes.append(data.counts.shape)
        return predict_units(network, data, device, held_out=held_out, genes=genes)

    monkeypatch.setattr(module, "predict_units", watched)
    monkeypatch.setattr(module, "BLOCK_VALUES", 400)
    full_scores(network, data, GENES, layout, CPU)
    assert sizes == [(192, 2), (192, 2), (192, 1)]


def test_genes_that_do_not_vary_are_nan_without_a_warning(network, slide):
    data, layout = slide
    counts = data.counts.toarray()
    counts[:, 1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = full_scores(network, replace(data, counts=csr_array(counts)), GENES, layout, CPU)
    # The prediction has a map of its own.
    assert table.loc["b"].drop(["mean_count", "morans_i_predicted"]).isna().all()
    scores = table.drop(index="b").loc[:, :"morans_i_predicted"]
    assert scores.notna().all(axis=None)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_units(network, slide, n):
    data, layout = slide
    few = Layout(SHAPE, layout.superpixels[:n], layout.centres[:n])
    part = data.rows(np.arange(n))
    part = replace(part, overlap=part.overlap[:, :n], features=part.features[:n])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = full_scores(network, part, GENES, few, CPU)
    assert table["ssim"].isna().all()
    if n == 1:
        assert table.drop(columns="mean_count").isna().all(axis=None)


def test_square_and_hexagonal_lattices_have_8_and_6_neighbours():
    square = lattice(7, 7)
    hexagonal = square * [1, np.sqrt(3) / 2] + np.where(square[:, 1:] % 2 < 1, [0.5, 0], [0, 0])
    for centres, expected in ((square, 8), (hexagonal, 6)):
        graph = neighbours(centres * 12.5)
        inner = ((square > 1) & (square < 6)).all(axis=1)
        assert (np.diff(graph.indptr)[inner] == expected).all()
        np.testing.assert_allclose(graph.sum(axis=1), 1)
        assert graph.diagonal().sum() == 0


def test_a_map_is_the_overlap_weighted_mean_of_the_units():
    overlap = csr_array(np.array([[1.0, 0.25, 0.2], [0, 0.5, 0.2]], np.float32))
    values = np.array([2.0, 5.0])
    maps = Maps(overlap, Layout((1, 4), np.array([0, 1, 3]), lattice(1, 2)))
    np.testing.assert_allclose(maps._map(values), [[2.0, 4.0, 0.0, 0.0]])
    assert maps._mask.tolist() == [[True, True, False, False]]


def test_spots_have_no_map():
    # A window within one spot would find any two maps alike.
    spots = csr_array(np.kron(np.eye(4), np.ones((1, 60))).astype(np.float32))
    layout = Layout((12, 20), np.arange(240), lattice(2, 2))
    x, y = np.random.default_rng(0).normal(size=(2, 4, 3))
    assert np.isnan(Maps(spots, layout).ssim(x, y)).all()
