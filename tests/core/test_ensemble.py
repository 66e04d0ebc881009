import pytest
import torch
import torch.nn.functional as F

from pixel2gene.core.ensemble import FEATURE_LIMIT, Architecture, Ensemble

SIZES = Architecture(members=3, channels=7, genes=6, hidden=(11, 5), dropout=0.3, input_dropout=0.2)


@pytest.fixture
def network():
    made = Ensemble(SIZES, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        made.feature_mean.normal_()
        made.feature_sd.uniform_(0.5, 2)
        for bias in made.biases:
            bias.normal_()
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


def test_a_generator_makes_the_weights_repeatable():
    first, again, other = (Ensemble(SIZES, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])
    assert not torch.equal(first.weights[0][0], first.weights[0][1])


def test_no_hidden_layer_is_a_linear_model(features):
    network = Ensemble(Architecture(2, 7, 3, (), 0.0, 0.0)).eval()
    x = features.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
    torch.testing.assert_close(network(features), torch.matmul(x, network.weights[0]))
