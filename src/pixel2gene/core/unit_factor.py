"""What a unit's counts of all other genes say of a gene in it: units have more of everything, or less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-8

Array = NDArray[np.floating]


@dataclass(frozen=True)
class UnitFactor:
    """A factor that the genes of a unit share, of mean 1.

    Genes are weighed by how near their counts are to Poisson counts, so that abundant genes with a will of their own do
    not speak for all.

    Attributes
    ----------
    weight
        (genes,) of a count in the total of a unit.
    dispersion
        (genes,) of the counts around what is expected of them.
    variance
        Of the factor over the units.
    """

    weight: Array
    dispersion: Array
    variance: float

    def without_gene(self, counts: Array, expected: Array, genes: slice) -> NDArray[np.float32]:
        """(units, genes) the factor by all genes but the one that it is for.

        Its linear Bayes estimate (credibility; Bühlmann, ASTIN Bulletin 4:199, 1967): with the weighted totals S of the
        counts, M of what is expected and V of the variances of the counts, and the variance v of the factor,
        1 + v M (S - M) / (v M² + V). It is never negative.

        Parameters
        ----------
        counts, expected
            (units, all genes).
        genes
            Those that it is for.
        """
        seen, mean, noise = (
            values.sum(axis=1, dtype=np.float64)[:, None] - values[:, genes]
            for values in self._weighted(counts, expected)
        )
        spread = self.variance * mean
        factor: NDArray[np.float32] = (1 + spread * (seen - mean) / np.maximum(spread * mean + noise, SMALLEST)).astype(
            np.float32
        )
        return factor.clip(min=0)

    def credibility(self, expected: Array) -> float:
        """Share of the counts in the estimate, averaged over the units."""
        _, mean, noise = (values.sum(axis=1, dtype=np.float64) for values in self._weighted(expected, expected))
        spread = self.variance * np.square(mean)
        return float((spread / np.maximum(spread + noise, SMALLEST)).mean())

    def _weighted(self, counts: Array, expected: Array) -> tuple[Array, Array, Array]:
        noise = np.square(self.weight) * (expected + self.dispersion * np.square(expected))
        return self.weight * counts, self.weight * expected, noise


def fit_unit_factor(counts: Array, expected: Array, shape: Array) -> UnitFactor:
    """Find how much the genes of a unit share, by moments.

    Parameters
    ----------
    counts, expected
        (units, genes), expected by what has not seen the unit.
    shape
        (genes,) of the gamma distribution of the units around it.
    """
    dispersion = 1 / shape
    weight = (1 / (1 + dispersion * expected.mean(axis=0, dtype=np.float64))).astype(np.float32)
    one = UnitFactor(weight, dispersion.astype(np.float32), 0.0)
    weighted = one._weighted(counts, expected)
    seen, mean, noise = (values.sum(axis=1, dtype=np.float64) for values in weighted)
    # What a gene has for itself is in its own products only.
    own = np.square(weighted[0] - weighted[1]).sum(axis=1, dtype=np.float64)
    shared = np.square(seen - mean) - own
    pairs = np.square(mean) - np.square(weighted[1]).sum(axis=1, dtype=np.float64)
    return UnitFactor(one.weight, one.dispersion, max(float(shared.sum() / max(pairs.sum(), SMALLEST)), 0.0))
