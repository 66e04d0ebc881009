"""What a unit's counts of all other genes say of a gene in it: that of more of everything, or of one kind of cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

# Beyond this many standard deviations, a residual says no more.
FARTHEST = 5.0
SMALLEST = 1e-8

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Factors:
    """What the residuals of the genes of a unit have in common, by probabilistic principal components.

    Attributes
    ----------
    loadings
        (genes, factors).
    noise
        Variance of what a gene has for itself.
    """

    loadings: Array
    noise: float

    def foretell(self, residuals: Array) -> NDArray[np.float32]:
        """(units, genes) expectation of each residual given those of all other genes of the unit.

        A residual is x = W z + e with z standard normal and e of variance s². Given all genes, it is expected to be
        H x with H = W (W'W + s²)⁻¹ W'; without its own gene, (H x - h x) / (1 - h) with h on the diagonal of H, as in
        leave-one-out regression.
        """
        loadings = self.loadings
        inner = np.linalg.inv(loadings.T @ loadings + self.noise * np.eye(loadings.shape[1]))
        spread = loadings @ inner
        own = (spread * loadings).sum(axis=1)
        others = (residuals @ spread) @ loadings.T - own * residuals
        foretold: NDArray[np.float32] = (others / np.maximum(1 - own, SMALLEST)).astype(np.float32)
        return foretold


def fit_factors(residuals: Array, number: int, seed: int) -> Factors:
    """Find so many factors at the most (Tipping & Bishop, J. R. Stat. Soc. B 61:611, 1999).

    Parameters
    ----------
    residuals
        (units, genes) of mean 0.
    number
        Of factors.
    seed
        Of the decomposition.
    """
    units, genes = residuals.shape
    number = min(number, units - 1, genes - 1)
    _, singular, axes = randomized_svd(residuals, number, random_state=seed)
    variances = np.square(singular) / units
    noise = (np.square(residuals).sum() / units - variances.sum()) / (genes - number)
    scale = np.sqrt(np.maximum(variances - noise, 0))
    return Factors((axes.T * scale).astype(np.float32), max(float(noise), SMALLEST))


def residuals(counts: Array, expected: Array, shape: Array) -> NDArray[np.float32]:
    """(units, genes) distance of negative binomial counts from what is expected, in standard deviations."""
    found = (counts - expected) / spread(expected, shape)
    return found.clip(-FARTHEST, FARTHEST).astype(np.float32)


def spread(expected: Array, shape: Array) -> NDArray[np.float32]:
    """(units, genes) standard deviation of counts."""
    sd: NDArray[np.float32] = np.sqrt(expected + np.square(expected) / shape).astype(np.float32)
    return np.maximum(sd, SMALLEST)
