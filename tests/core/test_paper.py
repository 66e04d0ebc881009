"""The published recipe, against plain loops and known truths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, random_array
from torch import nn

from pixel2gene.core import paper as module
from pixel2gene.core.paper import (
    Examples,
    PaperRecipe,
    batch_size,
    covered,
    fit_paper,
    initial,
    learning_rate,
    squared_error,
    training_units,
)
from pixel2gene.core.regression import Measurement, gene_weights, held_out_deviance, predict_rates, predict_units

CPU = torch.device("cpu")
FOLDS = 3
SHORT = PaperRecipe(folds=FOLDS, hidden=(16, 16), clusters=2, epochs=2)
# Nothing dropped, enough steps at the published learning rate.
LONG = PaperRecipe(folds=FOLDS, hidden=(64, 64), clusters=1, drop=0.0, epochs=200)


def slide(units=500, per_unit=1, genes=4, seed=0, share=1.0):
    """Noiseless units of some superpixels each, with the true linear rate (superpixels, genes)."""
    rng = np.random.default_rng(seed)
    n = units * per_unit
    features = rng.normal(size=(n, 6)).astype(np.float32)
    rate = 20 + 3 * features @ np.random.default_rng(99).uniform(-1, 1, (6, genes))
    overlap = csr_array((np.full(n, share, np.float32), np.arange(n), np.arange(0, n + 1, per_unit)))
    counts = csr_array((overlap @ rate).astype(np.float32))
    fold = (np.arange(units) % FOLDS).astype(np.int8)
    return Measurement(features, overlap, counts, np.ones(units, np.float32), fold, np.arange(units)), rate


@pytest.mark.parametrize(
    ("units", "rate"), [(1, 1e-4), (9_999, 1e-4), (10_000, 1e-5), (500_000, 1e-5), (500_001, 1e-6), (10**7, 1e-6)]
)
def test_learning_rate(units, rate):
    assert learning_rate(units) == rate


@pytest.mark.parametrize(("units", "batch"), [(1, 1), (31, 1), (32, 2), (1600, 100), (2048, 128), (10**6, 128)])
def test_batch_size(units, batch):
    assert batch_size(units) == batch


def test_library_size_is_refused():
    with pytest.raises(ValueError, match="knows no library size"):
        PaperRecipe(library_size=True)


def test_selection_by_brute_force():
    """Three kinds of tissue far apart, each a cluster of its own."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], [50, 30, 1]))
    features = (rng.normal(size=(2 * 81, 3)) + 50 * np.eye(3)[np.repeat(kind, 2)]).astype(np.float16)
    overlap = csr_array((rng.uniform(0.2, 1, 162), np.arange(162), np.arange(0, 163, 2)))
    counts = rng.poisson([2, 9, 3], (3, 81, 3))[kind, np.arange(81)]
    counts[rng.random(81) < 0.3] = 0
    counts[kind == 2] = 1
    data = Measurement(
        features, overlap, csr_array(counts), np.ones(81, np.float32), np.zeros(81, np.int8), np.arange(81)
    )
    expected = []
    for unit in range(81):
        alike = [counts[i].sum() for i in range(81) if kind[i] == kind[unit] and counts[i].sum() > 0]
        if counts[unit].sum() > 0 and counts[unit].sum() >= np.percentile(alike, 30):
            expected.append(unit)
    assert training_units(data, PaperRecipe(clusters=3), 0).tolist() == expected
    assert 0.4 * 81 < len(expected) < 0.6 * 81
    # Without clusters the poorer tissue would lose more.
    assert training_units(data, PaperRecipe(clusters=1), 0).tolist() != expected
    few = data.rows(np.flatnonzero(counts.sum(axis=1))[:4])
    assert training_units(few, PaperRecipe(clusters=15, drop=0.0), 0).tolist() == [0, 1, 2, 3]


def test_selection_does_not_depend_on_the_depth_of_slides():
    data, _ = slide()
    deep = np.where(np.arange(500) < 250, 3, 1).astype(np.float32)
    deeper = replace(data, depth=deep, counts=csr_array(data.counts * deep[:, None]))
    np.testing.assert_array_equal(training_units(deeper, SHORT, 0), training_units(data, SHORT, 0))


def test_small_units_are_read_off_the_superpixel_that_covers_most():
    rng = np.random.default_rng(0)
    overlap = csr_array(random_array((30, 50), density=0.1, rng=rng, format="csr", dtype=np.float32))
    overlap = overlap[np.diff(overlap.indptr) > 0]
    overlap.data /= overlap.sum(axis=1).mean()
    superpixels, share = covered(overlap)
    np.testing.assert_array_equal(superpixels[:, 0], overlap.toarray().argmax(axis=1))
    assert superpixels.shape == share.shape == (overlap.shape[0], 1) and (share == 1).all()


def test_spots_are_the_mean_over_their_disk():
    rng = np.random.default_rng(0)
    overlap = csr_array(random_array((30, 90), density=0.3, rng=rng, format="csr", dtype=np.float32))
    superpixels, share = covered(overlap)
    found = np.zeros(overlap.shape)
    np.add.at(found, (np.arange(30)[:, None], superpixels), share)
    dense = overlap.toarray()
    np.testing.assert_allclose(found, dense / dense.sum(axis=1, keepdims=True), rtol=1e-5)

    network = initial(SHORT, 6, 4, torch.Generator().manual_seed(0))
    features, target = torch.randn(90, 6), torch.rand(30, 4)
    examples = Examples(features, torch.from_numpy(superpixels), torch.from_numpy(share), target)
    units = torch.tensor([[0, 7, 3, 3], [29, 1, 2, 5], [4, 4, 8, 9]])
    with torch.inference_mode():
        rates = network.link(network.outputs(features)).double().numpy()
        error = squared_error(network, examples, units).numpy()
    for member in range(3):
        mean = (found @ rates[member])[units[member]]
        assert error[member] == pytest.approx(np.square(mean - target[units[member]].numpy()).mean(), rel=1e-5)


def test_initial_weights_are_those_of_torch():
    weights = initial(PaperRecipe(), 40, 3, torch.Generator().manual_seed(0)).weights
    reference = nn.Linear(256, 256).weight.std().item()
    assert [w.shape[1:] for w in weights] == [(40, 256), (256, 256), (256, 256), (256, 256), (256, 3)]
    assert weights[1].std().item() == pytest.approx(reference, rel=0.02)
    assert not torch.equal(weights[1][0], weights[1][1])


@pytest.mark.parametrize("per_unit", [1, 3])
def test_training_equals_a_plain_loop_per_member(per_unit, monkeypatch):
    """Of torch's own layers, shown the same batches."""
    data, _ = slide(units=100, per_unit=per_unit)
    batches, stepwise = [], module.squared_error

    def record(network, examples, units):
        batches.append((examples, units))
        return stepwise(network, examples, units)

    monkeypatch.setattr(module, "squared_error", record)
    trained, history = fit_paper(data, SHORT, CPU, 0, False)
    start = initial(SHORT, 6, 4, torch.Generator().manual_seed(0))
    assert len(batches) == history.step[0]
    for member in range(FOLDS):
        linear = [nn.Linear(*weight.shape[1:]) for weight in start.weights]
        for layer, weight, bias in zip(linear, start.weights, start.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        network = nn.Sequential(
            linear[0], nn.LeakyReLU(0.1), linear[1], nn.LeakyReLU(0.1), linear[2], nn.ELU(alpha=0.01)
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
        for examples, units in batches:
            chosen = units[member]
            mean = (network(examples.features[examples.superpixels[chosen]]) + 0.01).mean(dim=1)
            optimiser.zero_grad()
            nn.functional.mse_loss(mean, examples.target[chosen]).backward()
            optimiser.step()
        for layer, weight, before in zip(linear, trained.weights, start.weights, strict=True):
            torch.testing.assert_close(weight[member], layer.weight.T, rtol=1e-3, atol=1e-5)
            assert (weight[member] - before[member]).abs().max() > 1e-4


def test_a_pass_shows_each_member_all_of_its_units(monkeypatch):
    data, _ = slide(units=100)
    data = replace(data, fold=np.repeat([0, 1, 2], [20, 30, 50]).astype(np.int8))
    shown, stepwise = [], module.squared_error

    def record(network, examples, units):
        shown.append(units)
        return stepwise(network, examples, units)

    monkeypatch.setattr(module, "squared_error", record)
    recipe = replace(SHORT, drop=0.0, epochs=3)
    _, history = fit_paper(data, recipe, CPU, 0, False)
    batch = batch_size(100)
    steps = -(-80 // batch)
    assert history.step == [3 * steps] and {units.shape for units in shown} == {(FOLDS, batch)}
    for epoch in range(3):
        passed = torch.cat(shown[epoch * steps : (epoch + 1) * steps], dim=1)
        for member in range(FOLDS):
            assert set(passed[member].tolist()) == set(np.flatnonzero(data.fold != member))


@pytest.mark.parametrize(("per_unit", "share"), [(1, 1.0), (1, 0.5), (4, 1.0), (4, 0.7)])
def test_rates_per_superpixel_are_recovered(per_unit, share):
    data, _ = slide(per_unit=per_unit, share=share)
    network, history = fit_paper(data, LONG, CPU, 0, False)
    _, before = fit_paper(data, replace(LONG, epochs=0), CPU, 0, False)
    fresh, rate = slide(seed=1)
    mean, _ = predict_rates(network, fresh.features, np.arange(4), CPU)
    for gene in range(4):
        assert np.corrcoef(mean[:, gene], rate[:, gene])[0, 1] > 0.97
    np.testing.assert_allclose(mean.mean(axis=0), rate.mean(axis=0), rtol=0.03)
    assert history.deviance[0] < 0.1 * before.deviance[0]
    # What is expected of a unit is its count.
    units, counts = next(predict_units(network, data, CPU, held_out=True))
    np.testing.assert_allclose(counts.mean(), data.counts[units].toarray().mean(), rtol=0.03)


def test_lower_and_upper_end_of_the_counts_are_put_back():
    data, _ = slide()
    counts = data.counts.toarray()
    counts[:, 2] = 7
    counts[:, 3] = 0
    network, _ = fit_paper(replace(data, counts=csr_array(counts)), replace(SHORT, drop=0.0), CPU, 0, False)
    np.testing.assert_allclose(network.scale[:2], np.ptp(counts, axis=0)[:2], rtol=1e-6)
    np.testing.assert_allclose(network.offset, counts.min(axis=0), rtol=1e-6)
    assert network.scale[2:].tolist() == [1, 1]


def test_depth_scales_out():
    data, _ = slide()
    depth = np.where(np.arange(500) % 2 == 0, 4, 0.5).astype(np.float32)
    deep = replace(data, depth=depth, counts=csr_array(data.counts * depth[:, None]))
    same, other = (fit_paper(one, SHORT, CPU, 0, False)[0] for one in (data, deep))
    for a, b in zip(same.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_member_learns_nothing_from_what_is_held_out_of_it():
    """Counts shuffled within fold 0, which leaves the ends that they are scaled by: member 0 stays, others change."""
    data, _ = slide()
    order = np.arange(500)
    order[data.fold == 0] = np.random.default_rng(0).permutation(order[data.fold == 0])
    recipe = replace(SHORT, drop=0.0)
    first, _ = fit_paper(data, recipe, CPU, 0, False)
    other, _ = fit_paper(replace(data, counts=data.counts[order]), recipe, CPU, 0, False)
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(a[1], b[1], rtol=1e-4, atol=1e-6)


def test_what_was_dropped_is_scored_all_the_same():
    data, _ = slide()
    assert len(training_units(data, SHORT, 0)) < 400
    network, history = fit_paper(data, SHORT, CPU, 0, False)
    assert history.deviance == [held_out_deviance(network, data, gene_weights(data, 1), CPU)]
    scored = [units for units, _ in predict_units(network, data, CPU, held_out=True)]
    assert sorted(np.concatenate(scored)) == list(range(500))


def test_counts_of_units_that_were_dropped_do_not_count():
    data, _ = slide()
    dropped = np.setdiff1d(np.arange(500), training_units(data, SHORT, 0))
    counts = data.counts.toarray()
    counts[dropped] = counts[dropped][:, ::-1]
    first, other = (
        fit_paper(replace(data, counts=one), SHORT, CPU, 0, False)[0] for one in (data.counts, csr_array(counts))
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_seed_repeats_exactly():
    data, _ = slide()
    outside = torch.random.get_rng_state()
    first, again, other = (fit_paper(data, SHORT, CPU, seed, False) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert first[1] == again[1]
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[name])
    assert not torch.equal(first[0].weights[0], other[0].weights[0])


def test_counts_in_one_fold_only_are_refused():
    data, _ = slide(units=60)
    counts = data.counts.toarray()
    counts[data.fold != 1] = 0
    with pytest.raises(ValueError, match="all lie in one fold"):
        fit_paper(replace(data, counts=csr_array(counts)), SHORT, CPU, 0, False)
