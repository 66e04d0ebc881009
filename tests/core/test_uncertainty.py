"""How far the truth lies from its expectation, where it is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pixel2gene.core import uncertainty as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import Measurement
from pixel2gene.core.uncertainty import (
    gamma_shape,
    gene_blocks,
    held_out_uncertainty,
    misfit,
    misfit_of_seen,
    whole_blocks,
)

CPU = torch.device("cpu")
BLOCK = np.arange(6000) // 4


def around(mean, variance, rng):
    """Gamma distributed; zero variance is no scatter."""
    variance = np.broadcast_to(variance, mean.shape)
    some = np.where(variance > 0, variance, 1)
    return np.where(variance > 0, rng.gamma(mean**2 / some, some / mean), mean)


def planted(misfit, shape, seed=0, level=4.0):
    """Counts, their mean, and the truth: it misses the mean by the same in all units of a block, shape by unit."""
    rng = np.random.default_rng(seed)
    mean = level * rng.uniform(0.4, 1.6, (BLOCK.max() + 1, len(misfit)))
    truth = around(mean, misfit * mean, rng)[BLOCK]
    rate = around(truth, truth**2 / shape, rng)
    return rng.poisson(rate).astype(np.float32), mean[BLOCK].astype(np.float32)


@pytest.mark.parametrize("shape", [1.0, 1e9])
def test_a_shared_variance_is_recovered_and_independent_noise_is_none(shape):
    variance = np.array([0.0, 0.3, 1.0, 4.0])
    counts, mean = planted(np.repeat(variance, 8), shape)
    found = misfit(counts, mean, gamma_shape(counts, mean), BLOCK).reshape(4, 8)
    np.testing.assert_allclose(found[1:].mean(axis=1), variance[1:], rtol=0.2)
    # Of the noise, whose variance is 4 times the mean, hardly any is taken for truth.
    assert (found[0] < 0.1).all()


def test_independent_noise_is_in_the_shape_alone():
    counts, mean = planted(np.zeros(4), 1.0)
    shape = gamma_shape(counts, mean)
    np.testing.assert_allclose(shape, 1, rtol=0.1)
    assert (misfit(counts, mean, shape, BLOCK) < 0.03 * mean.mean(axis=0) / shape).all()


def test_genes_of_few_counts_go_with_the_others():
    """Relative to its level, each gene is missed by the same; one of 1 count in 200 units cannot tell."""
    levels = np.array([8.0] * 7 + [0.005])
    counts, mean = planted(0.25 * levels, 1e9, level=levels)
    found = misfit(counts, mean, gamma_shape(counts, mean), BLOCK) / levels
    np.testing.assert_allclose(found, 0.25, rtol=0.3)


@pytest.mark.parametrize("together", [0, 200])
def test_where_few_units_share_a_block_all_that_differs_is_truth(together):
    block = np.arange(len(BLOCK))
    block[:together] //= 2
    counts, mean = planted(np.ones(3), 2.0)
    shape = gamma_shape(counts, mean)
    expected = mean.mean(axis=0) / shape
    np.testing.assert_allclose(misfit(counts, mean, shape, block), expected, rtol=1e-5)


def test_a_gene_that_no_shared_block_measured_is_as_uncertain_as_its_counts():
    """As one of spots among genes of bins."""
    counts, mean = planted(np.array([0.5, 0.5, 0.5]), 2.0)
    there = np.stack([BLOCK >= 0, BLOCK >= 0, np.arange(len(BLOCK)) % 4 == 0], axis=1)
    counts, mean, shape = counts * there, mean * there, np.array([1.5, 1.5, 1.5])
    found = misfit(counts, mean, shape, BLOCK)
    np.testing.assert_allclose(found[:2], 0.5, rtol=0.4)
    assert found[2] == pytest.approx(mean[::4, 2].mean() / 1.5, rel=1e-5)


@pytest.mark.parametrize("block", [BLOCK, np.arange(len(BLOCK))])
def test_units_in_which_a_gene_was_not_measured_do_not_matter(block):
    counts, mean = planted(np.array([0.5, 0.5, 2.0]), 5.0)
    measured = BLOCK % 4 == 0
    alone = misfit(counts[measured], mean[measured], np.full(3, 4.0), block[measured])
    there = measured[:, None]
    np.testing.assert_allclose(misfit(counts * there, mean * there, np.full(3, 4.0), block), alone, rtol=1e-4)


@pytest.mark.parametrize("followed", [0.0, 0.1])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_what_an_expectation_has_seen_is_no_knowledge_of_the_truth(followed, shared):
    """It follows counts by a share, and by another what other genes foretell of them."""
    rng = np.random.default_rng(1)
    unseen = 3 * rng.uniform(0.4, 1.6, (6000, 8))
    foretold = unseen * rng.gamma(6, 1 / 6, unseen.shape) if shared else unseen
    truth = foretold * rng.gamma(6, 1 / 6, unseen.shape)
    counts = rng.poisson(truth)
    mean = unseen + shared * (foretold - unseen) + followed * (counts - foretold)
    found = misfit_of_seen(counts, mean, unseen, foretold)
    planted = np.square(truth - mean).sum(axis=0) / np.square(mean).sum(axis=0)
    np.testing.assert_allclose(found, planted, rtol=0.2)
    if followed:
        assert (1 / gamma_shape(counts, mean) < 0.85 * planted).all()


def test_the_shape_is_that_of_the_planted_gamma():
    rng = np.random.default_rng(0)
    shape = np.array([0.5, 0.5, 6.0, 6.0])
    mean = rng.uniform(2, 12, (6000, 4))
    counts = rng.poisson(rng.gamma(shape, mean / shape)).astype(np.float32)
    np.testing.assert_allclose(gamma_shape(counts, mean), shape, rtol=0.12)


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 60), st.integers(1, 300))
def test_whole_blocks_are_kept(seed, units, blocks, enough):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, blocks, units) * 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAMPLE", enough)
        kept = whole_blocks(block, rng)
    assert (np.diff(kept) > 0).all()
    assert set(np.flatnonzero(np.isin(block, block[kept]))) == set(kept)
    assert min(enough, units) <= len(kept) < enough + np.bincount(block).max()


def test_blocks_are_kept_by_chance(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 600)
    kept = np.zeros(len(BLOCK))
    for seed in range(200):
        kept[whole_blocks(BLOCK, np.random.default_rng(seed))] += 1
    # Each is kept in 20 of 200 draws, with a standard deviation of 4.2.
    assert kept.mean() == pytest.approx(20) and kept.max() < 45 and kept.min() > 2


@given(st.integers(0, 5000), st.integers(0, 300))
def test_gene_blocks_have_each_gene_once(units, genes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_VALUES", 10_000)
        blocks = list(gene_blocks(units, genes))
    assert [gene for block in blocks for gene in range(genes)[block]] == list(range(genes))
    assert all((block.stop - block.start) * units <= 10_000 for block in blocks)


GENES = list("abcdef")
# Slide 1 lacks a and b, slide 0 lacks f.
PANELS = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]], bool)
MISFIT = np.array([0.2, 0.2, 0.2, 2.0, 2.0, 2.0])
DEPTH, AREA = np.array([1.0, 3.0]), 0.8


@pytest.fixture(scope="module")
def network():
    return Ensemble(Architecture(3, 5, 6, (7,), 0.0, 0.0), torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def data(network):
    """Two slides, the second deeper; the true rates are those of the member that did not see a unit, but for `MISFIT`.

    The units of a patch have the same features, and there are as many patches of either slide.
    """
    rng = np.random.default_rng(1)
    fold = (BLOCK % 3).astype(np.int8)
    slide = (BLOCK > BLOCK.max() // 2).astype(np.intp)
    features = rng.normal(size=(BLOCK.max() + 1, 5)).astype(np.float32)[BLOCK]
    with torch.no_grad():
        network.biases[-1].copy_(torch.log(torch.tensor([2.0, 5.0, 10.0]))[:, None, None])
        rate = network.rates(torch.from_numpy(features)).numpy()[fold, np.arange(len(BLOCK))]
    truth = around(rate[::4], MISFIT * rate[::4], rng)[BLOCK]
    depth = DEPTH[slide].astype(np.float32)
    counts = rng.poisson(depth[:, None] * AREA * truth).astype(np.float32)
    units = np.arange(len(BLOCK))
    overlap = csr_array((np.full(len(units), AREA, np.float32), (units, units)))
    return Measurement(features, overlap, csr_array(counts), depth, fold, BLOCK, slide)


def test_uncertainty_is_that_around_the_member_that_has_not_seen_a_unit(network, data):
    """Of one depth, in counts per superpixel."""
    one = data.rows(np.flatnonzero(data.slide == 1))
    found = held_out_uncertainty(network, one, GENES, CPU, 0)
    assert found.index.tolist() == GENES
    np.testing.assert_allclose(found["misfit"], MISFIT, rtol=0.3)
    by_all = held_out_uncertainty(network, replace(one, fold=one.fold * 0 - 1), GENES, CPU, 0)
    assert (by_all["misfit"] > 1.5 * found["misfit"]).all()
    assert (by_all["dispersion"] > found["dispersion"]).all()


def test_uncertainty_is_over_the_units_that_measured_the_gene(network, data):
    together = held_out_uncertainty(network, replace(data, panels=PANELS), GENES, CPU, 0)
    for slide, genes in ((0, ["a", "b"]), (1, ["f"])):
        alone = held_out_uncertainty(network, data.rows(np.flatnonzero(data.slide == slide)), GENES, CPU, 0)
        np.testing.assert_allclose(together.loc[genes, "misfit"], alone.loc[genes, "misfit"], rtol=0.1)
        np.testing.assert_allclose(together.loc[genes, "dispersion"], alone.loc[genes, "dispersion"], rtol=0.1)


def test_genes_in_parts_and_fewer_units_tell_about_the_same(network, data, monkeypatch):
    whole = held_out_uncertainty(network, data, GENES, CPU, 0)
    monkeypatch.setattr(module, "SAMPLE", 3000)
    sampled = held_out_uncertainty(network, data, GENES, CPU, 0)
    monkeypatch.setattr(module, "BLOCK_VALUES", 2 * 3000)
    parts = held_out_uncertainty(network, data, GENES, CPU, 0)
    assert not sampled.equals(whole) and parts.index.tolist() == GENES
    np.testing.assert_allclose(sampled, whole, rtol=0.5)
    np.testing.assert_allclose(parts, sampled, rtol=0.4)
