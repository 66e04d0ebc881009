"""How far tissue is from what was seen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest

from pixel2gene.core import trust
from pixel2gene.core.trust import AXES, SAMPLE, Familiarity, fit_familiarity, sample

OWN = 12
COLOUR = 7


def gaussian(n: int, seed: int, own: int = OWN) -> NDArray[np.float32]:
    """(n, 3 * own) features: correlated channels whose scales differ a hundredfold, with a mean far from zero."""
    mixing = np.random.default_rng(0).normal(size=(own, own)) * np.geomspace(0.1, 10, own)
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, own)) @ mixing * scale + 5 for scale in (1, 0.3, 0.1)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def folds(n: int, number: int = 5) -> NDArray[np.int8]:
    return (np.arange(n) % number).astype(np.int8)


@pytest.fixture(scope="module")
def seen() -> NDArray[np.float32]:
    return gaussian(6000, 1)


@pytest.fixture(scope="module")
def familiarity(seen: NDArray[np.float32]) -> Familiarity:
    return fit_familiarity(seen, folds(len(seen)))


def test_trust_of_the_same_tissue_is_uniform(familiarity: Familiarity) -> None:
    fresh = familiarity.trust(gaussian(5000, 2))
    assert kstest(fresh, "uniform").statistic < 0.03
    assert fresh.dtype == np.float32


def test_distance_is_that_of_mahalanobis(seen: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "FLOOR", 1e-9)
    familiarity = fit_familiarity(seen, folds(len(seen)))
    own, around = seen[:, :OWN].astype(float), seen[:, OWN : 2 * OWN].astype(float)

    def mahalanobis(x: NDArray[np.floating]) -> NDArray[np.floating]:
        centred = x - x.mean(axis=0)
        return np.einsum("ij,ij->i", centred, np.linalg.solve(np.cov(centred.T), centred.T).T) / x.shape[1]

    # Axes on which the standardised own channels are uncorrelated.
    axes = np.linalg.svd((own - own.mean(axis=0)) / own.std(axis=0), full_matrices=False)[2]
    placed = (around / own.std(axis=0)) @ axes.T
    z = (placed - placed.mean(axis=0)) / placed.std(axis=0)
    squares = np.stack([mahalanobis(own), mahalanobis(own[:, -COLOUR:]), (z**2).mean(axis=1)], axis=1)
    expected = ((np.log(squares) - familiarity.median) / familiarity.spread).mean(axis=1)
    np.testing.assert_allclose(familiarity.distance(seen), expected, atol=0.01)


@pytest.mark.parametrize("part", [0, 1], ids=["itself", "surroundings"])
def test_trust_falls_with_the_shift(familiarity: Familiarity, part: int) -> None:
    x = gaussian(500, 3)
    channels = slice(part * OWN, (part + 1) * OWN)
    means = []
    for shift in (0, 1, 3, 10, 100):
        moved = x.copy()
        moved[:, channels] += shift * x[:, channels].std(axis=0)
        means.append(familiarity.trust(moved).mean())
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.4
    assert means[-1] < 1e-3


def test_what_tissue_never_does_counts_more_than_what_it_often_does(familiarity: Familiarity) -> None:
    """A step along the axis of least variance, and one as long along that of most."""
    z = (gaussian(6000, 1)[:, :OWN] - familiarity.mean) / familiarity.sd
    axes = np.linalg.eigh(z.T @ z)[1]
    x = gaussian(500, 3)
    trusts = []
    for axis in (axes[:, 0], axes[:, -1]):
        moved = x.copy()
        moved[:, :OWN] += axis * familiarity.sd
        trusts.append(familiarity.trust(moved).mean())
    assert trusts[0] < 0.1 < 0.4 < trusts[1]


def test_units_of_the_channels_do_not_matter(familiarity: Familiarity, seen: NDArray[np.float32]) -> None:
    scale, shift = np.tile(np.geomspace(0.1, 30, OWN), 3), np.tile(np.arange(OWN), 3)
    other = fit_familiarity(seen * scale + shift, folds(len(seen)))
    fresh = gaussian(300, 2)
    np.testing.assert_allclose(other.distance(fresh * scale + shift), familiarity.distance(fresh), atol=0.02)


def test_what_differs_between_regions_is_familiar() -> None:
    """A new region is no further from the others than they are from one another; folds that mix regions hide that."""
    regions, each = 10, 300
    rng = np.random.default_rng(4)
    x = gaussian((regions + 1) * each, 5)
    region = np.repeat(np.arange(regions + 1), each)
    x += (rng.normal(size=(regions + 1, x.shape[1])) * x.std(axis=0))[region]
    old, new = x[region < regions], x[region == regions]
    by_region = fit_familiarity(old, region[region < regions])
    mixed = fit_familiarity(old, folds(len(old)))
    assert by_region.trust(new).mean() > 0.2
    assert mixed.trust(new).mean() < 0.5 * by_region.trust(new).mean()


def test_blocks_are_as_the_whole(familiarity: Familiarity, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(100, 6)
    whole = familiarity.trust(x)
    np.testing.assert_allclose(np.concatenate([familiarity.trust(x[:30]), familiarity.trust(x[30:])]), whole, atol=1e-5)
    monkeypatch.setattr(trust, "ROWS", 7)
    np.testing.assert_allclose(familiarity.trust(x), whole, atol=1e-5)
    assert familiarity.trust(x[:0]).shape == (0,)


@pytest.mark.parametrize("n", [4, 40])
def test_few_superpixels_and_channels_that_do_not_vary(n: int) -> None:
    x = gaussian(n, 7)
    x[:, 2] = 1
    x[:, -COLOUR:] = 0
    few = fit_familiarity(x, folds(n, 2))
    values = few.trust(np.concatenate([x, gaussian(50, 8)]))
    assert ((values >= 0) & (values <= 1)).all()
    far = x.copy()
    far[:, :OWN] += 1e3
    assert (few.trust(far) < 0.002).all()


def test_a_wide_embedding_is_kept_small() -> None:
    own = AXES + 60
    x = gaussian(900, 9, own)
    wide = fit_familiarity(x, folds(len(x)))
    assert wide.axes.shape == (own, AXES)
    assert sum(array.nbytes for array in vars(wide).values()) < 1e6
    assert wide.trust(x + 3 * x.std(axis=0)).mean() < 0.01


def test_sample_is_spread_evenly() -> None:
    np.testing.assert_array_equal(sample(50, 1), np.arange(50))
    many = sample(10 * SAMPLE, 4)
    assert len(many) == SAMPLE // 4
    assert (many[0], many[-1]) == (0, 10 * SAMPLE - 1)
    assert set(np.diff(many)) <= {39, 40, 41}
