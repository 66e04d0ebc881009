"""Choices per gene that lean on all genes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TURNS = 200


def posterior(log_likelihood: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probability of each candidate for each gene, under the prior over candidates that fits all genes best.

    A gene with many counts chooses for itself, one with few as most genes do: to choose each by its own likelihood
    alone would follow the noise. The prior is the nonparametric maximum-likelihood estimate (Robbins, 1956; Laird,
    1978), found by expectation-maximisation.

    Parameters
    ----------
    log_likelihood
        (candidates, genes), each gene's up to a constant.

    Returns
    -------
    (candidates, genes), each gene's sum to 1.
    """
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=0))
    prior = np.full(len(likelihood), 1 / len(likelihood))
    for _ in range(TURNS):
        weight = likelihood * prior[:, None]
        weight /= weight.sum(axis=0)
        prior = weight.mean(axis=1)
    result: NDArray[np.float64] = weight
    return result
