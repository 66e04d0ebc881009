"""Output layers fitted to all genes, against closed forms and other solvers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array

from pixel2gene.core import outputs as module
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.outputs import Finished, finish, leading_genes
from pixel2gene.core.regression import EMPTY_GENE_COUNTS, Measurement, Recipe, predict_units

CPU = torch.device("cpu")
MEMBERS, CHANNELS, WIDTH, GENES, UNITS = 3, 5, 4, 30, 1200
LEAD = np.arange(0, GENES, 2)
LEADING = len(LEAD)
RECIPE = Recipe(folds=MEMBERS)


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
    centre = np.log((counts.sum() + EMPTY_GENE_COUNTS) / (overlap.sum(axis=1) * depth).sum())

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


def evidence_of(network, data, member, x=None):
    x = latents(network, data.features, member).astype(np.float32) if x is None else x
    seen = np.flatnonzero(data.seen(np.arange(len(data.fold)), MEMBERS)[member])
    return module._evidence(x, data, seen, CPU, 0)


def modes(evidence, start=None):
    found = module._modes(evidence, prior(), start)
    assert found.converged.all()
    return found.state.weights


def finished(network, data, lead=LEAD, **options):
    return finish(network, lead, data, RECIPE, CPU, 0, **options)


def member_totals(network, data):
    """(members, units, genes) expected counts."""
    with torch.inference_mode():
        rates = network.rates(torch.from_numpy(data.features)).double().numpy()
    return np.stack([data.depth[:, None] * (data.overlap @ rate) for rate in rates])


@pytest.mark.parametrize("per_unit", [1, 3])
@pytest.mark.parametrize("units", [10**6, 300])
def test_the_mode_is_that_of_another_solver(per_unit, units, monkeypatch):
    """Also where some units tell how the likelihood bends, and from where training ended."""
    monkeypatch.setattr(module, "BEND_UNITS", units)
    monkeypatch.setattr(module, "GAIN", 1e-6)
    network = hidden()
    data, _ = slide(network, per_unit)
    evidence = evidence_of(network, data, 1)
    found = module._modes(evidence, prior(), None)
    again = modes(evidence, torch.randn(GENES, 1 + WIDTH, generator=torch.Generator().manual_seed(0)).double())
    for gene in (0, 7, 29):
        expected = mode_of(network, data, 1, gene, prior())
        np.testing.assert_allclose(found.state.weights[gene], expected, atol=5e-3)
        np.testing.assert_allclose(again[gene], expected, atol=5e-3)
    assert found.covariance.shape == (WIDTH, WIDTH) and torch.linalg.eigvalsh(found.covariance).min() > 0


@pytest.mark.parametrize("per_unit", [1, 20])
def test_latents_with_tails_do_not_run_away(per_unit):
    """As on whole real slides: a few superpixels lie tens of typical latents away, some of them with no counts."""
    network = hidden()
    data, _ = slide(network, per_unit)
    rng = np.random.default_rng(4)
    x = rng.gamma(0.15, 6.0, (len(data.features), WIDTH)).astype(np.float32)
    assert x.max() > 20 * x.mean()
    rate = np.exp(rng.normal(0, 0.15, (WIDTH, GENES)).T @ x.T).T.clip(0, 300) * 0.2
    rate[x.max(axis=1) > 15] *= rng.random((np.count_nonzero(x.max(axis=1) > 15), 1)) < 0.5
    counts = csr_array(rng.poisson(data.depth[:, None] * (data.overlap @ rate)).astype(np.float32))
    data = replace(data, counts=counts)
    evidence = evidence_of(network, data, 0, x)
    best = None
    # From weights under which the far ones are absurd, or overflow, too.
    for start in (None, 0.6, 1.5, 3.0):
        start = None if start is None else torch.full((GENES, 1 + WIDTH), start, dtype=torch.float64)
        found = module._modes(evidence, prior(), start)
        best = found.state.value if best is None else best
        assert (found.state.value - best).abs().max() < 0.2
        assert found.converged.all()
        weights = module._with_totals(evidence, found.state)
        seen = data.fold != 0
        expected = data.depth[seen, None] * (
            data.overlap[seen] @ np.exp(weights[:, 0].numpy() + x @ weights[:, 1:].T.numpy())
        )
        np.testing.assert_allclose(expected.sum(axis=0), counts[seen].sum(axis=0), rtol=1e-3)
        assert expected.max() < 5 * counts.max()


@pytest.mark.parametrize("per_unit", [1, 4])
def test_every_member_expects_as_many_counts_as_there_are(per_unit):
    network = hidden()
    data, _ = slide(network, per_unit)
    found = finished(network, data)
    assert found.converged.all() and found.complaint([str(i) for i in range(GENES)]) is None
    counts = data.counts.toarray()
    whole, apart = member_totals(found.network, data), member_totals(found.network.held_out(), data)
    for member in range(MEMBERS):
        seen = data.fold != member
        np.testing.assert_allclose(whole[member].sum(axis=0), counts.sum(axis=0), rtol=2e-3)
        np.testing.assert_allclose(apart[member, seen].sum(axis=0), counts[seen].sum(axis=0), rtol=2e-3)
    np.testing.assert_allclose(found.level, 1, atol=2e-3)
    assert found.peak.max() < 2


def test_a_gene_of_one_place_is_known_to_the_member_that_did_not_see_it():
    """Its outputs for held-out units are not."""
    network = hidden()
    data, _ = slide(network)
    counts = data.counts.toarray()
    counts[:, 2] *= (data.fold == 1) & (latents(network, data.features, 1)[:, 0] > 0)
    data = replace(data, counts=csr_array(counts))
    found = finished(network, data)
    whole, apart = member_totals(found.network, data)[1, :, 2], member_totals(found.network.held_out(), data)[1, :, 2]
    assert whole.sum() == pytest.approx(counts[:, 2].sum(), rel=1e-2) and apart.sum() < 0.02 * counts[:, 2].sum()


@pytest.mark.parametrize("case", ["trained", "anew", "one gene", "reference"])
def test_no_member_learns_from_what_is_held_out_of_it(monkeypatch, case):
    # What is left out of each has a say in one choice for all.
    monkeypatch.setattr(module, "SHARES", (0.0, 1.0))
    asked = []
    monkeypatch.setattr(
        module, "_held_out_deviance", lambda *_: asked.append(0) or float(len(asked) % 2 == (case != "trained"))
    )
    genes = 1 if case == "one gene" else GENES
    network = hidden(genes=genes)
    data = slide(network)[0].of_genes(np.arange(genes))
    other = data.counts.toarray()
    other[data.fold == 1] = 50
    found, changed = (
        finished(
            network, replace(data, counts=csr_array(counts)), np.arange(genes), from_reference=case == "reference"
        ).network.held_out()
        for counts in (data.counts.toarray(), other)
    )
    for member in range(MEMBERS):
        same = torch.equal(found.biases[-1][member], changed.biases[-1][member])
        assert same == (member == 1)
        assert member != 1 or torch.equal(found.weights[-1][member], changed.weights[-1][member])
    # Held-out units are predicted by these.
    of_all = finished(
        network, replace(data, counts=csr_array(other)), np.arange(genes), from_reference=case == "reference"
    ).network
    for units, mean in predict_units(of_all, data, CPU, held_out=True):
        member = data.fold[units[0]]
        np.testing.assert_allclose(mean, member_totals(changed, data)[member, units], rtol=1e-4)


def test_hidden_layers_stay_and_sparse_genes_are_learnt():
    network = hidden()
    data, rate = slide(network, level=0.05)
    fitted = finished(network, data).network
    assert fitted.architecture.genes == GENES
    for layer in range(len(network.weights) - 1):
        torch.testing.assert_close(fitted.weights[layer], network.weights[layer])
    torch.testing.assert_close(fitted.feature_mean, network.feature_mean)
    # Some 60 counts each, a third of which is held out of each member.
    first = Ensemble(replace(fitted.architecture, members=1)).eval()
    state = fitted.held_out().state_dict()
    first.load_state({name: value[:1] if value.ndim == 3 else value for name, value in state.items()})
    assert np.median(correlations(first, data, rate)) > 0.8


@pytest.mark.parametrize("genes", [1, WIDTH, 8, CHANNELS])
def test_as_many_genes_as_hidden_units_or_channels(genes):
    network = hidden(genes=genes)
    data, _ = slide(network)
    fitted = finished(network, data.of_genes(np.arange(genes)), np.arange(genes)).network
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
    fitted = finished(network, data).network
    with torch.inference_mode():
        found = fitted.rates(torch.from_numpy(data.features))[0].numpy()
    assert np.corrcoef(np.log(found[:, -1]), np.log(rate[:, -1]))[0, 1] > 0.9


@pytest.mark.parametrize("per_unit", [1, 2])
def test_a_gene_is_learnt_only_where_it_was_measured(per_unit):
    network = hidden()
    data, _ = slide(network, per_unit)
    panels = np.ones((2, GENES), bool)
    panels[1, 5] = False
    of_slide = (np.arange(UNITS) >= UNITS // 2).astype(np.intp)
    joined = replace(data, slide=of_slide, panels=panels)
    found = modes(evidence_of(network, joined, 0))
    expected = modes(evidence_of(network, data.rows(np.arange(UNITS // 2)), 0))
    torch.testing.assert_close(found[5], expected[5], atol=2e-3, rtol=0)
    assert (found[4] - expected[4]).abs().max() > 2e-3


def test_a_gene_without_counts_has_a_small_finite_rate():
    network = hidden()
    data, _ = slide(network)
    counts = data.counts.toarray()
    counts[:, 3] = 0
    found = finished(network, replace(data, counts=csr_array(counts)))
    fitted = found.network
    with torch.inference_mode():
        rate = fitted.rates(torch.from_numpy(data.features))[..., 3]
    assert torch.isfinite(rate).all() and rate.sum(dim=1).max() < 1.5
    assert found.complaint([str(i) for i in range(GENES)]) is None


def test_outputs_that_predict_held_out_units_better_are_kept(monkeypatch):
    network, everything = hidden(genes=GENES), np.arange(GENES)
    data, _ = slide(network)
    asked = []

    def by_order(lowest):
        def deviance(*_):
            asked.append(None)
            return float((len(asked) - 1) % 3 != lowest)

        monkeypatch.setattr(module, "_held_out_deviance", deviance)
        asked.clear()
        return finished(network, data, everything).network.held_out().weights[-1]

    trained, between, anew = (by_order(share) for share in range(3))
    torch.testing.assert_close(trained, network.weights[-1])
    torch.testing.assert_close(between, (trained + anew) / 2)
    assert (anew - trained).abs().max() > 0.1
    monkeypatch.undo()
    # Trained outputs are random here.
    torch.testing.assert_close(finished(network, data, everything).network.held_out().weights[-1], anew)


def test_outputs_of_a_reference_are_kept_and_other_genes_are_fitted():
    data, rate = slide(hidden())
    whole = hidden(genes=GENES)
    kept = finished(whole, data, np.arange(GENES), from_reference=True).network
    torch.testing.assert_close(kept.weights[-1], whole.weights[-1])
    network = hidden()
    some = finished(network, data, from_reference=True).network
    torch.testing.assert_close(some.weights[-1][..., LEAD], network.weights[-1])
    others = np.setdiff1d(np.arange(GENES), LEAD)
    assert np.median(correlations(some, data, rate)[others]) > 0.5


def test_leading_genes_have_the_most_counts():
    counts = csr_array(np.array([[0, 5, 1, 2], [0, 5, 1, 2]], np.float32))
    assert leading_genes(counts, 2).tolist() == [1, 3]
    assert leading_genes(counts, 9).tolist() == [0, 1, 2, 3]
    assert leading_genes(counts, 1).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"level": 1.03}, "expects 2% more or fewer counts than there are of 1 genes (b)"),
        ({"level": np.nan}, "expects 2% more or fewer counts"),
        ({"peak": 6.0}, "expects over 5 times the highest count of any unit of 1 genes (b)"),
        ({"converged": False}, "has outputs that did not converge of 1 genes (b)"),
    ],
)
def test_a_fit_that_is_not_sound_says_so(what, said):
    sound = {"level": np.ones((2, 3)), "peak": np.ones((2, 3)), "converged": np.ones(3, bool)}
    assert Finished(hidden(), **sound).complaint(["a", "b", "c"]) is None
    for name, value in what.items():
        sound[name][..., 1] = value
    assert said in Finished(hidden(), **sound).complaint(["a", "b", "c"])
