"""Training through the overlap matrix, where the rates are known."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array
from sklearn.metrics import mean_poisson_deviance

from pixel2gene.core import regression as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import (
    Measurement,
    Recipe,
    Reference,
    deviance,
    expected,
    fit_ensemble,
    gene_weights,
    held_out_deviance,
    make_batch,
    negative_log_likelihood,
    predict_rates,
    predict_units,
    thin_rows,
)

CPU = torch.device("cpu")
FOLDS = 3
RECIPE = Recipe(
    folds=FOLDS,
    hidden=(24,),
    dropout=0.0,
    input_dropout=0.0,
    batch=64,
    averaging=0.9,
    learning_rate=1e-2,
    weight_decay=0.0,
    superpixels_per_unit=8,
    check_steps=(25, 25),
    patience=10,
    max_checks=6,
)


def slide(seed=0, units=600, per_unit=3, genes=5, level=4.0):
    """Units of some superpixels each, with the true rate (superpixels, genes) of a log-linear world."""
    rng = np.random.default_rng(seed)
    n = units * per_unit
    features = rng.normal(size=(n, 6)).astype(np.float32)
    effect = np.random.default_rng(99).normal(size=(6, genes)) * 0.35
    rate = level * np.exp(features @ effect)
    area = rng.uniform(0.3, 1, n).astype(np.float32)
    overlap = csr_array((area, np.arange(n), np.arange(0, n + 1, per_unit)), shape=(units, n))
    depth = rng.uniform(0.5, 2, units).astype(np.float32)
    counts = csr_array(rng.poisson(depth[:, None] * (overlap @ rate)).astype(np.float32))
    fold = (np.arange(units) % FOLDS).astype(np.int8)
    patch = np.arange(units) // 4
    return Measurement(features, overlap, counts, depth, fold, patch), rate


def random_network(genes=4, channels=6, seed=0):
    network = Ensemble(Architecture(FOLDS, channels, genes, (7,), 0.0, 0.0), torch.Generator().manual_seed(seed))
    return network.eval()


def brute_force(network, data):
    """(members, units, genes)."""
    with torch.inference_mode():
        rate = network(torch.from_numpy(data.features)).exp().double().numpy()
    return data.depth[:, None] * np.stack([data.overlap.toarray() @ member for member in rate])


@pytest.fixture(scope="module")
def world():
    return slide()


@pytest.fixture(scope="module")
def fitted(world):
    return fit_ensemble(world[0], RECIPE, CPU, 0, False)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_expected_counts_by_brute_force(seed, density):
    rng = np.random.default_rng(seed)
    overlap = random_array((9, 20), density=density, rng=rng, format="csr", dtype=np.float32)
    data = Measurement(
        rng.normal(size=(20, 6)).astype(np.float32),
        csr_array(overlap),
        csr_array(rng.poisson(1, (9, 4)).astype(np.float32)),
        rng.uniform(0.1, 3, 9).astype(np.float32),
        np.zeros(9, np.int8),
        np.zeros(9, np.int64),
    )
    network = random_network(seed=seed % 100)
    units = rng.permutation(9)[:6]
    batch = make_batch(data, units, CPU, data.overlap[units])
    reference = brute_force(network, data)[:, units]
    with torch.inference_mode():
        np.testing.assert_allclose(expected(network, batch), reference, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(expected(network, batch, slice(1, 2)), reference[1:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.counts, data.counts[units].toarray())


def test_thin_rows_keeps_sums_in_expectation():
    rng = np.random.default_rng(0)
    overlap = csr_array(random_array((6, 60), density=0.6, rng=rng, format="csr"))
    draws = [thin_rows(overlap, 5, rng) for _ in range(3000)]
    assert all((np.diff(draw.indptr) == 5).all() for draw in draws[:50])
    mean = sum(draw.toarray() for draw in draws) / len(draws)
    # Each entry, and so each sum: an entry of v is drawn with probability 5 / n and then counts n / 5.
    size = np.diff(overlap.indptr)[:, None]
    error = overlap.toarray() * np.sqrt((size / 5 - 1) / len(draws))
    assert (np.abs(mean - overlap.toarray()) <= 5 * error + 1e-9).all()


def test_thin_rows_leaves_small_rows_alone():
    sizes = np.array([0, 3, 12, 1, 5])
    rng = np.random.default_rng(0)
    data, columns = rng.random(sizes.sum()), np.concatenate([rng.permutation(20)[:size] for size in sizes])
    overlap = csr_array((data, columns, np.concatenate([[0], np.cumsum(sizes)])), shape=(5, 20))
    thinned = thin_rows(overlap, 5, rng)
    assert thinned.shape == overlap.shape
    np.testing.assert_array_equal(np.diff(thinned.indptr), np.minimum(sizes, 5))
    small = sizes <= 5
    np.testing.assert_array_equal(thinned.toarray()[small], overlap.toarray()[small])
    kept = thinned.toarray()[2]
    np.testing.assert_allclose(kept[kept > 0], overlap.toarray()[2][kept > 0] * 12 / 5)
    assert thin_rows(overlap, 12, rng) is overlap


def test_deviance_equals_scikit_learn():
    rng = np.random.default_rng(0)
    counts, mean = rng.poisson(2, 200).astype(np.float32), rng.gamma(2, 1, 200).astype(np.float32)
    found = deviance(torch.from_numpy(mean), torch.from_numpy(counts)).mean()
    assert float(found) == pytest.approx(mean_poisson_deviance(counts, mean), rel=1e-5)
    assert torch.isfinite(deviance(torch.zeros(2), torch.tensor([0.0, 4.0]))).all()


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_gene_weights_make_weighted_means_sum_to_1(world, power):
    data, _ = world
    mean = data.counts.toarray().mean(axis=0)
    weight = gene_weights(data, power).numpy()
    assert (weight * mean).sum() == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(weight * mean**power / (weight[0] * mean[0] ** power), 1, rtol=1e-2)


def test_rates_are_recovered(world, fitted):
    network, history = fitted
    fresh, rate = slide(seed=1)
    mean, sd = predict_rates(network, fresh.features, np.arange(5), CPU)
    for gene in range(5):
        assert np.corrcoef(mean[:, gene], rate[:, gene])[0, 1] > 0.9
    np.testing.assert_allclose(mean.mean(axis=0), rate.mean(axis=0), rtol=0.05)
    assert (sd > 0).all() and sd.mean() < 0.3 * mean.mean()
    # A Poisson count scatters by a deviance of about 1 per gene around its mean, genes weighted by 1 / mean.
    assert history.deviance[history.best] < 0.7 * history.deviance[0]
    weight = gene_weights(fresh, 1)
    perfect = deviance(
        torch.from_numpy(fresh.depth[:, None] * (fresh.overlap @ rate)), torch.from_numpy(fresh.counts.toarray())
    )
    assert held_out_deviance(network, fresh, weight, CPU) < 1.15 * float((perfect * weight).sum() / 600)


def test_depth_scales_out(world, fitted):
    """Twice the depth and the counts of it: the same rates."""
    data, rate = world
    rng = np.random.default_rng(5)
    deep = replace(
        data,
        depth=4 * data.depth,
        counts=csr_array(rng.poisson(4 * data.depth[:, None] * (data.overlap @ rate)).astype(np.float32)),
    )
    found, _ = predict_rates(fit_ensemble(deep, RECIPE, CPU, 0, False)[0], data.features, np.arange(5), CPU)
    np.testing.assert_allclose(found.mean(axis=0), rate.mean(axis=0), rtol=0.05)
    before, _ = predict_rates(fitted[0], data.features, np.arange(5), CPU)
    np.testing.assert_allclose(found.mean(axis=0), before.mean(axis=0), rtol=0.05)
    # What is expected of a unit is proportional to its depth.
    (_, once), (_, four) = (next(predict_units(fitted[0], d, CPU, held_out=True)) for d in (data, deep))
    np.testing.assert_allclose(four, 4 * once, rtol=1e-5)


def test_a_seed_repeats_exactly(world):
    short = replace(RECIPE, max_checks=2, dropout=0.1, input_dropout=0.1)
    torch.manual_seed(123)
    outside = torch.random.get_rng_state()
    first, again, other = (fit_ensemble(world[0], short, CPU, seed, False) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert first[1] == again[1]
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[name])
    assert not torch.equal(first[0].weights[0], other[0].weights[0])


def test_a_member_learns_nothing_from_what_is_held_out_of_it(world):
    """Counts shuffled within fold 0, which leaves the genes' weights as they are: member 0 stays, the others change."""
    data, _ = world
    rng = np.random.default_rng(0)
    order = np.arange(len(data.fold))
    order[data.fold == 0] = rng.permutation(order[data.fold == 0])
    # One look at the held-out units, so that what is returned does not depend on them.
    recipe = replace(RECIPE, max_checks=1)
    first, _ = fit_ensemble(data, recipe, CPU, 0, False)
    other, _ = fit_ensemble(replace(data, counts=data.counts[order]), recipe, CPU, 0, False)
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(a[1], b[1], rtol=1e-3, atol=1e-4)


def apart_from(data):
    """Each unit is held apart from one of the members of the other folds, or in a tenth of the units from none."""
    rng = np.random.default_rng(8)
    units = np.arange(len(data.fold))
    apart = (data.fold + rng.integers(1, FOLDS, len(units))) % FOLDS
    return replace(data, apart=np.where(rng.random(len(units)) < 0.1, -1, apart).astype(np.int8))


@pytest.mark.parametrize("start", ["random", "reference"])
def test_a_member_learns_nothing_from_what_is_held_apart_from_it(world, start):
    """As above, among all units that member 0 may not see; from a reference, before the first step."""
    data = apart_from(world[0])
    order, hidden = np.arange(len(data.fold)), (data.fold == 0) | (data.apart == 0)
    order[hidden] = np.random.default_rng(0).permutation(order[hidden])
    shuffled = replace(data, counts=data.counts[order])
    genes = data.counts.shape[1]
    reference = None
    if start == "reference":
        architecture = Architecture(FOLDS, data.features.shape[1], genes, RECIPE.hidden, 0.0, 0.0)
        network = Ensemble(architecture, torch.Generator().manual_seed(0)).eval()
        reference = Reference(network, np.arange(genes))
    recipe = replace(RECIPE, max_checks=1)
    first, other = (fit_ensemble(one, recipe, CPU, 0, False, reference)[0] for one in (data, shuffled))
    changed = torch.zeros(FOLDS, dtype=torch.bool)
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
        changed |= ((a - b).abs() > 1e-4).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, True]
    # Without, member 0 sees some of these units.
    open_first, open_other = (
        fit_ensemble(replace(one, apart=None), recipe, CPU, 0, False, reference)[0] for one in (data, shuffled)
    )
    assert any(
        not torch.allclose(a[0], b[0], atol=1e-4)
        for a, b in zip(open_first.parameters(), open_other.parameters(), strict=True)
    )


def test_the_gradient_of_a_member_is_that_of_the_units_that_it_sees(world):
    data = apart_from(world[0])
    units = np.arange(len(data.fold))
    batch, weight = make_batch(data, units, CPU, data.overlap), gene_weights(data, 0.5)
    network = random_network(genes=5)
    loss = negative_log_likelihood(expected(network, batch), batch, weight)
    gradients = []
    for member in range(FOLDS):
        chosen = (data.fold != member) & (data.apart != member)
        network.zero_grad()
        loss[member, torch.from_numpy(chosen)].mean().backward(retain_graph=True)
        gradients.append([parameter.grad[member].clone() for parameter in network.parameters()])
    # A step of SGD, gradients too short to be clipped, leads down these.
    shrunk = weight * 1e-3
    before = [parameter.detach().clone() for parameter in network.parameters()]
    seen = torch.from_numpy(data.seen(units, FOLDS)).float()
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    module._step(network, optimiser, batch, seen, shrunk, 0.0)
    for i, (parameter, old) in enumerate(zip(network.parameters(), before, strict=True)):
        for member in range(FOLDS):
            torch.testing.assert_close(
                old[member] - parameter.detach()[member], 1e-3 * gradients[member][i], rtol=1e-3, atol=1e-6
            )


def test_output_weights_have_a_normal_prior(world):
    """The loss of all units is the negative log-likelihood minus the log of the prior, each gene by its weight."""
    data, _ = world
    units = np.arange(len(data.fold))
    network, weight = random_network(genes=5), 1e-3 * gene_weights(data, 0.5)
    batch = make_batch(data, units, CPU, data.overlap)
    seen = torch.from_numpy(data.seen(units, FOLDS)).float()
    gradient = []
    for precision in (0.0, 7.0):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
        module._step(network, optimiser, batch, seen, weight, precision / len(units))
        gradient.append([parameter.grad.clone() for parameter in network.parameters()])
    output = network.weights[-1].detach().clone().requires_grad_()
    torch.distributions.Normal(0, 7**-0.5).log_prob(output).mul(weight).sum().neg().backward()
    last = len(network.weights) - 1
    for i, (without, prior) in enumerate(zip(*gradient, strict=True)):
        torch.testing.assert_close(
            prior - without, output.grad / len(units) if i == last else 0 * prior, atol=1e-8, rtol=1e-2
        )


def test_seen_is_outside_the_fold_and_not_apart(world):
    data = apart_from(world[0])
    data = replace(data, fold=np.where(np.arange(600) % 10 == 0, -1, data.fold).astype(np.int8))
    units = np.array([3, 599, 0, 40, 41, 7])
    for one in (data, replace(data, apart=None)):
        seen = one.seen(units, FOLDS)
        assert seen.shape == (FOLDS, 6) and seen.dtype == bool
        for member in range(FOLDS):
            for unit, found in zip(units, seen[member], strict=True):
                apart = one.apart is not None and one.apart[unit] == member
                assert found == (one.fold[unit] != member and not apart)
    none = replace(data, fold=np.full(600, -1, np.int8), apart=np.full(600, -1, np.int8))
    assert none.seen(units, FOLDS).all()
    np.testing.assert_array_equal(data.rows(units).apart, data.apart[units])
    np.testing.assert_array_equal(data.rows(units).seen(np.arange(6), FOLDS), data.seen(units, FOLDS))
    assert world[0].rows(units).apart is None


def test_gradients_are_clipped_member_by_member(world):
    network = module._initial(world[0], RECIPE)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
        parameter.grad[1] = 5
    before = [parameter.grad.clone() for parameter in network.parameters()]
    module._clip_gradients(network)
    norm = torch.cat([parameter.grad[1].ravel() for parameter in network.parameters()]).norm()
    assert float(norm) == pytest.approx(1, rel=1e-5)
    for parameter, gradient in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter.grad[0], gradient[0])


def test_a_member_starts_from_the_units_that_it_sees():
    data = apart_from(slide(units=60)[0])
    counts = data.counts.toarray()
    counts[data.fold == 2] = 0
    counts[data.apart == 1] *= 3
    network = module._initial(replace(data, counts=csr_array(counts)), RECIPE)
    area = data.overlap.sum(axis=1) * data.depth
    for fold in range(FOLDS):
        seen = (data.fold != fold) & (data.apart != fold)
        rate = counts[seen].sum(axis=0) / area[seen].sum()
        np.testing.assert_allclose(network.biases[-1][fold, 0].exp().detach(), rate, rtol=0.02)


def test_held_out_units_are_predicted_by_their_own_member(world):
    data, _ = world
    data = replace(data, fold=np.where(np.arange(600) % 10 == 0, -1, data.fold).astype(np.int8))
    network = random_network(genes=5)
    reference = brute_force(network, data)
    found = np.full(reference.shape[1:], np.nan)
    for units, mean in predict_units(network, data, CPU, held_out=True):
        assert np.isnan(found[units]).all()
        found[units] = mean
    own = np.where((data.fold >= 0)[:, None], reference[data.fold, np.arange(600)], reference.mean(axis=0))
    np.testing.assert_allclose(found, own, rtol=1e-4)
    for units, mean in predict_units(network, data, CPU, held_out=False):
        found[units] = mean
    np.testing.assert_allclose(found, reference.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(("bound", "most"), [("SCORING_SUPERPIXELS", 100), ("SCORING_RATES", 1500)])
def test_pieces_do_not_show(world, bound, most, monkeypatch):
    data, _ = world
    network = random_network(genes=5)
    whole = list(predict_units(network, data, CPU, held_out=False))
    rates = predict_rates(network, data.features, np.array([3, 1]), CPU)
    # Either bound: so many superpixels, or so many rates of 3 members and 5 genes.
    monkeypatch.setattr(module, bound, most)
    parts = list(predict_units(network, data, CPU, held_out=False))
    assert len(whole) == 1 and len(parts) > 15
    np.testing.assert_array_equal(np.concatenate([units for units, _ in parts]), np.arange(600))
    np.testing.assert_allclose(np.concatenate([mean for _, mean in parts]), whole[0][1], rtol=1e-5)
    for one, again in zip(rates, predict_rates(network, data.features, np.array([3, 1]), CPU), strict=True):
        np.testing.assert_allclose(one, again, rtol=1e-4, atol=1e-6)


def test_rates_of_some_genes(world):
    features = world[0].features[:50]
    network = random_network(genes=5)
    with torch.inference_mode():
        rate = network(torch.from_numpy(features)).exp().numpy()
    mean, sd = predict_rates(network, features, np.array([4, 0]), CPU)
    np.testing.assert_allclose(mean, rate.mean(axis=0)[:, [4, 0]], rtol=1e-5)
    np.testing.assert_allclose(sd, rate.std(axis=0)[:, [4, 0]], rtol=1e-3, atol=1e-6)


def test_an_empty_gene_has_small_rates(world):
    data, _ = world
    counts = data.counts.toarray()
    counts[:, 2] = 0
    network, history = fit_ensemble(replace(data, counts=csr_array(counts)), RECIPE, CPU, 0, False)
    mean, _ = predict_rates(network, data.features, np.arange(5), CPU)
    assert np.isfinite(mean).all() and np.isfinite(history.deviance).all()
    assert mean[:, 2].max() < 0.05
    assert mean[:, 1].mean() > 1


def test_training_stops_when_it_gets_no_better(world, monkeypatch):
    looks = iter([3.0, 2.0, 2.5, 2.5, 2.5, 1.0])
    states = []

    def look(network, *_):
        states.append(copy.deepcopy(network.state_dict()))
        return next(looks)

    monkeypatch.setattr(module, "held_out_deviance", look)
    network, history = fit_ensemble(world[0], replace(RECIPE, patience=3, check_steps=(2, 2)), CPU, 0, False)
    assert (history.step, history.deviance) == ([2, 4, 6, 8, 10], [3.0, 2.0, 2.5, 2.5, 2.5])
    assert history.best == 1
    assert all(torch.equal(value, states[1][name]) for name, value in network.state_dict().items())


def test_the_loss_is_that_of_the_steps_since_the_look_before(world, monkeypatch):
    losses, step = [], module._step

    def recorded(*arguments):
        losses.append(float(step(*arguments)))
        return torch.tensor(losses[-1])

    monkeypatch.setattr(module, "_step", recorded)
    _, history = fit_ensemble(world[0], replace(RECIPE, max_checks=3, check_steps=(2, 2)), CPU, 0, False)
    np.testing.assert_allclose(history.loss, np.reshape(losses, (3, 2)).mean(axis=1), rtol=1e-6)


def test_the_loss_is_the_mean_over_the_units_that_members_may_see(world):
    data, _ = world
    network = module._initial(data, replace(RECIPE, dropout=0.0, input_dropout=0.0))
    units = np.arange(40)
    batch = module.make_batch(data, units, CPU, data.overlap[units])
    seen = torch.from_numpy(data.seen(units, RECIPE.folds)).float()
    weight = module.gene_weights(data, 0.5)
    with torch.no_grad():
        each = module.negative_log_likelihood(module.expected(network, batch), batch, weight).numpy()
    expected = np.mean([own[mask].mean() for own, mask in zip(each, seen.bool().numpy(), strict=True)])
    loss = module._step(network, torch.optim.SGD(network.parameters(), 0.0), batch, seen, weight, 3.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_large_units_are_thinned_and_still_recovered():
    data, rate = slide(units=250, per_unit=30, genes=3)
    network, _ = fit_ensemble(data, RECIPE, CPU, 0, False)
    mean, _ = predict_rates(network, data.features, np.arange(3), CPU)
    for gene in range(3):
        assert np.corrcoef(mean[:, gene], rate[:, gene])[0, 1] > 0.85
    np.testing.assert_allclose(mean.mean(axis=0), rate.mean(axis=0), rtol=0.05)


def test_every_pass_takes_every_unit_once():
    data, _ = slide(units=120)
    patches, load = module._patches(data, RECIPE)
    assert sorted(np.concatenate(patches)) == list(range(120))
    for units in patches:
        assert len(set(data.patch[units])) == 1
    batches = module._batches(patches, load, 60, np.random.default_rng(0))
    for _ in range(2):
        seen = []
        while len(seen) < 120:
            seen += next(batches).tolist()
        assert sorted(seen) == list(range(120))


def test_the_default_recipe_is_that_of_the_docs():
    recipe = Recipe()
    assert (recipe.hidden, recipe.dropout, recipe.input_dropout) == ((256, 256, 16), 0.4, 0.4)
    assert (recipe.shrinkage, recipe.gene_power, recipe.lead_genes) == (10, 0.5, 1000)
    assert not recipe.library_size
