"""Output layers fitted to all genes, against closed forms and other solvers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array

from pixel2gene.core import outputs as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.outputs import choose_outputs, fit_outputs, leading_genes
from pixel2gene.core.regression import Measurement, Recipe

CPU = torch.device("cpu")
MEMBERS, CHANNELS, WIDTH, GENES, UNITS = 3, 5, 4, 30, 1200
LEAD = np.arange(0, GENES, 2)
LEADING = len(LEAD)


def hidden(seed=0, genes=LEADING):
    """A network whose hidden layers say something; its outputs are of the leading genes."""
    generator = torch.Generator().manual_seed(seed)
    network = Ensemble(Architecture(MEMBERS, CHANNELS, genes, (8, WIDTH), 0.4, 0.4), generator)
    with torch.no_grad():
        network.weights[-1].normal_(std=0.3, generator=generator)
    return network.eval()


def latents(network, features, member):
    with torch.inference_mode():
        return network.latent(torch.from_numpy(features))[member].double().numpy()


def slide(network, per_unit=1, level=1.0, seed=0):
    """Counts whose log rate is linear in the latents of the first member, and their (superpixels, genes) rate."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(UNITS * per_unit, CHANNELS)).astype(np.float32)
    weights = rng.normal(0, 0.8, (WIDTH, GENES))
    x = latents(network, features, 0)
    rate = level * np.exp((x - x.mean(axis=0)) @ weights)
    rows = np.repeat(np.arange(UNITS), per_unit)
    overlap = csr_array((np.full(len(rows), 1.0, np.float32), (rows, np.arange(len(rows)))))
    depth = rng.uniform(0.5, 2, UNITS).astype(np.float32)
    counts = rng.poisson(depth[:, None] * (overlap @ rate)).astype(np.float32)
    fold = (np.arange(UNITS) % MEMBERS).astype(np.int8)
    return Measurement(features, overlap, csr_array(counts), depth, fold, np.arange(UNITS)), rate


def correlations(network, data, rate):
    with torch.inference_mode():
        found = network.rates(torch.from_numpy(data.features)).mean(dim=0).numpy()
    return np.array([np.corrcoef(np.log(a), np.log(b))[0, 1] for a, b in zip(found.T, rate.T, strict=True)])


def mode_of(network, data, member, gene, prior):
    """Of one gene by another solver, from the exact likelihood."""
    x, seen = latents(network, data.features, member), data.fold != member
    counts = data.counts.toarray()[seen, gene]
    overlap, depth = data.overlap[seen], data.depth[seen]
    precision = np.linalg.inv(prior.covariance.numpy())
    centre = np.log((counts.sum() + module.EMPTY_GENE_COUNTS) / (overlap.sum(axis=1) * depth).sum())

    def loss(w):
        mean = depth * (overlap @ np.exp(w[0] + x @ w[1:]))
        off = w[1:] - prior.mean.numpy()
        penalty = off @ precision @ off + module.LEVEL_PRECISION * (w[0] - centre) ** 2
        return mean.sum() - counts @ np.log(mean) + penalty / 2

    start = np.concatenate([[centre], prior.mean.numpy()])
    return minimize(loss, start, method="BFGS", options={"gtol": 1e-4}).x


def prior(seed=3):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(WIDTH, WIDTH))
    return module._Prior(
        torch.from_numpy(rng.normal(size=WIDTH) * 0.1), torch.from_numpy(root @ root.T + np.eye(WIDTH))
    )


def modes(evidence, turns=1):
    weights = None
    for _ in range(turns):
        weights, uncertainty = module._modes(evidence, prior(), weights)
    return weights, uncertainty


@pytest.mark.parametrize(("per_unit", "turns"), [(1, 1), (3, 40)])
def test_the_mode_is_that_of_another_solver(per_unit, turns):
    network = hidden()
    data, _ = slide(network, per_unit)
    evidence = module._evidence(network, 1, data, CPU, np.random.default_rng(0))
    weights, uncertainty = modes(evidence, turns)
    for gene in (0, 7, 29):
        np.testing.assert_allclose(weights[gene], mode_of(network, data, 1, gene, prior()), atol=5e-3)
    assert uncertainty.shape == (WIDTH, WIDTH) and torch.linalg.eigvalsh(uncertainty).min() > 0


def test_a_sample_of_superpixels_stands_for_all(monkeypatch):
    network = hidden()
    data, _ = slide(network, 4)
    whole = module._evidence(network, 0, data, CPU, np.random.default_rng(0))
    monkeypatch.setattr(module, "SAMPLE", 1500)
    some = module._evidence(network, 0, data, CPU, np.random.default_rng(0))
    assert len(some.sample) == 1500 < len(whole.sample)
    torch.testing.assert_close(some.exposure.sum(), whole.exposure.sum(), rtol=1e-4, atol=0)
    found, expected = modes(some)[0], modes(whole)[0]
    difference = (found - expected).abs().amax(dim=1)
    assert difference.median() < 0.06

    # Were it not for the means, which are made equal, all genes would differ, and alike.
    taken = np.isin(whole.sample[:, 0], some.sample[:, 0])
    plain = replace(whole, sample=whole.sample[taken], exposure=whole.exposure[taken] * (len(taken) / taken.sum()))
    assert (modes(plain)[0] - expected).abs().amax(dim=1).median() > 2 * difference.median()


def test_no_member_learns_from_what_is_held_out_of_it():
    network = hidden()
    data, _ = slide(network)
    other = data.counts.toarray()
    other[data.fold == 1] = 50
    found, changed = (
        fit_outputs(network, LEAD, replace(data, counts=csr_array(counts)), CPU, 0)
        for counts in (data.counts.toarray(), other)
    )
    for member in range(MEMBERS):
        same = torch.equal(found.weights[-1][member], changed.weights[-1][member])
        assert same == (member == 1)


def test_hidden_layers_stay_and_sparse_genes_are_learnt():
    network = hidden()
    data, rate = slide(network, level=0.05)
    fitted = fit_outputs(network, LEAD, data, CPU, 0)
    assert fitted.architecture.genes == GENES
    for layer in range(len(network.weights) - 1):
        torch.testing.assert_close(fitted.weights[layer], network.weights[layer])
    torch.testing.assert_close(fitted.feature_mean, network.feature_mean)
    # Some 60 counts each, of which a third is held out of each member.
    first = Ensemble(replace(fitted.architecture, members=1)).eval()
    first.load_state_dict(
        {name: value[:1] if value.ndim == 3 else value for name, value in fitted.state_dict().items()}
    )
    assert np.median(correlations(first, data, rate)) > 0.8


@pytest.mark.parametrize("genes", [WIDTH, 8, CHANNELS])
def test_as_many_genes_as_hidden_units_or_channels(genes):
    network = hidden(genes=genes)
    data, _ = slide(network)
    fitted = fit_outputs(network, np.arange(genes), data.of_genes(np.arange(genes)), CPU, 0)
    for member in range(MEMBERS):
        np.testing.assert_array_equal(latents(fitted, data.features, member), latents(network, data.features, member))


def test_genes_of_few_counts_lean_on_what_the_others_have_in_common():
    """All genes answer alike, so that a gene with five counts is known from the others."""
    network = hidden()
    rng = np.random.default_rng(0)
    data, _ = slide(network)
    x = latents(network, data.features, 0)
    level = np.where(np.arange(GENES) < GENES - 1, 1.0, 5 / UNITS)
    rate = level * np.exp((x - x.mean(axis=0)) @ np.full(WIDTH, 0.7))[:, None]
    data = replace(data, counts=csr_array(rng.poisson(rate).astype(np.float32)), depth=np.ones(UNITS, np.float32))
    fitted = fit_outputs(network, LEAD, data, CPU, 0)
    with torch.inference_mode():
        found = fitted.rates(torch.from_numpy(data.features))[0].numpy()
    assert np.corrcoef(np.log(found[:, -1]), np.log(rate[:, -1]))[0, 1] > 0.9


def test_a_gene_is_learnt_only_where_it_was_measured():
    network = hidden()
    data, rate = slide(network)
    panels = np.ones((2, GENES), bool)
    panels[1, 5] = False
    of_slide = (np.arange(UNITS) >= UNITS // 2).astype(np.intp)
    joined = replace(data, slide=of_slide, panels=panels)
    evidence = module._evidence(network, 0, joined, CPU, np.random.default_rng(0))
    first = data.rows(np.arange(UNITS // 2))
    alone = module._evidence(network, 0, first, CPU, np.random.default_rng(0))
    found, expected = modes(evidence)[0], modes(alone)[0]
    torch.testing.assert_close(found[5], expected[5], atol=2e-3, rtol=0)
    assert (found[4] - expected[4]).abs().max() > 2e-3


def test_a_gene_without_counts_has_a_small_finite_rate():
    network = hidden()
    data, _ = slide(network)
    counts = data.counts.toarray()
    counts[:, 3] = 0
    fitted = fit_outputs(network, LEAD, replace(data, counts=csr_array(counts)), CPU, 0)
    with torch.inference_mode():
        rate = fitted.rates(torch.from_numpy(data.features))[..., 3]
    assert torch.isfinite(rate).all() and rate.sum(dim=1).max() < 1.5


def test_outputs_that_foretell_held_out_units_better_are_kept(monkeypatch):
    network, everything = hidden(genes=GENES), np.arange(GENES)
    data, _ = slide(network)
    recipe = Recipe(folds=MEMBERS)
    # Trained outputs are random here.
    found = choose_outputs(network, everything, data, recipe, CPU, 0)
    assert found is not network
    assert choose_outputs(found, everything, data, recipe, CPU, 0) is not network
    worse = copy.deepcopy(found)
    with torch.no_grad():
        worse.weights[-1].mul_(3)
    monkeypatch.setattr(module, "fit_outputs", lambda *_: worse)
    assert choose_outputs(found, everything, data, recipe, CPU, 0) is found
    # Genes that did not train the network have no others.
    assert choose_outputs(hidden(), LEAD, data, recipe, CPU, 0) is worse


def test_leading_genes_have_the_most_counts():
    counts = csr_array(np.array([[0, 5, 1, 2], [0, 5, 1, 2]], np.float32))
    assert leading_genes(counts, 2).tolist() == [1, 3]
    assert leading_genes(counts, 9).tolist() == [0, 1, 2, 3]
