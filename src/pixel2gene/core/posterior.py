"""The gamma-Poisson posterior: a prior expectation and a measured count, weighed by trust in the prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import gammaln

from pixel2gene.core.empirical_bayes import posterior

# Grid of the shape r of the gamma prior: from a prior that says next to nothing to one that the counts never move.
SHAPES = np.geomspace(1e-2, 1e4, 37)
# The likelihood, smooth in log r, is interpolated to so many times as many.
FINER = 8


class ShapeEstimator:
    """Shape of each gene's gamma prior, from units that come some at a time.

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
        """(genes,) geometric mean of the shape over its posterior, see `pixel2gene.core.empirical_bayes`."""
        candidates = np.interp(np.arange(FINER * (len(SHAPES) - 1) + 1) / FINER, np.arange(len(SHAPES)), np.log(SHAPES))
        log_likelihood = CubicSpline(np.log(SHAPES), self._log_likelihood)(candidates)
        shape: NDArray[np.float64] = np.exp(candidates @ posterior(log_likelihood))
        return shape


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
    return ((shape + counts) / rate).astype(np.float32), (np.sqrt(shape + counts) / rate).astype(np.float32)
