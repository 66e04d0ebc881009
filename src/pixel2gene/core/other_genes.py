"""What a unit's counts of all other genes say of a gene in it: that of more of everything, or of one kind of cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

# Beyond this many standard deviations, a residual says no more.
FARTHEST = 5.0
# Of the fit; most is gained by the first ones.
STEPS = 15
SMALLEST, LEAST_OWN = 1e-8, 1e-3

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Factors:
    """What the genes of a unit have in common beyond what is expected of them.

    The rate of a unit is its expectation times 1 + W z + ε, with z standard normal.

    Attributes
    ----------
    loadings
        (genes, factors) W.
    own
        (genes,) variance of ε, what a gene has for itself.
    shape
        (genes,) of the gamma distribution of units around their expectation, factors and all.
    """

    loadings: Array
    own: Array
    shape: Array

    def foretell(self, counts: Array, expected: Array) -> NDArray[np.float32]:
        """(units, genes) expectation of W z of each gene given the counts of all other genes of the unit.

        With H x the expectation given all genes, and h on the diagonal of H, it is (H x - h x) / (1 - h), as in
        leave-one-out regression.
        """
        precision, weighted = _weighed(counts, expected, self.own, self.shape)
        z, covariance = self._scores(precision, weighted)
        about = covariance.reshape(len(z), -1) @ _products(self.loadings).T
        others = z @ self.loadings.T - about * weighted
        foretold: NDArray[np.float32] = (others / np.maximum(1 - about * precision, SMALLEST)).astype(np.float32)
        return foretold

    def step(self, counts: Array, expected: Array) -> Factors:
        """One step of expectation maximisation; the loadings of a factor have a normal prior of their mean square."""
        precision, weighted = _weighed(counts, expected, self.own, self.shape)
        z, covariance = self._scores(precision, weighted)
        second = precision.T @ (covariance.reshape(len(z), -1) + _products(z))
        prior = np.diag(1 / np.maximum(np.square(self.loadings).mean(axis=0), SMALLEST))
        loadings = np.linalg.solve(second.reshape(-1, *prior.shape) + prior, (weighted.T @ z)[:, :, None])[:, :, 0]
        about = covariance.reshape(len(z), -1) @ _products(loadings).T
        left = np.square(weighted - precision * (z @ loadings.T)) + np.square(precision) * about
        own = self.own + np.square(self.own) * (left - precision).mean(axis=0)
        return Factors(loadings.astype(np.float32), np.maximum(own, LEAST_OWN).astype(np.float32), self.shape)

    def _scores(self, precision: Array, weighted: Array) -> tuple[Array, Array]:
        """(units, factors) mean and (units, factors, factors) covariance of z given all genes."""
        number = self.loadings.shape[1]
        told = (precision @ _products(self.loadings)).reshape(-1, number, number)
        covariance = np.linalg.inv(told + np.eye(number, dtype=told.dtype))
        return (covariance @ (weighted @ self.loadings)[:, :, None])[:, :, 0], covariance


def fit_factors(counts: Array, expected: Array, shape: Array, number: int, seed: int) -> Factors:
    """Find so many factors at the most.

    Probabilistic principal components of the residuals (Tipping & Bishop, J. R. Stat. Soc. B 61:611, 1999) are where
    expectation maximisation starts, which tells the noise of counting, known for each count, from what units share.

    Parameters
    ----------
    counts, expected
        (units, genes).
    shape
        (genes,) of the gamma distribution of units around their expectation.
    number
        Of factors.
    seed
        Of the decomposition.
    """
    units, genes = counts.shape
    number = min(number, units - 1, genes - 1)
    spread = np.sqrt(expected + np.square(expected) / shape)
    residuals = ((counts - expected) / np.maximum(spread, SMALLEST)).clip(-FARTHEST, FARTHEST).astype(np.float32)
    _, singular, axes = randomized_svd(residuals, number, random_state=seed)
    variances = np.square(singular) / units
    noise = (np.square(residuals).sum() / units - variances.sum()) / (genes - number)
    shape = shape.astype(np.float32)
    own = 1 / shape
    typical = np.maximum(_weighed(counts, expected, own, shape)[0].mean(axis=0), SMALLEST)
    loadings = axes.T * np.sqrt(np.maximum(variances - noise, 0) / typical[:, None])
    own = np.maximum(own - np.square(loadings).sum(axis=1), own / 20)
    factors = Factors(loadings.astype(np.float32), own.astype(np.float32), shape)
    for _ in range(STEPS):
        factors = factors.step(counts, expected)
    return factors


def _weighed(counts: Array, expected: Array, own: Array, shape: Array) -> tuple[Array, Array]:
    """(units, genes) precision of what a count says of W z in relation to what is expected, and that times precision.

    Its variance is that of counting, one over what is expected, and that of what the gene has for itself.
    """
    farthest = FARTHEST * np.sqrt(expected + np.square(expected) / shape)
    scale = 1 + own * expected
    off = np.clip(counts - expected, -farthest, farthest)
    return (expected / scale).astype(np.float32), (off / scale).astype(np.float32)


def _products(values: Array) -> Array:
    """(n, factors²) of all pairs of (n, factors)."""
    return (values[:, :, None] * values[:, None, :]).reshape(len(values), -1)
