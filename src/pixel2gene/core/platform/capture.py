"""Capture: an efficiency that varies slowly over the slide and is common to all genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, helmert
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from pixel2gene.core.platform._held_out import Floats, clarity, require_same_length

# All lengths are in superpixels. Blocks are of this side, or so large that there are no more than so many along the
# slide.
SMALLEST_BLOCK, MOST_BLOCKS = 12.0, 26
LEAST_COUNTS, LEAST_BLOCKS = 20.0, 12
# Squares that are held out; lengths of the field, and of what the model gets wrong.
SQUARE = 32
LENGTHS, SHORT_LENGTH = (50.0, 100.0), 20.0
# Variance of the level of all blocks, which is not known.
LEVEL = 1.0
# Places whose correlation with all blocks is computed at once.
PLACES = 10_000
# Standard errors by which the held-out gain must exceed 0.
CLEAR = 3.0


@dataclass(frozen=True)
class Capture:
    """What `capture_field` found.

    Attributes
    ----------
    factor
        (units,) what each place catches relative to a mean of 1 over the units. Estimated whether kept or not.
    sd
        Standard deviation of its log over the units; that of `factor` is smaller, as it leaves out what is not known.
    length
        Distance in superpixels over which its correlation falls to 1 / e.
    gain
        Held-out gain in log-likelihood per block.
    z
        The gain in standard errors, over squares of the slide.
    kept
        Whether the gain is clear.
    """

    factor: Floats
    sd: float
    length: float
    gain: float
    z: float
    kept: bool


def capture_field(
    totals: NDArray[np.floating], expected: NDArray[np.floating], centres: NDArray[np.floating]
) -> Capture:
    """Find an efficiency that varies slowly over the slide and is common to all genes.

    Totals over what a model expects, in logarithms and per block of superpixels, are the sum of a slow Gaussian field,
    a shorter one and noise. What groups of genes do not share is no capture: the contrasts between them tell its
    variance. The field is that part of their mean which is slow and shared. To decide, the one that half of the groups
    shows outside a square of the slide is scored on the other groups inside.

    This is not told from biology that is as slow, common to all genes and not in the H&E, such as RNA that decays from
    one end of a tissue to the other. Nor is it told from errors of the model that all genes share.

    Parameters
    ----------
    totals, expected
        (units, groups) counts, and their out-of-fold expectation, of genes that are dealt at random to two or more
        groups, better eight.
    centres
        (units, 2) x and y in superpixels.

    Raises
    ------
    ValueError
        If the arrays do not fit together, or a group has no counts, or none expected.
    """
    require_same_length(totals=totals, expected=expected, centres=centres)
    if totals.ndim != 2 or totals.shape[1] < 2 or expected.shape != totals.shape:
        raise ValueError(
            f"The totals are {totals.shape} and what is expected {expected.shape}: give both of two or more groups of "
            "genes, as (units, groups)."
        )
    if not (expected.sum(axis=0) > 0).all() or not (totals.sum(axis=0) > 0).all():
        raise ValueError("A group of genes has no counts, or none is expected: deal them to fewer groups.")
    blocks = _ratios(totals, expected, centres)
    if len(blocks.weight) < LEAST_BLOCKS:
        return Capture(np.ones(len(totals)), np.nan, np.nan, 0.0, 0.0, False)
    field = _slow_field(blocks)
    square = np.floor(blocks.centres / SQUARE).astype(np.int64)
    colour = square[:, 0] % 2 + 2 * (square[:, 1] % 2)
    gain = np.zeros(len(colour))
    for held in (colour == c for c in range(4)):
        some = blocks.of(~held)
        if not held.any() or len(some.weight) < LEAST_BLOCKS:
            continue
        for known in (np.arange(totals.shape[1]) % 2 == half for half in (0, 1)):
            found = field.at(blocks.centres[held], some, known) - field.at(some.centres, some, known).mean()
            other = some.ratio[:, ~known].mean(axis=1)
            seen = blocks.ratio[held][:, ~known].mean(axis=1) - other.mean()
            gain[held] += (seen**2 - (seen - found) ** 2) / (2 * other.var())
    number = np.unique(square, axis=0, return_inverse=True)[1].ravel()
    mean, z = clarity(np.bincount(number, gain))
    factor = np.exp(field.at(centres, blocks, np.ones(totals.shape[1], bool)))
    sd = float(np.sqrt(field.variance_within(blocks)))
    return Capture(factor / factor.mean(), sd, field.length, mean, z, z > CLEAR)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of superpixels.

    Attributes
    ----------
    centres
        (blocks, 2).
    ratio
        (blocks, groups) log of the counts of each group of genes over what is expected.
    weight
        (blocks,) what is expected, relative to its mean.
    """

    centres: Floats
    ratio: Floats
    weight: Floats

    def of(self, which: NDArray[np.bool_]) -> _Blocks:
        return _Blocks(self.centres[which], self.ratio[which], self.weight[which])


class _Variances(NamedTuple):
    """Of a slow field, of a short one, and of the noise of a block of mean weight."""

    slow: float
    short: float
    noise: float


@dataclass(frozen=True)
class _Field:
    """A slow field that groups of genes share.

    Attributes
    ----------
    variance, length
        Of the field.
    mean
        Of the mean of all groups.
    own
        Of what is a group's own.
    """

    variance: float
    length: float
    mean: _Variances
    own: _Variances

    def at(self, centres: NDArray[np.floating], blocks: _Blocks, groups: NDArray[np.bool_]) -> Floats:
        """Posterior mean at some places, given some of the groups."""
        covariance = _covariance(blocks, self.mean, self.length)
        # The mean of fewer groups has more of what is their own.
        covariance += (1 / groups.sum() - 1 / len(groups)) * _covariance(blocks, self.own, self.length)
        weight = self.variance * np.linalg.solve(covariance, blocks.ratio[:, groups].mean(axis=1))
        parts = np.array_split(centres, -(-len(centres) // PLACES))
        return np.concatenate([_correlation(part, blocks.centres, self.length) @ weight for part in parts])

    def variance_within(self, blocks: _Blocks) -> float:
        """Variance of the field over the slide, expected given what was seen."""
        prior = self.variance * _correlation(blocks.centres, blocks.centres, self.length)
        rest = prior - prior @ np.linalg.solve(_covariance(blocks, self.mean, self.length), prior)
        mean = self.at(blocks.centres, blocks, np.ones(blocks.ratio.shape[1], bool))
        return float(mean.var() + np.diag(rest).mean() - rest.mean())


def _ratios(totals: NDArray[np.floating], expected: NDArray[np.floating], centres: NDArray[np.floating]) -> _Blocks:
    """Sum up over blocks that are small for the field, and few enough."""
    extent = np.ptp(centres, axis=0).max() + 1
    side = max(SMALLEST_BLOCK, extent / MOST_BLOCKS)
    block = np.floor((centres - centres.min(axis=0)) / side).astype(np.int64)
    number = np.unique(block, axis=0, return_inverse=True)[1].ravel()
    units = np.bincount(number)
    y, m = (np.stack([np.bincount(number, v) for v in values.T], axis=1) for values in (totals, expected))
    m = m * (totals.sum(axis=0) / expected.sum(axis=0))
    place = np.stack([np.bincount(number, v) / units for v in centres.T], axis=1)
    weight = m.sum(axis=1)
    # The log of few counts is too noisy to be normal.
    enough = m.min(axis=1) >= LEAST_COUNTS
    ratio = np.log((y[enough] + 0.5) / (m[enough] + 0.5))
    weight = weight[enough]
    return _Blocks(place[enough], ratio, weight * len(weight) / max(weight.sum(), 1e-12))


def _slow_field(blocks: _Blocks) -> _Field:
    """Variances of maximum likelihood."""
    groups = blocks.ratio.shape[1]
    mean, contrasts = blocks.ratio.mean(axis=1, keepdims=True), blocks.ratio @ helmert(groups).T
    _, of_mean, length = min((*_variances(blocks, mean, length), length) for length in LENGTHS)
    _, own = _variances(blocks, contrasts, length)
    return _Field(max(of_mean.slow - own.slow / groups, 0.0), length, of_mean, own)


def _variances(blocks: _Blocks, values: Floats, length: float) -> tuple[float, _Variances]:
    """Least negative log-likelihood of normal (blocks, independent) values, and the variances that reach it."""

    def cost(logs: Floats) -> float:
        factor = cho_factor(_covariance(blocks, _Variances(*np.exp(logs)), length), lower=True)
        determinant = values.shape[1] * np.log(np.diag(factor[0])).sum()
        return float(determinant + 0.5 * (values * cho_solve(factor, values)).sum())

    level = np.log(max(values.var() / 3, 1e-12))
    best = minimize(cost, [level] * 3, method="L-BFGS-B", bounds=[(level - 12, level + 4)] * 3)
    return float(best.fun), _Variances(*map(float, np.exp(best.x)))


def _covariance(blocks: _Blocks, variances: _Variances, length: float) -> Floats:
    squared = cdist(blocks.centres, blocks.centres, "sqeuclidean")
    covariance: Floats = variances.slow * np.exp(-squared / length**2)
    covariance += variances.short * np.exp(-squared / SHORT_LENGTH**2) + LEVEL
    covariance[np.diag_indices_from(covariance)] += variances.noise / blocks.weight
    return covariance


def _correlation(a: NDArray[np.floating], b: NDArray[np.floating], length: float) -> Floats:
    found: Floats = np.exp(-cdist(a, b, "sqeuclidean") / length**2)
    return found
