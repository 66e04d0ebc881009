"""Stripes: factors that rows and columns of an array of bins multiply their counts by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter

from pixel2gene.core.platform._held_out import Floats, clarity, require_same_length

# Standard errors by which the held-out gain must exceed 0. More than chance needs: tissue with straight edges along the
# rows reaches 3.
CLEAR = 4.0
# Parts that a row or column of the array is cut into; every other one is held out.
SEGMENTS = 8
# Standard deviations, in rows, of the surroundings that a row is compared with: the narrow one decides whether there
# are stripes, because tissue is smooth at its scale; the others may estimate them better where `expected` is good.
WIDTHS = (1.5, 3.0, 6.0, 12.0)
TURNS = 8
LEAST_VARIANCE = 1e-8


@dataclass(frozen=True)
class Lines:
    """Stripes in one direction.

    Attributes
    ----------
    factor
        (lines,) what each row, or column, of the array catches relative to a mean of 1 over the units; from the first
        to the last that has units. Estimated whether kept or not.
    sd
        Standard deviation of the factors, free of the noise of their estimates; 0 if there is none.
    gain
        Held-out gain in log-likelihood per line.
    z
        The gain in standard errors.
    kept
        Whether the gain is clear.
    """

    factor: Floats
    sd: float
    gain: float
    z: float
    kept: bool

    @property
    def kept_factor(self) -> Floats:
        """(lines,) the factor, or 1 if it is not kept."""
        return self.factor if self.kept else np.ones_like(self.factor)

    @property
    def kept_sd(self) -> float:
        """Standard deviation of the factors, or 0 if they are not kept."""
        return self.sd if self.kept else 0.0


@dataclass(frozen=True)
class Stripes:
    """What `stripes` found.

    Attributes
    ----------
    factor
        (units,) product of the factors of row and column, so far as they are kept.
    rows, columns
        Each direction by itself.
    """

    factor: Floats
    rows: Lines
    columns: Lines


def stripes(
    totals: NDArray[np.floating],
    row: NDArray[np.integer],
    column: NDArray[np.integer],
    expected: NDArray[np.floating] | None = None,
) -> Stripes:
    """Find factors that the rows and the columns of an array of bins multiply their counts by.

    A line is compared with those beside it, bin by bin, so that anything smooth across the lines cancels. The variance
    of the factors is the covariance between distant parts of the lines, which noise and overdispersion do not share.
    Given the variance, factors have the posterior mean of a gamma prior. To decide, those found on every other part of
    the lines are scored on the rest.

    Parameters
    ----------
    totals
        (units,) counts of all genes, of bins on tissue: at the border of the tissue, glass is no neighbour to compare
        with.
    row, column
        (units,) position in the array.
    expected
        (units,) what a model that knows no stripes expects, in any unit; by default the same everywhere. The better it
        is, the better are slow changes from line to line told from tissue.

    Raises
    ------
    ValueError
        If the arrays differ in length or are empty.
    """
    expected = np.ones(len(totals)) if expected is None else expected
    require_same_length(totals=totals, row=row, column=column, expected=expected)
    place = np.stack([row, column]).astype(np.int64)
    place -= place.min(axis=1, keepdims=True)
    shape = tuple(place.max(axis=1) + 1)
    flat = np.ravel_multi_index(tuple(place), shape)
    counts, level = (np.bincount(flat, v, np.prod(shape)).reshape(shape) for v in (totals, expected))
    # Columns do not disturb the comparison of rows bin by bin, but they do add noise.
    first = _lines(counts, level)
    columns = _lines((counts / first.kept_factor[:, None]).T, level.T)
    rows = _lines(counts / columns.kept_factor, level)
    factor = rows.kept_factor[place[0]] * columns.kept_factor[place[1]]
    return Stripes(factor / factor.mean(), rows, columns)


def _lines(counts: Floats, level: Floats) -> Lines:
    """Factors of the rows of a raster of counts, where `level` is what is expected and 0 where nothing was measured."""
    weight = _weights(counts, level)
    parts = [part for part in np.array_split(np.arange(counts.shape[1]), SEGMENTS) if len(part)]
    starts = np.array([part[0] for part in parts])
    halves = [np.arange(len(parts)) % 2 == half for half in (0, 1)]
    none = np.ones(len(counts))

    def sums(width: float, factor: Floats) -> tuple[Floats, Floats]:
        """Weighted counts of the parts of each line, and what their neighbours let expect."""
        around = _surroundings(counts / factor[:, None], level, width)
        used = np.where(around > 0, weight, 0)
        return np.add.reduceat(counts * used, starts, axis=1), np.add.reduceat(around * used, starts, axis=1)

    # The neighbours have stripes, too.
    inflation = 1 + np.square(_kernel(WIDTHS[0])).sum()
    seen, foreseen = sums(WIDTHS[0], none)
    gain = np.zeros(len(counts))
    for half in halves:
        known = (seen[:, half], foreseen[:, half])
        factor = _posterior(*known, none, _shared_variance(*known))
        gain += _gain(seen[:, ~half].sum(axis=1), foreseen[:, ~half].sum(axis=1), factor, _noise(seen, foreseen, none))
    mean, z = clarity(gain)

    variance = _shared_variance(seen, foreseen) / inflation

    def factors(width: float, half: NDArray[np.bool_]) -> Floats:
        factor = none
        for _ in range(TURNS):
            y, m = (values[:, half] for values in sums(width, factor))
            factor = _posterior(y, m, factor, variance)
            factor = factor / np.average(factor, weights=(level > 0).sum(axis=1))
        return factor

    def foretold(width: float) -> float:
        score = 0.0
        for half in halves:
            factor = factors(width, half)
            y, m = (values[:, ~half] for values in sums(width, factor))
            m = np.maximum(m * factor[:, None], 1e-12)
            score += float((y * np.log(m) - m).sum())
        return score

    if z > CLEAR:
        factor = factors(max(WIDTHS, key=foretold), halves[0] | halves[1])
    else:
        factor = _posterior(seen, foreseen, none, variance)
    return Lines(factor, float(np.sqrt(variance)), mean, z, z > CLEAR)


def _weights(counts: Floats, level: Floats) -> Floats:
    """Inverse of the variance over the mean, for counts of which dense places scatter by more than Poisson counts."""
    blurred = gaussian_filter(level, 2.0)
    mean = level * np.divide(gaussian_filter(counts, 2.0), blurred, out=np.zeros_like(blurred), where=blurred > 1e-9)
    dispersion = max(((counts - mean) ** 2 - mean)[level > 0].sum() / np.square(mean).sum(), 0)
    return np.where(level > 0, 1 / (1 + dispersion * mean), 0)


def _kernel(width: float) -> Floats:
    """Weights of the lines beside one, without its own."""
    reach = int(np.ceil(3 * width))
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / width))
    weights[reach] = 0
    normalised: Floats = weights / weights.sum()
    return normalised


def _surroundings(counts: Floats, level: Floats, width: float) -> Floats:
    """Counts to expect of each bin by those in other rows of its column, in proportion to `level`."""
    beside = correlate1d(level, _kernel(width), axis=0, mode="constant")
    around = correlate1d(counts, _kernel(width), axis=0, mode="constant")
    return level * np.divide(around, beside, out=np.zeros_like(around), where=beside > 1e-9)


def _shared_variance(seen: Floats, foreseen: Floats) -> float:
    """Variance of the lines' factors: of what their parts have in common."""
    excess = seen - foreseen
    products = excess.sum(axis=1) ** 2 - np.square(excess).sum(axis=1)
    weights = foreseen.sum(axis=1) ** 2 - np.square(foreseen).sum(axis=1)
    return max(float(products.sum() / max(weights.sum(), 1e-12)), LEAST_VARIANCE)


def _noise(seen: Floats, foreseen: Floats, factor: Floats) -> float:
    """Variance over mean of the parts of lines."""
    mean = foreseen * factor[:, None]
    return float(np.square(seen - mean).sum() / max(mean.sum(), 1e-12))


def _posterior(seen: Floats, foreseen: Floats, factor: Floats, variance: float) -> Floats:
    """Posterior mean of the lines' factors under a gamma prior of mean 1 (conjugate to counts)."""
    noise = _noise(seen, foreseen, factor)
    shape = 1 / variance
    return (shape + seen.sum(axis=1) / noise) / (shape + foreseen.sum(axis=1) / noise)


def _gain(seen: Floats, foreseen: Floats, factor: Floats, noise: float) -> Floats:
    """Gain in the quasi-Poisson log-likelihood by a factor of what is expected."""
    return (seen * np.log(factor) - foreseen * (factor - 1)) / noise
