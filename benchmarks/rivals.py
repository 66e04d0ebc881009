"""Denoisers that know no histology: each makes expected counts (units on tissue, genes) of a `Training`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from methods import Array
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from slides import Training

from pixel2gene.core.metrics import poisson_deviance
from pixel2gene.core.posterior import gamma_poisson_posterior
from pixel2gene.core.uncertainty import gamma_shape

COMPONENTS = 20
# The kernel of a unit is as wide as the distance to its tenth neighbour, and reaches three times as many.
WIDTH_NEIGHBOUR, NEIGHBOURS = 10, 30
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
# What no neighbour has is as rare as this share of the mean over all units.
LITTLE = 1e-2


def shrunk(training: Training) -> Array:
    """Counts, shrunk to a constant rate per area: the gamma-Poisson posterior mean with a shape fitted to each gene.

    Zeros stay above zero by as much as the prior has it.
    """
    measured = training.measured
    counts = measured.counts.toarray()
    mean = (measured.area[:, None] / measured.area.sum() * counts.sum(axis=0)).astype(np.float32)
    return gamma_poisson_posterior(counts, mean, gamma_shape(counts, mean))[0]


def pooled(training: Training) -> Array:
    """Diffusion of counts on the graph of units of alike expression (van Dijk et al., Cell 174:716, 2018).

    Written from the publication. It leaves the number of steps to the user; here they predict one half of the counts
    best from the other, and so does what the shares of the genes are multiplied by: the total of a unit, or its pooled
    total. Shares are not stretched to their former range afterwards, because they are to be expected counts.
    """
    counts = training.measured.counts.toarray()
    first = np.random.default_rng([training.seed, 2]).binomial(counts.astype(np.int64), 0.5).astype(np.float32)
    deviance = [poisson_deviance(csr_array(counts - first), guess).sum() for guess in _guesses(first, training.seed)]
    best = int(np.argmin(deviance))
    return next(guess for i, guess in enumerate(_guesses(counts, training.seed)) if i == best)


def transition(counts: Array, seed: int) -> csr_array:
    """(units, units) chance of a step from each unit to those that look alike."""
    z = PCA(min(COMPONENTS, *counts.shape), random_state=seed).fit_transform(np.sqrt(_shares(counts)))
    neighbours = min(NEIGHBOURS, len(z) - 1)
    distance, nearest = NearestNeighbors(n_neighbors=neighbours + 1).fit(z).kneighbors(z)
    width = np.maximum(distance[:, [min(WIDTH_NEIGHBOUR, neighbours)]], 1e-8)
    affinity = csr_array(
        (
            np.exp(-np.square(distance / width)).ravel(),
            nearest.ravel(),
            np.arange(0, nearest.size + 1, nearest.shape[1]),
        ),
        shape=(len(z), len(z)),
    )
    affinity = affinity + affinity.T
    return csr_array(diags_array(1 / affinity.sum(axis=1)) @ affinity)


def diffuse(matrix: csr_array, values: Array, steps: int) -> Array:
    """(units, columns) after so many steps."""
    for _ in range(steps):
        values = matrix @ values
    return values


def _guesses(counts: Array, seed: int) -> Iterator[Array]:
    """Expected counts after each number of steps, by own and by pooled totals."""
    matrix = transition(counts, seed)
    total = _lifted(counts.sum(axis=1, keepdims=True))
    shares, around, done = _shares(counts), total, 0
    for steps in STEPS:
        shares, around = (diffuse(matrix, values, steps - done) for values in (shares, around))
        done = steps
        for level in (total, around):
            yield _lifted(shares) * level


def _shares(counts: Array) -> NDArray[np.floating]:
    """Each gene's share of the counts of a unit."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _lifted(values: Array) -> Array:
    return (values + LITTLE * values.mean(axis=0)) / (1 + LITTLE)
