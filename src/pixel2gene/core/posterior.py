"""The gamma-Poisson posterior: a prior expectation and a measured count, weighed by trust in the prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

# Grid of the shape r of the gamma prior: from a prior that says next to nothing to one that the counts never move.
SHAPES = np.geomspace(1e-2, 1e4, 37)


class ShapeEstimator:
    """Maximum-likelihood shape of each gene's gamma prior, from units that come some at a time.

    A count whose Poisson rate is gamma distributed with shape r around m is negative binomial with mean m and
    dispersion 1 / r.
    """

    def __init__(self, genes: int) -> None:
        self._log_likelihood = np.zeros((len(SHAPES), genes))

    def add(self, counts: NDArray[np.floating], mean: NDArray[np.floating]) -> None:
        """Take in (units, genes) counts and their expectation by a model that did not see them."""
        mean = np.maximum(mean, 1e-8).astype(np.float64)
        whole = counts.astype(np.int64)
        each = np.arange(whole.max(initial=0) + 1)
        for i, shape in enumerate(SHAPES):
            # What depends on mean and shape; counts * log(mean) is the same for every shape.
            self._log_likelihood[i] -= ((counts + shape) * np.log1p(mean / shape)).sum(axis=0)
            constant = gammaln(each + shape) - gammaln(shape) - each * np.log(shape)
            self._log_likelihood[i] += constant[whole].sum(axis=0)

    @property
    def shape(self) -> NDArray[np.float64]:
        """(genes,) most likely shape: the peak of a parabola through the best point of a grid and its neighbours."""
        best = self._log_likelihood.argmax(axis=0).clip(1, len(SHAPES) - 2)
        gene = np.arange(self._log_likelihood.shape[1])
        below, peak, above = (self._log_likelihood[best + step, gene] for step in (-1, 0, 1))
        curvature = below - 2 * peak + above
        offset = np.where(curvature < 0, (below - above) / np.where(curvature < 0, 2 * curvature, 1), 0)
        log_shape = np.log(SHAPES)
        step = log_shape[1] - log_shape[0]
        result: NDArray[np.float64] = np.exp(log_shape[best] + offset.clip(-1, 1) * step)
        return result


def gamma_poisson_posterior(
    counts: NDArray[np.floating], mean: NDArray[np.floating], shape: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of a Poisson rate given its count.

    The prior is Gamma(shape r, rate r / mean), so that the posterior is Gamma(r + count, r / mean + 1) (conjugacy;
    Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.6).

    Parameters
    ----------
    counts, mean
        (units, genes).
    shape
        (genes,).
    """
    rate = shape / np.maximum(mean, 1e-8) + 1
    posterior = (shape + counts) / rate
    return posterior.astype(np.float32), (np.sqrt(shape + counts) / rate).astype(np.float32)
