"""Histology, neighbours and own counts weighed against one another, on planted truths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from pixel2gene.core import denoising as module
from pixel2gene.core import uncertainty
from pixel2gene.core.denoising import PRIOR_COUNTS, WIDTHS, Sources, denoise_counts
from pixel2gene.core.neighbours import Neighbours
from pixel2gene.core.regression import Measurement

SIDE, GENES = 48, 8
UNITS = SIDE * SIDE
CENTRES = np.stack(np.divmod(np.arange(UNITS), SIDE), axis=1) + 0.5
CANDIDATES = 1 + len(WIDTHS) * len(PRIOR_COUNTS)


def field(rng, width, sd, genes=GENES):
    """(units, genes) of mean about 1, lognormal, smooth over `width` superpixels."""
    white = rng.normal(size=(SIDE, SIDE, genes))
    smooth = gaussian_filter(white, (width, width, 0), mode="wrap").reshape(UNITS, genes)
    return np.exp(sd * smooth / smooth.std(axis=0) - sd**2 / 2)


def correlation(one, other):
    """(genes,)."""
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, other.T, strict=True)])


def error(found, truth):
    """(genes,) relative root of the mean squared error."""
    return np.sqrt(np.square(found - truth).mean(axis=0)) / truth.mean(axis=0)


@pytest.fixture
def denoise(monkeypatch):
    """Denoise with planted expectations in the place of a network's."""

    def denoise(counts, histology, centres=CENTRES, unseen=None, apart=None, undisturbed=None):
        calls = []

        def predicted(network, data, device, *, held_out, genes=None):
            calls.append((held_out, data))
            units = data.depth.astype(int)
            if data is plain:
                return undisturbed.astype(np.float32)
            return (unseen if held_out and unseen is not None else histology)[units].astype(np.float32)

        monkeypatch.setattr(module, "predicted_counts", predicted)
        units = np.arange(len(counts))
        data = Measurement(
            np.zeros((1, 1), np.float32),
            csr_array(np.ones((len(counts), 1), np.float32)),
            csr_array(counts.astype(np.float32)),
            # Tells the units apart.
            units.astype(np.float32),
            (units % 3).astype(np.int8),
            units // 4,
            apart=apart,
        )
        plain = None if undisturbed is None else replace(data, patch=data.patch)
        denoise.calls = calls
        return denoise_counts(None, data, plain or data, centres, torch.device("cpu"), 0)

    return denoise


def assert_sane(result, counts):
    weights = np.stack([result.histology, result.neighbours, result.own])
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert (weights >= 0).all()
    for values in (result.mean, result.sd, result.expected, result.expected_sd):
        assert values.shape == counts.shape and values.dtype == np.float32
        assert np.isfinite(values).all() and (values >= 0).all()
    assert result.shape.shape == counts.shape[1:] and np.isfinite(result.shape).all() and (result.shape > 0).all()


def test_where_histology_is_right_it_is_kept(denoise):
    rng = np.random.default_rng(0)
    truth = 3 * field(rng, 3, 0.6)
    counts = rng.poisson(truth)
    result = denoise(counts, truth)
    assert_sane(result, counts)
    assert (result.histology > 0.9).all()
    assert (correlation(result.expected, truth) > 0.99).all()
    assert (error(result.mean, truth) < 0.1).all()
    assert (error(result.expected, truth) < 0.1).all()


@pytest.mark.parametrize("width", [3.0, 8.0])
def test_neighbours_tell_what_is_hidden_from_histology(denoise, width):
    rng = np.random.default_rng(1)
    histology = 3 * field(rng, 2, 0.5)
    truth = histology * field(rng, width, 0.7)
    counts = rng.poisson(truth)
    result = denoise(counts, histology)
    assert_sane(result, counts)
    assert (result.neighbours > 0.4).all()
    assert (correlation(result.expected, truth) > correlation(histology, truth) + 0.1).all()
    assert (error(result.expected, truth) < 0.6 * error(histology, truth)).all()
    assert (error(result.mean, truth) < 0.6 * error(counts, truth)).all()


def test_histology_of_noise_is_mended(denoise):
    rng = np.random.default_rng(2)
    truth = 3 * field(rng, 5, 0.7)
    histology = 3 * field(rng, 0, 0.4)
    result = denoise(rng.poisson(truth), histology)
    assert (error(result.mean, truth) < 0.75 * error(histology, truth)).all()
    assert (correlation(result.mean, truth) > 0.6).all() and (np.abs(correlation(histology, truth)) < 0.2).all()


def test_units_that_differ_on_their_own_keep_their_counts(denoise):
    rng = np.random.default_rng(3)
    histology = 8 * field(rng, 3, 0.3)
    truth = histology * rng.gamma(0.3, 1 / 0.3, (UNITS, GENES))
    counts = rng.poisson(truth)
    result = denoise(counts, histology)
    np.testing.assert_allclose(result.shape, 0.3, rtol=0.15)
    assert (result.own > 0.9).all() and (result.neighbours < 0.05).all()
    assert (correlation(result.mean, counts) > 0.999).all()
    assert (error(result.mean, truth) < 0.5 * error(histology, truth)).all()


def test_the_sources_are_those_that_held_out_counts_call_for(denoise):
    """Genes of three kinds side by side are told apart."""
    rng = np.random.default_rng(4)
    histology = 4 * field(rng, 3, 0.5, 12)
    truth = histology.copy()
    truth[:, 4:8] *= field(rng, 6, 0.8, 4)
    truth[:, 8:] *= rng.gamma(0.5, 2, (UNITS, 4))
    result = denoise(rng.poisson(truth), histology)
    # Wide neighbourhoods that say what histology says are as good as it.
    assert result.histology[:4].mean() > 0.6 and (error(result.expected, truth)[:4] < 0.05).all()
    assert (result.neighbours[4:8] > 0.8).all()
    assert (result.own[8:] > 0.8).all()


def test_genes_of_few_counts_do_as_most(denoise):
    """All miss the same hidden field; the rare ones alone could not tell."""
    rng = np.random.default_rng(5)
    level = np.repeat([4.0, 0.02], [GENES, 4])
    histology = level * field(rng, 3, 0.4, 1)
    truth = histology * field(rng, 8, 0.9, 1)
    result = denoise(rng.poisson(truth), histology)
    rare = slice(GENES, None)
    assert (error(result.expected, truth)[rare] < 0.95 * error(histology, truth)[rare]).all()


CORNERS = {
    "an empty gene": (UNITS, 3, lambda c: np.where(np.arange(3) == 1, 0, c)),
    "a constant gene": (UNITS, 3, lambda c: np.where(np.arange(3) == 1, 2, c)),
    "one unit with counts": (UNITS, 3, lambda c: np.where(np.arange(UNITS)[:, None] == 70, 9, 0 * c)),
    "no counts": (UNITS, 3, np.zeros_like),
    "one count of a million": (UNITS, 3, lambda c: np.where(np.arange(UNITS)[:, None] == 70, 1_000_000, c)),
    "one gene": (UNITS, 1, lambda c: c),
    "one unit": (1, 3, lambda c: c),
    "two units": (2, 3, lambda c: c),
}


@pytest.mark.parametrize("units, genes, change", CORNERS.values(), ids=CORNERS)
def test_corners_are_survived(denoise, units, genes, change):
    rng = np.random.default_rng(6)
    histology = rng.gamma(2, 1, (units, genes))
    counts = change(rng.poisson(histology))
    assert_sane(denoise(counts, histology, CENTRES[:units]), counts)


@pytest.mark.parametrize("centres", [np.full((40, 2), 7.3), np.arange(80.0).reshape(40, 2) * 9])
def test_units_all_in_one_cell_or_far_apart(denoise, centres):
    rng = np.random.default_rng(7)
    histology = rng.gamma(2, 1, (40, 3))
    counts = rng.poisson(histology)
    assert_sane(denoise(counts, histology, centres), counts)


def test_expectations_of_almost_nothing_are_survived(denoise):
    rng = np.random.default_rng(8)
    counts = rng.poisson(0.5, (UNITS, 2))
    assert_sane(denoise(counts, np.full((UNITS, 2), 1e-12)), counts)


def test_the_choice_is_made_on_what_was_not_seen(denoise):
    """What has seen the counts repeats them, and would be taken to be sure of units."""
    rng = np.random.default_rng(9)
    histology = 3 * field(rng, 5, 0.6)
    counts = rng.poisson(histology * rng.gamma(1, 1, histology.shape))
    np.testing.assert_allclose(denoise(counts, counts + 0.1, unseen=histology).shape, 1, rtol=0.15)
    assert (denoise(counts, counts + 0.1).shape > 50).all()
    apart = ((np.arange(UNITS) + 1) % 3).astype(np.int8)
    for given, expected in ((None, np.arange(UNITS) % 3), (apart, apart)):
        denoise(counts, histology, apart=given)
        (first, everything), (second, held_out) = denoise.calls
        assert (first, second) == (False, True)
        np.testing.assert_array_equal(everything.fold, np.arange(UNITS) % 3)
        np.testing.assert_array_equal(held_out.fold, expected)


def test_a_sample_of_whole_blocks_suffices(denoise, monkeypatch):
    rng = np.random.default_rng(10)
    histology = 3 * field(rng, 2, 0.5)
    counts = rng.poisson(histology * field(rng, 6, 0.7))
    whole = denoise(counts, histology)
    monkeypatch.setattr(uncertainty, "SAMPLE", 800)
    monkeypatch.setattr(uncertainty, "BLOCK_VALUES", 3 * UNITS)
    sampled = denoise(counts, histology)
    assert denoise.calls[1][1].counts.shape == (800, GENES)
    np.testing.assert_allclose(sampled.neighbours, whole.neighbours, atol=0.12)
    assert (correlation(sampled.expected, whole.expected) > 0.97).all()


def sources(counts, histology, unseen=None):
    rows = np.flatnonzero(np.arange(UNITS) % 4 < 2)
    unseen = histology if unseen is None else unseen
    both = counts.astype(np.float32), histology.astype(np.float32)
    return Sources(Neighbours(CENTRES), *both, rows, unseen[rows].astype(np.float32))


@pytest.mark.parametrize("held_out", [False, True])
def test_neighbours_that_have_a_multiple_pull_by_their_weight(held_out):
    """In closed form: if counts are c times what was expected, so is the mean, to the weight of the neighbours."""
    rng = np.random.default_rng(11)
    histology = field(rng, 2, 0.5)
    given = sources(3 * histology, histology, 2 * histology)
    base = 2 * histology[given.rows] if held_out else histology
    found = list(given.candidates(slice(2, 5), held_out=held_out))
    assert len(found) == CANDIDATES
    np.testing.assert_array_equal(found[0][0], base[:, 2:5].astype(np.float32))
    np.testing.assert_array_equal(found[0][1], 0)
    for mean, trust in found[1:]:
        np.testing.assert_allclose((mean / base[:, 2:5]).mean(axis=0), 1 + 2 * trust, rtol=1e-3)
    trusts = np.array([trust for _, trust in found[1:]]).reshape(len(WIDTHS), len(PRIOR_COUNTS), 3)
    # Wider neighbourhoods have more counts, and larger priors ask for more.
    assert (np.diff(trusts, axis=0) > 0).all() and (np.diff(trusts, axis=1) < 0).all()
    assert (0 < trusts).all() and (trusts < 1).all()


def test_held_out_candidates_have_not_seen_the_block():
    rng = np.random.default_rng(12)
    histology = field(rng, 2, 0.5)
    counts = rng.poisson(histology)
    around = Neighbours(CENTRES).block
    unit = sources(counts, histology).rows[500]
    block = around == around[unit]
    assert block.sum() == 4
    before, after = (sources(each, histology) for each in (counts, np.where(block[:, None], 30, counts)))
    inside = block[before.rows]
    everything = slice(0, GENES)
    pairs = zip(before.candidates(everything, held_out=True), after.candidates(everything, held_out=True), strict=True)
    for (first, _), (second, _) in pairs:
        np.testing.assert_allclose(first[inside], second[inside], rtol=1e-4)
    # Outside it shows, and so it does to the units themselves where nothing is held out.
    assert (second[~inside] > first[~inside]).any()
    (*_, (first, _)), (*_, (second, _)) = (each.candidates(everything) for each in (before, after))
    assert (second[block] > first[block]).all()


def test_the_likelihood_is_the_negative_binomial_one():
    rng = np.random.default_rng(13)
    histology = field(rng, 2, 0.5)
    counts, shape = rng.poisson(histology), rng.uniform(0.5, 9, GENES)
    given = sources(counts, histology)
    found = module._log_likelihoods(given, shape)
    means = np.stack([mean for mean, _ in given.candidates(slice(0, GENES), held_out=True)]).astype(float)
    expected = stats.nbinom.logpmf(counts[given.rows], shape, shape / (shape + means)).sum(axis=1)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=0.05)


@pytest.fixture
def uncertain(denoise):
    """The truth misses histology by a hidden field; units differ from it each on its own; counts are split in two."""
    rng = np.random.default_rng(14)
    histology = 4 * field(rng, 3, 0.4, 24)
    smooth = histology * field(rng, 4, 0.4, 24)
    rate = smooth * rng.gamma(3, 1 / 3, smooth.shape)
    halves = rng.poisson(rate / 2), rng.poisson(rate / 2)
    return denoise(halves[0], histology / 2), smooth / 2, *halves


def test_intervals_of_the_expectation_cover_the_truth(uncertain):
    result, smooth, *_ = uncertain
    variance = np.square(result.expected_sd)
    low, high = stats.gamma.ppf([[[0.05]], [[0.95]]], result.expected**2 / variance, scale=variance / result.expected)
    assert 0.85 < ((low < smooth) & (smooth < high)).mean() < 0.95


@pytest.mark.parametrize("together", [0, UNITS // 50])
def test_intervals_of_units_that_share_few_blocks_cover_the_truth(denoise, together):
    """The model has seen the counts and follows each by a tenth. A few share a block, as spots of two captures do."""
    centres = 3 * CENTRES
    centres[:together] = centres[together : 2 * together]
    rng = np.random.default_rng(15)
    unseen = 4 * field(rng, 3, 0.4, 24)
    truth = unseen * rng.gamma(5, 1 / 5, unseen.shape)
    counts = rng.poisson(truth)
    result = denoise(counts, unseen + 0.1 * (counts - unseen), centres, unseen=unseen)
    variance = np.square(result.expected_sd)
    low, high = stats.gamma.ppf([[[0.05]], [[0.95]]], result.expected**2 / variance, scale=variance / result.expected)
    assert 0.87 < ((low < truth) & (truth < high)).mean() < 0.94


def test_intervals_of_the_posterior_cover_the_other_half(uncertain):
    result, _, first, second = uncertain
    # The rate is gamma distributed given the first half, so that the second is negative binomial.
    r = result.shape + first
    below, upto = (stats.nbinom.cdf(second - step, r, r / (r + result.mean)) for step in (1, 0))
    place = below + np.random.default_rng(0).uniform(size=below.shape) * (upto - below)
    assert 0.87 < ((0.05 < place) & (place < 0.95)).mean() < 0.93
    np.testing.assert_allclose(result.sd, result.mean / np.sqrt(r), rtol=1e-4)


def test_what_the_platform_did_is_undone(denoise):
    """Half of the units catch a third: the result is as if they had caught all."""
    rng = np.random.default_rng(8)
    truth = 6 * field(rng, 6, 0.7)
    caught = np.where(np.arange(UNITS) % 2 == 0, 1.0, 1 / 3)[:, None]
    result = denoise(rng.poisson(truth * caught), truth * caught, undisturbed=truth)
    for values in (result.mean, result.expected):
        ratio = values[::2].mean(axis=0) / values[1::2].mean(axis=0)
        np.testing.assert_allclose(ratio, truth[::2].mean(axis=0) / truth[1::2].mean(axis=0), rtol=0.03)
    assert (correlation(result.expected, truth) > 0.98).all()


def elsewhere(result, centres, histology):
    """Some genes at a time."""
    histology = histology.astype(np.float32)
    parts = [slice(0, 2), slice(2, GENES)]
    return np.concatenate([result.elsewhere.at(centres, histology[:, some], some) for some in parts], axis=1)


def test_denoised_counts_add_up_to_the_counts(denoise):
    """Also where histology is off by a factor, and where most is noise."""
    rng = np.random.default_rng(19)
    histology = 0.3 * field(rng, 2, 0.4) * np.geomspace(0.2, 5, GENES)
    counts = rng.poisson(0.3 * field(rng, 8, 0.8))
    result = denoise(counts, histology)
    for values in (result.mean, result.expected):
        np.testing.assert_allclose(values.sum(axis=0, dtype=np.float64), counts.sum(axis=0), rtol=0.01)


def test_gaps_are_filled_as_units_are(denoise):
    """Units that were left out have about what they are expected to have when they are there."""
    rng = np.random.default_rng(9)
    histology = 4 * field(rng, 2, 0.4)
    truth = histology * field(rng, 8, 0.8)
    counts = rng.poisson(truth)
    there = rng.random(UNITS) < 0.7
    result = denoise(counts[there], histology[there], CENTRES[there])
    filled = elsewhere(result, CENTRES[~there], histology[~there])
    assert filled.shape == ((~there).sum(), GENES) and filled.dtype == np.float32
    assert (error(filled, truth[~there]) < 0.7 * error(histology[~there], truth[~there])).all()
    # As good as for units whose own counts are not used.
    assert (error(filled, truth[~there]) < 1.2 * error(result.expected, truth[there])).all()


@pytest.mark.parametrize("far", [0.0, 4000.0])
def test_gaps_far_from_any_unit_have_what_histology_expects(denoise, far):
    rng = np.random.default_rng(10)
    histology = 4 * field(rng, 2, 0.4)
    counts = rng.poisson(3 * histology)
    ratio = elsewhere(denoise(counts, histology), CENTRES[:5] + far, histology[:5]) / histology[:5]
    np.testing.assert_allclose(ratio, 1 if far else 3, rtol=1e-4 if far else 0.25)


def test_other_genes_of_a_unit_foretell_a_gene(denoise, monkeypatch):
    """Units differ in a factor of all genes and in one of half of them, and counts are few."""
    rng = np.random.default_rng(11)
    histology = 3 * field(rng, 3, 0.4, 24)
    common, kind = rng.gamma(6, 1 / 6, (UNITS, 1)), rng.gamma(2, 1 / 2, (UNITS, 1))
    truth = histology * common * np.where(np.arange(24) % 2 == 0, kind, 1)
    counts = rng.poisson(truth)
    result = denoise(counts, histology)
    monkeypatch.setattr(module, "LEAST_UNITS", len(counts) + 1)
    alone = denoise(counts, histology)
    assert error(result.mean, truth).mean() < 0.85 * error(alone.mean, truth).mean()
    assert (result.own > alone.own).all() and (result.shape > alone.shape).all()
    np.testing.assert_array_equal(result.expected, alone.expected)


def test_genes_that_share_nothing_are_left_alone(denoise, monkeypatch):
    rng = np.random.default_rng(12)
    histology = 3 * field(rng, 3, 0.4, 24)
    truth = histology * rng.gamma(2, 1 / 2, histology.shape)
    counts = rng.poisson(truth)
    result = denoise(counts, histology)
    monkeypatch.setattr(module, "LEAST_UNITS", len(counts) + 1)
    np.testing.assert_allclose(error(result.mean, truth), error(denoise(counts, histology).mean, truth), rtol=0.01)
