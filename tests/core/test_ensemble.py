from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixel2gene.core.ensemble import FEATURE_LIMIT, Architecture, Ensemble

SIZES = Architecture(members=3, channels=7, genes=6, hidden=(11, 5), dropout=0.3, input_dropout=0.2)


def random_network(architecture):
    made = Ensemble(architecture, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        made.feature_mean.normal_()
        made.feature_sd.uniform_(0.5, 2)
        for bias in made.biases:
            bias.normal_()
    return made


@pytest.fixture
def network():
    return random_network(SIZES)


@pytest.fixture
def published():
    made = random_network(replace(SIZES, dropout=0.0, input_dropout=0.0, link="elu"))
    made.scale.uniform_(1, 9)
    made.offset.uniform_(0, 2)
    return made


@pytest.fixture
def features():
    return torch.randn(20, 7, generator=torch.Generator().manual_seed(1)) * 3


def one_member(network, features, member):
    """By torch's own layers."""
    x = ((features - network.feature_mean) / network.feature_sd).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
    last = len(network.weights) - 1
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = F.linear(x, weight[member].T, bias[member, 0])
        if i < last:
            x = F.silu(x)
    return x


def test_members_equal_networks_of_their_own(network, features):
    expected = torch.stack([one_member(network, features, member) for member in range(3)])
    torch.testing.assert_close(network(features), expected, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("members", [slice(0, 1), slice(1, 3), slice(None)])
@pytest.mark.parametrize("genes", [None, [4], [5, 0, 2]])
def test_some_members_and_genes(network, features, members, genes):
    expected = network(features)[members]
    positions = None if genes is None else torch.tensor(genes)
    found = network(features, members, positions)
    torch.testing.assert_close(found, expected if genes is None else expected[..., genes], rtol=1e-5, atol=1e-5)


def test_a_member_has_no_gradient_from_another(network, features):
    network(features)[1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad[1].abs().max() > 0
        assert not parameter.grad[[0, 2]].any()


def test_half_precision_embeddings_are_taken(network, features):
    torch.testing.assert_close(network(features.half()), network(features.half().float()))


def test_unseen_colours_are_cut(network):
    far = network.feature_mean + FEATURE_LIMIT * network.feature_sd
    beyond = network.feature_mean + 1000 * network.feature_sd
    torch.testing.assert_close(network(far[None]), network(beyond[None]))


def test_dropout_only_in_training(network, features):
    torch.testing.assert_close(network(features), network(features), rtol=0, atol=0)
    network.train()
    assert not torch.equal(network(features), network(features))


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    network = Ensemble(replace(SIZES, channels=2000, hidden=(), dropout=0.0, input_dropout=0.3)).train()
    with torch.no_grad():
        network.weights[0].copy_(torch.eye(2000, 6).expand(3, -1, -1))
        ones = network.outputs(torch.ones(10_000, 2000))[0].ravel()
    assert ones.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (ones == 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_a_generator_makes_the_weights_repeatable():
    first, again, other = (Ensemble(SIZES, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])
    assert not torch.equal(first.weights[0][0], first.weights[0][1])


def test_no_hidden_layer_is_a_linear_model(features):
    network = Ensemble(Architecture(2, 7, 3, (), 0.0, 0.0)).eval()
    x = features.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
    torch.testing.assert_close(network(features), torch.matmul(x, network.weights[0]))


def test_rates_are_the_exponential_of_the_outputs(network, features):
    torch.testing.assert_close(network.rates(features), network(features).exp())
    torch.testing.assert_close(
        network.rates(features, slice(1, 2), torch.tensor([4, 0])), network(features).exp()[1:2, :, [4, 0]]
    )


def test_published_network_by_torchs_own_layers(published, features):
    x = published.standardise(features)
    for member, found in enumerate(published.rates(features)):
        layers = []
        for weight, bias in zip(published.weights, published.biases, strict=True):
            layers += [nn.Linear(weight.shape[1], weight.shape[2]), nn.LeakyReLU(0.1)]
            layers[-2].weight.data, layers[-2].bias.data = weight[member].T, bias[member, 0]
        reference = (nn.Sequential(*layers[:-1], nn.ELU(alpha=0.01))(x) + 0.01) * published.scale + published.offset
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
        assert (found >= 0).all()
    some = published.rates(features, slice(1, 3), torch.tensor([5, 0, 2]))
    torch.testing.assert_close(some, published.rates(features)[1:3][..., [5, 0, 2]])


@pytest.mark.parametrize("which", ["network", "published"])
def test_each_member_may_have_superpixels_of_its_own(which, features, request):
    network = request.getfixturevalue(which)
    own = torch.stack([network.standardise(features * scale) for scale in (1, 0.5, -1)])
    each = [network(features * scale)[member] for member, scale in enumerate((1, 0.5, -1))]
    torch.testing.assert_close(network.outputs(own), torch.stack(each), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["network", "published"])
def test_rates_gene_by_gene_are_the_rates(which, features, request):
    network = request.getfixturevalue(which)
    genes = torch.tensor([4, 0])
    found = network.head().by_gene(genes)(network.latent(features).transpose(1, 2))
    torch.testing.assert_close(found, network.rates(features, genes=genes).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_buffers_only_where_used(network, published):
    names = [f"{kind}.{layer}" for kind in ("weights", "biases") for layer in range(3)] + ["feature_mean", "feature_sd"]
    assert sorted(network.state_dict()) == sorted(names)
    assert sorted(published.state_dict()) == sorted([*names, "scale", "offset"])


def test_standardise_by_some_embeddings(network):
    features = np.random.default_rng(0).normal(3, 5, (200, 7)).astype(np.float16)
    features[:, 2] = 1
    network.standardise_by(features)
    x = network.standardise(torch.from_numpy(features)).numpy()
    varying = np.arange(7) != 2
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:, varying].std(axis=0), 1, rtol=1e-5)
    assert not x[:, 2].any()
