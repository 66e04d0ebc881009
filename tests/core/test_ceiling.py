"""Rates beyond all that was measured are bounded and counted; those of sound models never are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from pixel2gene.core.ceiling import (
    FEW,
    MARGIN,
    NOISE,
    bounded_message,
    count_bounded,
    count_bounded_of_farthest,
    highest_rates,
    log_ceiling,
)
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import Measurement, predict_latents, predict_rates

CPU = torch.device("cpu")
GENES = np.arange(4)


def measurement(counts, area, depth=1.0):
    units = len(counts)
    overlap = csr_array(np.diag(np.broadcast_to(area, units)).astype(np.float32))
    each = np.broadcast_to(np.float32(depth), units).copy()
    return Measurement(
        np.zeros((units, 5), np.float32), overlap, csr_array(counts.astype(np.float32)), each, np.zeros(units, np.int8),
        np.arange(units),
    )  # fmt: skip


@pytest.fixture
def network():
    """Members of which one runs away where the first channel is large."""
    network = Ensemble(Architecture(3, 5, 4, (8, 6), 0.0, 0.0), torch.Generator().manual_seed(0)).eval()
    network.log_ceiling = torch.full((4,), 3.0)
    return network


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)


def test_highest_rates_are_per_area_and_depth():
    counts = np.array([[9, 0], [16, 1], [4, 0]])
    found = highest_rates(measurement(counts, 4.0, [1, 2, 1]))
    np.testing.assert_allclose(found, [(9 + NOISE * 3) / 4 + FEW / 4, (1 + NOISE) / 8 + FEW / 4])


def test_a_sliver_of_a_unit_does_not_lift_the_ceiling():
    counts = np.array([[1], [1], [2], [1]])
    assert highest_rates(measurement(counts, [1, 1, 1, 1e-3]))[0] == pytest.approx(2 + NOISE * np.sqrt(2) + FEW)


def test_a_gene_that_only_shallow_units_have_is_told_by_them():
    counts = np.zeros((100, 2))
    counts[:, 0], counts[:10, 1] = 40, 10
    depth = np.where(np.arange(100) < 10, 0.1, 1.0)
    assert highest_rates(measurement(counts, 1.0, depth))[1] > 10 / 0.1


def test_a_gene_is_told_by_the_units_that_measured_it():
    """Of spots and bins together, the exposure of the one says nothing of the other."""
    counts = np.zeros((60, 2))
    counts[:40, 0], counts[40:, 1] = 100, 5
    area = np.where(np.arange(60) < 40, 37.0, 1.0)
    data = replace(
        measurement(counts, area), slide=(np.arange(60) >= 40).astype(np.intp), panels=np.array([[1, 0], [0, 1]], bool)
    )
    spots, bins = highest_rates(data)
    assert spots == pytest.approx((100 + NOISE * 10 + FEW) / 37) and bins == pytest.approx(5 + NOISE * 5**0.5 + FEW)


def test_noise_does_not_reach_the_ceiling():
    rng = np.random.default_rng(1)
    rate = rng.gamma(0.3, 3.0, (4000, 20))
    ceiling = log_ceiling(highest_rates(measurement(rng.poisson(rate), 1.0))).exp().numpy()
    assert (rate.max(axis=0) < ceiling / MARGIN * 1.2).all()


def test_rates_are_bounded_member_by_member_and_counted(network, features):
    before = predict_rates(network, features, GENES, CPU)[0]
    assert (before < np.exp(3)).all() and count_bounded(network, features, before, GENES, CPU).sum() == 0
    with torch.no_grad():
        network.biases[-1][1, 0, 2] += 50
    mean, _ = predict_rates(network, features, GENES, CPU)
    np.testing.assert_allclose(mean[:, [0, 1, 3]], before[:, [0, 1, 3]], rtol=1e-6)
    assert (mean[:, 2] <= np.exp(3) / 3 + before[:, 2] * 3).all()
    assert count_bounded(network, features, mean, GENES, CPU).tolist() == [0, 0, 500, 0]
    # Of chosen genes, as maps are made, and what is no number.
    latents = torch.from_numpy(predict_latents(network, features, CPU))
    by_gene = network.by_gene(torch.tensor([2, 0]))(latents.transpose(1, 2)).mean(dim=0)
    np.testing.assert_allclose(by_gene.detach().T, mean[:, [2, 0]], rtol=1e-5)
    features[0] = np.nan
    lost = predict_rates(network, features, GENES, CPU)[0]
    assert count_bounded(network, features, lost, GENES, CPU).tolist() == [1, 1, 500, 1]


def test_the_farthest_superpixels_tell_what_runs_away(network, features):
    with torch.no_grad():
        network.weights[-1][0, :, 1] *= 40
    latents = predict_latents(network, features, CPU)
    mean = predict_rates(network, features, GENES, CPU)[0]
    every = count_bounded(network, features, mean, GENES, CPU)
    some = count_bounded_of_farthest(network.head(), latents)
    assert 0 < some[1] <= every[1] and some.sum() == some[1]


def test_hidden_units_are_held_on_new_slides_too(network, features):
    features[:10] = 1e6
    with torch.no_grad():
        network.weights[0].mul_(100)
    # Models of before were trained without.
    assert predict_latents(network, features, CPU).max() > 20
    held = Ensemble(replace(network.architecture, latent_limit=20.0)).eval()
    held.load_state(network.state_dict())
    assert predict_latents(held, features, CPU).max() == 20


def test_the_ceiling_goes_with_the_genes(network):
    network.log_ceiling = torch.arange(4.0)
    network.hold_out(network)
    part = network.of_genes(np.array([3, 1]))
    assert part.log_ceiling.tolist() == [3, 1] and part.held_out_weight.shape == (3, 6, 2)
    assert part.head().log_ceiling.tolist() == [3, 1]


def test_what_was_bounded_is_said():
    said = bounded_message(np.array([0, 7, 2]), ["a", "b", "c"])
    assert said.startswith("2 of 3 genes have predicted rates far beyond") and "b at 7, c at 2" in said
