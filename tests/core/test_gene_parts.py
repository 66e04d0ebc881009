"""Many genes a part at a time."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pixel2gene.core import regression as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.gene_parts import deal_genes, gather, hidden_layers, output_layer, split
from pixel2gene.core.regression import Measurement, Recipe, Reference, expected, fit_ensemble, make_batch, predict_rates

CPU = torch.device("cpu")
GENES, UNITS = 12, 400
RECIPE = Recipe(
    folds=3,
    hidden=(24,),
    dropout=0.0,
    input_dropout=0.0,
    learning_rate=1e-2,
    batch=64,
    averaging=0.9,
    check_steps=(25, 25),
    max_checks=8,
    shrinkage=0.0,
)
PARTS = replace(RECIPE, shrinkage=3.0, genes_per_step=5)
NETWORKS = (lambda part: part.network, lambda part: part.average)


def slide(seed):
    """A unit on each superpixel, and the (superpixels, genes) rate of a log-linear world."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(UNITS, 6)).astype(np.float32)
    rate = 4 * np.exp(features @ np.random.default_rng(99).normal(size=(6, GENES)) * 0.35)
    units = np.arange(UNITS)
    overlap = csr_array((np.ones(UNITS, np.float32), (units, units)))
    counts = csr_array(rng.poisson(rate).astype(np.float32))
    fold = (units % 3).astype(np.int8)
    return Measurement(features, overlap, counts, np.ones(UNITS, np.float32), fold, units // 4), rate


@pytest.fixture(scope="module")
def world():
    return slide(0)


def turns_of(data, recipe, reference=None):
    torch.manual_seed(0)
    network = module._initial(data, recipe)
    average = copy.deepcopy(network).eval()
    totals = data.counts.sum(axis=0)
    parts = split(network, average, deal_genes(totals, recipe.genes_per_step, np.random.default_rng(0)))
    optimiser = module._optimiser(parts, recipe, reference)
    return network, average, parts, module._turns(data, recipe, reference, parts), optimiser


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 99))
def test_every_gene_is_dealt_once_and_abundant_ones_to_all(genes, most, seed):
    rng = np.random.default_rng(seed)
    totals = rng.integers(0, 9, genes).astype(float)
    dealt = deal_genes(totals, most, rng)
    assert len(dealt) == -(-genes // most)
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(genes))
    assert max(map(len, dealt)) <= most
    # By rank, no part is ever more than one gene ahead of another.
    owner = np.empty(genes, int)
    for part, members in enumerate(dealt):
        owner[members] = part
    ranked = owner[np.argsort(totals, kind="stable")]
    for end in range(len(dealt), genes + 1, len(dealt)):
        assert np.ptp(np.bincount(ranked[:end], minlength=len(dealt))) == 0


def test_the_gradient_is_that_of_all_genes_on_average(world):
    data, _ = world
    units = np.arange(100)
    seen = torch.from_numpy(data.seen(units, RECIPE.folds)).float()

    def gradients(recipe):
        network, _, parts, turns, optimiser = turns_of(data, recipe)
        for group in optimiser.param_groups:
            group["lr"] = 0.0
        found = []
        for turn in turns:
            # Too short to be clipped.
            small = replace(turn, weight=turn.weight * 1e-3)
            module._step(small, optimiser, make_batch(turn.data, units, CPU, data.overlap[units]), seen)
            found.append([layer.grad.clone() for layer in turn.part.network.parameters()])
        return parts, found

    _, (whole,) = gradients(replace(PARTS, genes_per_step=GENES))
    parts, some = gradients(PARTS)
    assert len(parts) == 3
    depth = len(RECIPE.hidden) + 1
    for i, reference in enumerate(whole):
        if i % depth < depth - 1:
            torch.testing.assert_close(sum(each[i] for each in some) / 3, reference, rtol=1e-4, atol=1e-9)
        for part, each in zip(parts, some, strict=True):
            if i % depth == depth - 1:
                torch.testing.assert_close(each[i] / 3, reference[..., part.genes], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("start", ["random", "reference"])
def test_outputs_wait_for_their_turn(world, start):
    data, _ = world
    reference = None
    if start == "reference":
        architecture = Architecture(RECIPE.folds, 6, GENES, RECIPE.hidden, 0.0, 0.0)
        reference = Reference(Ensemble(architecture), np.arange(GENES))
    _, _, parts, turns, optimiser = turns_of(data, PARTS, reference)
    units = np.arange(100)
    seen = torch.from_numpy(data.seen(units, RECIPE.folds)).float()
    # Every part has moments by then.
    for turn in [*turns, turns[1]]:
        before = [[layer.detach().clone() for one in parts for layer in output_layer(net(one))] for net in NETWORKS]
        shared = [layer.detach().clone() for layer in hidden_layers(parts[0].network)]
        module._step(turn, optimiser, make_batch(turn.data, units, CPU, data.overlap[units]), seen)
        for net, old in zip(NETWORKS, before, strict=True):
            new = [layer for one in parts for layer in output_layer(net(one))]
            moved = [not torch.equal(a, b) for a, b in zip(old, new, strict=True)]
            assert moved == [one is turn.part for one in parts for _ in range(2)]
        now = hidden_layers(parts[2].network)
        assert not any(torch.equal(a, b) for a, b in zip(shared, now, strict=True))


def test_the_only_part_takes_plain_steps(world):
    """Of AdamW on all weights and an exponential moving average, bit for bit."""
    data, _ = world
    recipe = replace(PARTS, genes_per_step=GENES, shrinkage=0.0)
    network, average, (part,), (turn,), optimiser = turns_of(data, recipe)
    assert part.network is network and turn.data is data and gather(average, [part]) is average
    plain = copy.deepcopy(network)
    mean = [layer.detach().clone() for layer in plain.parameters()]
    reference = torch.optim.AdamW(plain.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    weight = module.gene_weights(data, recipe.gene_power)
    for start in (0, 100, 200):
        units = np.arange(start, start + 100)
        batch = make_batch(data, units, CPU, data.overlap[units])
        seen = torch.from_numpy(data.seen(units, RECIPE.folds)).float()
        module._step(turn, optimiser, batch, seen)
        reference.zero_grad()
        loss = module.negative_log_likelihood(expected(plain, batch), batch, weight)
        ((loss * seen).sum(dim=1) / seen.sum(dim=1)).sum().backward()
        module._clip_gradients(plain)
        reference.step()
        for slow, fast in zip(mean, plain.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - recipe.averaging)
    for found, wanted in ((network.parameters(), plain.parameters()), (average.parameters(), mean)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_parts_are_gathered_where_they_were(world):
    network, average, parts, _, _ = turns_of(world[0], PARTS)
    wanted = average.weights[-1].detach().clone()
    with torch.no_grad():
        average.weights[-1].zero_()
        parts[0].average.weights[0].add_(1)
    found = gather(average, parts)
    torch.testing.assert_close(found.weights[-1].detach(), wanted)
    assert all(part.average.weights[0] is average.weights[0] for part in parts)
    assert all(part.network.weights[0] is network.weights[0] for part in parts)


def test_parts_learn_about_as_much_as_all_at_once(world):
    data, _ = world
    fresh, rate = slide(1)

    def score(genes_per_step):
        network, history = fit_ensemble(data, replace(RECIPE, genes_per_step=genes_per_step), CPU, 0, False)
        found, _ = predict_rates(network, fresh.features, np.arange(GENES), CPU)
        assert history.deviance[history.best] < history.deviance[0]
        np.testing.assert_allclose(found.mean(axis=0), rate.mean(axis=0), rtol=0.1)
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, rate.T, strict=True)])

    whole, some = score(GENES), score(4)
    assert whole > 0.9
    assert some > whole - 0.02
