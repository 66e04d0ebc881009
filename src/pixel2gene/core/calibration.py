"""How often intervals that a prediction states hold what they are about, by expression of the genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betaincc, gammainc, gammaln, xlogy

LEVELS = tuple(percent / 100 for percent in range(10, 100, 5))
DECILES = 10
# Ends of central intervals of whole per cents fall between bins.
BINS = 200
# At the lower end Poisson, to 1e-5 for means of up to 10,000; at the upper one all but zeros are impossible.
DISPERSIONS = 1e-8, 1e8
# Above this many, the terms of a distribution function are not summed.
SUMMED_COUNTS = 50
SMALLEST_MEAN = 1e-8
SMALLEST_VARIATION = 1e-6


class Calibration:
    """Coverage of central intervals, from probability integral transforms that come some units at a time.

    If predictions are right, a transform is uniform between 0 and 1, and the central interval of a level holds its
    value where the transform is less than half the level from 1/2 (Gneiting, Balabdaoui & Raftery, 2007).
    """

    def __init__(self, mean_count: NDArray[np.floating]) -> None:
        """Tell genes apart by the decile of their (genes,) mean count."""
        rank = np.empty(len(mean_count), np.intp)
        rank[np.argsort(mean_count, kind="stable")] = np.arange(len(mean_count))
        self._mean_count, self._decile = mean_count, DECILES * rank // len(mean_count)
        self._histogram = np.zeros((DECILES, BINS), np.int64)

    def add(self, transforms: NDArray[np.floating]) -> None:
        """Take in (units, genes) probability integral transforms."""
        place = BINS * self._decile + (transforms * BINS).astype(np.intp).clip(max=BINS - 1)
        self._histogram += np.bincount(place.ravel(), minlength=DECILES * BINS).reshape(DECILES, BINS)

    def table(self, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
        """One row per decile that has genes and level, see `pixel2gene.tl.calibration`.

        Between whole per cents, coverage is interpolated.
        """
        nominal = np.asarray(levels)
        edges = np.arange(BINS + 1) / BINS
        rows = []
        for decile in np.unique(self._decile):
            below = np.concatenate([[0], np.cumsum(self._histogram[decile])])
            upper, lower = (np.interp((1 + sign * nominal) / 2, edges, below) for sign in (1, -1))
            genes = self._decile == decile
            part = {
                "decile": decile + 1,
                "genes": genes.sum(),
                "mean_count": self._mean_count[genes].mean(),
                "nominal": nominal,
                "covered": (upper - lower) / below[-1] if below[-1] else np.nan,
            }
            rows.append(pd.DataFrame(part))
        return pd.concat(rows, ignore_index=True)


def negative_binomial_transform(
    counts: NDArray[np.number],
    mean: NDArray[np.floating],
    dispersion: NDArray[np.floating],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Randomised probability integral transform of counts, F(y - 1) + v p(y) with v uniform (Dunn & Smyth, 1996).

    It is uniform if the counts are negative binomial with that mean and variance ``mean + dispersion * mean**2``.

    Parameters
    ----------
    counts, mean
        (units, genes).
    dispersion
        (genes,); 0 is Poisson.
    rng
        Draws v.

    Returns
    -------
    (units, genes); 1 where the mean is 0 and the count is not.
    """
    result = rng.random(counts.shape, dtype=np.float32)
    # Gene by gene, because float64 of all of them would be large.
    for gene, r in enumerate(1 / dispersion.clip(*DISPERSIONS)):
        y, m = counts[:, gene].astype(np.float64), mean[:, gene].astype(np.float64)
        below, p = _small_counts(y, m, r)
        large = np.flatnonzero(y > SUMMED_COUNTS)
        below[large], p[large] = _large_counts(y[large], m[large], r)
        result[:, gene] = below + result[:, gene] * p
    return result.clip(max=1)


def gamma_transform(
    values: NDArray[np.floating], mean: NDArray[np.floating], sd: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Probability integral transform of rates, uniform if they are gamma distributed with that mean and deviation.

    All are (units, genes). Rates below 1e-8 are taken for 1e-8, a deviation is at least 1e-6 of the mean.
    """
    result = np.empty(values.shape, np.float32)
    for gene in range(values.shape[1]):
        x, m = (each[:, gene].astype(np.float64).clip(min=SMALLEST_MEAN) for each in (values, mean))
        shape = (m / np.maximum(sd[:, gene], SMALLEST_VARIATION * m)) ** 2
        result[:, gene] = gammainc(shape, shape * (x / m))
    return result


def _small_counts(
    y: NDArray[np.float64], mean: NDArray[np.float64], r: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F(y - 1) and p(y) by p(k + 1) = p(k) (k + r) / (k + 1) * mean / (mean + r); wrong for counts that are too large.

    Much faster than the incomplete beta function.
    """
    below, p = np.zeros(len(y)), np.exp(-r * np.log1p(mean / r))
    left = np.arange(len(y))
    for k in range(SUMMED_COUNTS):
        left = left[y[left] > k]
        below[left] += p[left]
        p[left] *= (k + r) / (k + 1) * (mean[left] / (mean[left] + r))
    return below, p


def _large_counts(
    y: NDArray[np.float64], mean: NDArray[np.float64], r: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F(y - 1) and p(y) of positive counts."""
    share = mean / (mean + r)
    log_p = gammaln(y + r) - gammaln(r) - gammaln(y + 1) - r * np.log1p(mean / r) + xlogy(y, share)
    return betaincc(y, r, share), np.exp(log_p)
