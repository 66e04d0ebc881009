"""Units whose slides measured different genes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, eye_array

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import (
    Measurement,
    Recipe,
    expected,
    fit_ensemble,
    gene_weights,
    held_out_deviance,
    make_batch,
    negative_log_likelihood,
)
from pixel2gene.core.scoring import held_out_scores

CPU = torch.device("cpu")
UNITS, GENES = 240, list("abcde")
RECIPE = Recipe(folds=3, hidden=(8,), batch=60, check_steps=(5, 5), max_checks=3)
# Slide 1 lacks a and b, slide 0 lacks e.
PANELS = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(UNITS, 6)).astype(np.float32)
    rate = 4 * np.exp(features @ rng.normal(size=(6, 5)) * 0.3)
    return Measurement(
        features,
        csr_array(eye_array(UNITS, dtype=np.float32)),
        csr_array(rng.poisson(rate).astype(np.float32)),
        rng.uniform(0.5, 2, UNITS).astype(np.float32),
        (np.arange(UNITS) % 3).astype(np.int8),
        np.arange(UNITS) // 4,
        np.arange(UNITS) // (UNITS // 2),
        PANELS,
    )


@pytest.fixture
def network():
    return Ensemble(Architecture(3, 6, 5, (7,), 0.0, 0.0), torch.Generator().manual_seed(0)).eval()


def half(data, one):
    """The units of one slide, with its genes only."""
    part = data.rows(np.flatnonzero(data.slide == one))
    return replace(part, counts=part.counts[:, np.flatnonzero(PANELS[one])], slide=None, panels=None)


def test_counts_outside_the_panel_change_nothing(data):
    counts = data.counts.toarray()
    garbage = np.where(PANELS[data.slide], counts, 1e6)
    other = replace(data, counts=csr_array(garbage.astype(np.float32)))
    (first, history), (second, again) = (fit_ensemble(one, RECIPE, CPU, 0, False) for one in (data, other))
    assert history == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    pd.testing.assert_frame_equal(*(held_out_scores(first, one, GENES, CPU) for one in (data, other)))


def test_panels_that_have_all_cost_and_change_nothing(data):
    whole, plain = (
        replace(data, slide=slide, panels=panels) for slide, panels in ((data.slide, PANELS | True), (None,) * 2)
    )
    (first, history), (second, again) = (fit_ensemble(one, RECIPE, CPU, 0, False) for one in (whole, plain))
    assert history == again
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    pd.testing.assert_frame_equal(*(held_out_scores(first, one, GENES, CPU) for one in (whole, plain)))
    assert plain.measured(np.arange(3)) is None


def gradient(network, data):
    """Of the summed loss, in the output weights."""
    network.zero_grad()
    units = np.arange(len(data.fold))
    batch = make_batch(data, units, CPU, data.overlap)
    negative_log_likelihood(expected(network, batch), batch, torch.ones(data.counts.shape[1])).sum().backward()
    return network.weights[-1].grad.clone()


def test_a_gene_learns_from_the_units_that_measured_it_alone(data, network):
    both = gradient(network, data)
    alone = [gradient(network.of_genes(np.flatnonzero(panel)), half(data, i)) for i, panel in enumerate(PANELS)]
    torch.testing.assert_close(both[..., :2], alone[0][..., :2])
    torch.testing.assert_close(both[..., 4], alone[1][..., 2])
    torch.testing.assert_close(both[..., 2:4], alone[0][..., 2:4] + alone[1][..., :2])


def test_means_are_over_the_units_that_measured_the_gene(data):
    counts = np.where(PANELS[data.slide], data.counts.toarray(), np.nan)
    weight = gene_weights(data, 1).numpy()
    np.testing.assert_allclose(weight * np.nanmean(counts, axis=0), 1 / 5, rtol=2e-3)
    network, _ = fit_ensemble(data, replace(RECIPE, max_checks=1, check_steps=(1, 1), learning_rate=0.0), CPU, 0, False)
    exposure = np.where(PANELS[data.slide], data.depth[:, None], np.nan)
    for fold in range(3):
        seen = data.fold != fold
        rate = np.nansum(counts[seen], axis=0) / np.nansum(exposure[seen], axis=0)
        np.testing.assert_allclose(network.biases[-1][fold, 0].detach().exp(), rate, rtol=0.01)


def test_deviance_is_that_of_both_slides(data, network):
    weight = torch.tensor([1.0, 2, 3, 4, 5])
    parts = [
        held_out_deviance(network.of_genes(np.flatnonzero(panel)), half(data, i), weight[torch.from_numpy(panel)], CPU)
        for i, panel in enumerate(PANELS)
    ]
    assert held_out_deviance(network, data, weight, CPU) == pytest.approx(np.mean(parts), rel=1e-5)


def test_scores_are_over_the_units_that_measured_the_gene(data, network):
    together = held_out_scores(network, data, GENES, CPU)
    for i, own in ((0, ["a", "b"]), (1, ["e"])):
        genes = [gene for gene, there in zip(GENES, PANELS[i], strict=True) if there]
        alone = held_out_scores(network.of_genes(np.flatnonzero(PANELS[i])), half(data, i), genes, CPU)
        for column in ("mean_count", "pearson_counts", "pearson_counts_ceiling", "deviance_explained"):
            np.testing.assert_allclose(together.loc[own, column], alone.loc[own, column], rtol=1e-4)
        # Log-normalised by the totals of the same genes, to about the same number.
        np.testing.assert_allclose(together.loc[own, "pearson"], alone.loc[own, "pearson"], atol=0.02)


def test_part_of_a_network(network):
    features = torch.randn(9, 6)
    torch.testing.assert_close(network.of_genes(np.array([3, 0]))(features), network(features)[..., [3, 0]])
    scaled = Ensemble(Architecture(3, 6, 5, (7,), 0.0, 0.0, link="elu"), torch.Generator().manual_seed(0)).eval()
    scaled.scale.uniform_(1, 2)
    scaled.offset.uniform_()
    assert torch.equal(scaled.of_genes(np.array([3, 0])).rates(features), scaled.rates(features)[..., [3, 0]])
