"""What the platform did to the counts: stripes of bins, drift of molecules, and capture that varies over the slide.

Each is estimated from totals of the units, and kept only if it foretells totals that it was not estimated from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.linalg import cho_factor, cho_solve, helmert
from scipy.ndimage import binary_opening, correlate1d, distance_transform_edt, gaussian_filter
from scipy.optimize import minimize
from scipy.sparse import csr_array, eye_array, kron
from scipy.spatial.distance import cdist
from scipy.special import gammaln, ive, logsumexp

Floats = NDArray[np.float64]

# Standard errors by which the held-out gain must exceed 0. More than chance needs: tissue with straight edges along the
# rows reaches 3.
CLEAR_STRIPES = 4.0
# Parts that a row or column of the array is cut into; every other one is held out.
SEGMENTS = 8
# Standard deviations, in rows, of the surroundings that a row is compared with: the narrow one decides whether there
# are stripes, because tissue is smooth at its scale; the others may estimate them better where `expected` is good.
WIDTHS = (1.5, 3.0, 6.0, 12.0)
TURNS = 8
LEAST_VARIANCE = 1e-8

# Diffusion, in superpixels. Widths and offsets of the mask that are computed; between widths, linearly.
DRIFTS = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5])
OFFSETS = np.linspace(-4, 2, 13)
# Tissue this far inside has its full density, whatever the mask; units this far outside are looked at.
DEEP, REACH = 3.5, 12.0
# Standard deviation of the surroundings that tell the density of the tissue at the border.
NEARBY = 4.0
# Glass that has this share of the counts of tissue is tissue, if so many counts say so.
EVIDENT, ENOUGH = 0.2, 20.0
RIM = 4
# Side of the blocks that are held out.
BLOCK = 16
CLEAR_DRIFT = 3.0
MOST_UNITS, LEAST_UNITS = 5000, 100
# Where the search for a width starts, and what is none: rates are of superpixels, and so little does not show.
FIRST_WIDTH, LEAST_WIDTH = 0.7, 0.1
# Capture, in superpixels. Blocks are of this side, or so large that there are no more than so many along the slide.
SMALLEST_BLOCK, MOST_BLOCKS = 12.0, 26
LEAST_COUNTS, LEAST_BLOCKS = 20.0, 12
# Squares that are held out; lengths of the field, and of what the model gets wrong.
SQUARE = 32
LENGTHS, SHORT_LENGTH = (50.0, 100.0), 20.0
# Variance of the level of all blocks, which is not known.
LEVEL = 1.0
CLEAR_CAPTURE = 3.0
# Where the likelihood starts: log of the density over that of the tissue nearby, log ambient counts, mean and log
# spread of the offset of the border, log dispersion, log share of anything else.
START = (0.0, np.log(0.01), 0.0, np.log(0.5), np.log(0.5), np.log(0.01))
BOUNDS = ((-2.0, 2.0), (-12.0, 5.0), (-3.5, 1.5), (np.log(0.1), np.log(3.0)), (-7.0, 3.0), (-12.0, -1.0))


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
    _require_same_length(totals=totals, row=row, column=column, expected=expected)
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
    mean, z = _clarity(gain)

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

    if z > CLEAR_STRIPES:
        factor = factors(max(WIDTHS, key=foretold), halves[0] | halves[1])
    else:
        factor = _posterior(seen, foreseen, none, variance)
    return Lines(factor, float(np.sqrt(variance)), mean, z, z > CLEAR_STRIPES)


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


def _clarity(gain: Floats) -> tuple[float, float]:
    """Mean gain, and the same in standard errors."""
    mean, error = float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return mean, mean / error if error > 0 else 0.0


def _require_same_length(**values: NDArray[np.generic]) -> None:
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"The arrays must be of one length above 0, a value per unit; they have {lengths}.")


@dataclass(frozen=True)
class Diffusion:
    """What `diffusion_width` found.

    Attributes
    ----------
    width
        Standard deviation, in superpixels and along each axis, of the way that molecules drifted; NaN where there is
        too little glass to tell. Estimated whether kept or not.
    ambient
        Counts per superpixel of glass that come from nowhere near.
    gain
        Held-out gain in log-likelihood per unit at the border of the tissue, over none that drifted.
    z
        The gain in standard errors, over blocks of the slide.
    kept
        Whether the gain is clear.
    """

    width: float
    ambient: float
    gain: float
    z: float
    kept: bool


def diffusion_width(
    totals: NDArray[np.floating], overlap: csr_array, tissue: NDArray[np.bool_], *, seed: int = 0
) -> Diffusion:
    """Find how far molecules drifted, from counts on both sides of the border of the tissue.

    At distance d from the border a unit expects the ambient level, and the density of the tissue nearby times the
    share of it that drifts there: the tissue, blurred by the width. Where the border is, is not quite known: the mask
    is off by an offset that differs from unit to unit and is normally distributed, with a mean and a spread of maximum
    likelihood. So a unit near the border may be tissue or glass, but only drift makes it half of each. Counts are
    negative binomial.

    Parameters
    ----------
    totals
        (units,) counts of all genes, on tissue and on glass.
    overlap
        (units, rows * columns) overlapping area as a share of a superpixel.
    tissue
        (rows, columns) where the H&E shows tissue.
    seed
        Of the units that are looked at where there are many.

    Raises
    ------
    ValueError
        If the arrays do not fit together.
    """
    if overlap.shape != (len(totals), tissue.size):
        raise ValueError(
            f"The overlap is {overlap.shape}, but there are {len(totals)} totals and {tissue.size} superpixels: give "
            "all units and the whole grid."
        )
    tissue = _with_what_counts_show(totals, overlap, tissue)
    units, block = _border(overlap, tissue, seed)
    glass = (overlap[units] @ tissue.ravel()) == 0
    if min(glass.sum(), (~glass).sum()) < LEAST_UNITS:
        return Diffusion(np.nan, np.nan, 0.0, 0.0, False)
    edge = _edge(totals, overlap, tissue, units)
    number = np.unique(block, return_inverse=True)[1]
    gain = np.zeros(len(units))
    for held in (block % 2 == 0, block % 2 == 1):
        sharp = edge.of(~held).sharp()
        drifting = edge.of(~held).drifting(sharp)
        gain[held] = edge.of(held).log_likelihood(drifting) - edge.of(held).log_likelihood(sharp)
    # Per block, so that neighbours do not count as independent.
    _, z = _clarity(np.bincount(number, gain))
    best = edge.drifting(edge.sharp())
    return Diffusion(
        float(best[0]), float(np.exp(best[2])), float(gain.mean()), z, z > CLEAR_DRIFT and bool(best[0] > 0)
    )


@dataclass(frozen=True)
class _Edge:
    """Units near the border of the tissue.

    Attributes
    ----------
    counts, area
        (units,).
    density
        (units,) of the tissue nearby.
    supply
        (widths, offsets, units) counts that come from the tissue, if its border is off by that much.
    """

    counts: Floats
    area: Floats
    density: Floats
    supply: Floats

    def of(self, units: NDArray[np.bool_]) -> _Edge:
        return _Edge(self.counts[units], self.area[units], self.density[units], self.supply[:, :, units])

    def log_likelihood(self, parameters: Floats) -> Floats:
        """(units,) for parameters as in `START`."""
        width, density, ambient, offset, spread, dispersion, other = parameters
        # Splines may fall below 0 by a hair.
        supply = np.maximum(self._by_width(width), 0)
        mean = np.exp(density) * supply + np.exp(ambient) * self.area
        shape = np.exp(-dispersion)
        weight = -0.5 * np.square((OFFSETS - offset) / np.exp(spread))
        weight -= logsumexp(weight)
        each = self.counts * np.log(mean) - (self.counts + shape) * np.log(mean + shape)
        constant = gammaln(self.counts + shape) - gammaln(shape) + shape * np.log(shape) - gammaln(self.counts + 1)
        likely = logsumexp(each + weight[:, None], axis=0) + constant
        found: Floats = np.logaddexp(np.log1p(-np.exp(other)) + likely, other + self._anything)
        return found

    @cached_property
    def _by_width(self) -> CubicSpline:
        """(offsets, units) supply at any width; at 0 it does not change yet."""
        return CubicSpline(DRIFTS, self.supply, bc_type=("clamped", "natural"))

    @cached_property
    def _anything(self) -> Floats:
        """Log-likelihood of units that are neither the tissue nor the glass that they seem: geometric counts."""
        mean = np.maximum(self.density, 1)
        anything: Floats = self.counts * np.log(mean / (1 + mean)) - np.log1p(mean)
        return anything

    def sharp(self) -> Floats:
        """Parameters of maximum likelihood, if no molecule drifts."""
        return self._fit(np.array([0.0, *START]), 0.0)

    def drifting(self, sharp: Floats) -> Floats:
        """Parameters of maximum likelihood, no worse than those if no molecule drifts."""
        # A border that is not known well looks much like drift, so that there can be two peaks.
        starts = (np.array([FIRST_WIDTH, *others]) for others in (sharp[1:], START))
        found = max((self._fit(start, DRIFTS[-1]) for start in starts), key=self._total)
        return found if found[0] > LEAST_WIDTH and self._total(found) > self._total(sharp) else sharp

    def _total(self, parameters: Floats) -> float:
        return float(self.log_likelihood(parameters).sum())

    def _fit(self, start: Floats, widest: float) -> Floats:
        def cost(parameters: Floats) -> float:
            return -self._total(parameters) / len(self.counts)

        found: Floats = minimize(cost, start, method="L-BFGS-B", bounds=[(0.0, widest), *BOUNDS]).x
        return found


def _with_what_counts_show(
    totals: NDArray[np.floating], overlap: csr_array, tissue: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Add what has counts like tissue: a mask by colour misses pale tissue, which must not pass for drift."""
    counts, area = ((overlap.T @ values).reshape(tissue.shape) for values in (totals, overlap.sum(axis=1)))
    typical = counts[tissue].sum() / max(area[tissue].sum(), 1e-9)
    if typical == 0:
        return tissue
    width = max(1.0, np.sqrt(ENOUGH / (4 * np.pi * typical)))
    blurred = gaussian_filter(area, width)
    level = np.divide(gaussian_filter(counts, width), blurred, out=np.zeros_like(counts), where=blurred > 0.1)
    glass = level[~tissue & (blurred > 0.1)]
    ambient = np.quantile(glass, 0.1) if len(glass) else 0.0
    missed = ~tissue & (level > ambient + EVIDENT * (typical - ambient))
    # What drifted lies along the border, in a rim that is thinner than this.
    found: NDArray[np.bool_] = tissue | binary_opening(missed, np.ones((RIM, RIM), bool))
    return found


def _border(overlap: csr_array, tissue: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Some of the units near the border of the tissue, and the blocks of a chequerboard that they lie in."""
    area = np.asarray(overlap.sum(axis=1, dtype=np.float64))
    distance = _distance(tissue)
    y, x = np.indices(tissue.shape).reshape(2, -1)
    with np.errstate(invalid="ignore"):
        from_border, row, column = ((overlap @ values) / area for values in (distance.ravel(), y, x))
    near = np.flatnonzero((area > 0) & (from_border > -DEEP) & (from_border < REACH))
    near = np.sort(np.random.default_rng(seed).permutation(near)[:MOST_UNITS])
    down, across = (np.floor(values[near] / BLOCK).astype(np.int64) for values in (row, column))
    # Blocks of the other colour are odd.
    return near, 2 * (down * (tissue.shape[1] // BLOCK + 1) + across) + (down + across) % 2


def _distance(tissue: NDArray[np.bool_]) -> Floats:
    """Distance of each superpixel to the border of the tissue, negative inside."""
    outside, inside = distance_transform_edt(~tissue), distance_transform_edt(tissue)
    distance: Floats = np.where(tissue, 0.5 - inside, outside - 0.5)
    return distance


def _edge(
    totals: NDArray[np.floating], overlap: csr_array, tissue: NDArray[np.bool_], units: NDArray[np.intp]
) -> _Edge:
    distance = _distance(tissue)
    deep = distance <= -DEEP
    on_deep = (overlap @ deep.ravel()) > 0.999 * np.asarray(overlap.sum(axis=1))
    counts, area = (
        (overlap[on_deep].T @ values).reshape(tissue.shape)
        for values in (totals[on_deep], np.asarray(overlap[on_deep].sum(axis=1)))
    )
    counts = gaussian_filter(counts, NEARBY)
    near = overlap[units]
    supply = np.empty((len(DRIFTS), len(OFFSETS), len(units)))
    for i, width in enumerate(DRIFTS):
        # The deep tissue, too, has lost some.
        weight = gaussian_filter(area * _blurred(tissue.astype(float), width), NEARBY)
        density = np.divide(counts, weight, out=np.zeros_like(counts), where=weight > 1e-9)
        for j, offset in enumerate(OFFSETS):
            share = _blurred(np.clip(0.5 + offset - distance, 0, 1), width)
            supply[i, j] = near @ (density * share).ravel()
    return _Edge(
        np.asarray(totals[units], float), np.asarray(near.sum(axis=1, dtype=np.float64)), near @ density.ravel(), supply
    )


def _drift(width: float) -> Floats:
    """Shares of a superpixel's molecules that land so many superpixels away along an axis.

    This is the discrete analogue of the normal distribution (Lindeberg, IEEE TPAMI 12:234, 1990), whose variance is
    that of the drift, so that units which cut through superpixels, and blur a little themselves, collect what they
    should.
    """
    reach = int(np.ceil(3 * width))
    shares: Floats = ive(np.abs(np.arange(-reach, reach + 1)), width**2)
    return shares / shares.sum()


def _blurred(raster: Floats, width: float) -> Floats:
    for axis in (0, 1):
        raster = correlate1d(raster, _drift(width), axis=axis, mode="reflect")
    return raster


def blur(overlap: csr_array, shape: tuple[int, int], width: float) -> csr_array:
    """Let molecules drift before they are measured.

    Parameters
    ----------
    overlap
        (units, rows * columns) overlapping area as a share of a superpixel, on the whole grid.
    shape
        Rows and columns of the superpixel grid.
    width
        Standard deviation of the drift along each axis, in superpixels.

    Returns
    -------
    (units, rows * columns) share of the molecules of each superpixel that a unit collects. Drift ends at three
    standard deviations and is thrown back at the edge of the grid, so that the sum of each row, the area of the unit,
    is as before, and so is the sum of each column where units cover all of the grid.

    Raises
    ------
    ValueError
        If the overlap is not of the grid, or the width is negative.
    """
    if width < 0:
        raise ValueError(f"The width of the drift is {width}: give a standard deviation of at least 0 superpixels.")
    if overlap.shape[1] != shape[0] * shape[1]:
        raise ValueError(f"The overlap has {overlap.shape[1]} superpixels, but the grid is {shape}: give all of them.")
    if width == 0:
        return overlap
    down, across = (_drift_matrix(n, width).astype(overlap.dtype) for n in shape)
    along_rows = kron(eye_array(shape[0], dtype=overlap.dtype), across, format="csr")
    along_columns = kron(down, eye_array(shape[1], dtype=overlap.dtype), format="csr")
    return csr_array(overlap @ along_columns @ along_rows)


def _drift_matrix(n: int, width: float) -> csr_array:
    """(n, n) shares that land where row says of what starts where column says, along one axis."""
    shares = _drift(width)
    reach = len(shares) // 2
    start = np.arange(n)
    landing = (start[:, None] + np.arange(-reach, reach + 1)) % (2 * n)
    landing = np.minimum(landing, 2 * n - 1 - landing)
    entries = (np.tile(shares, n), (landing.ravel(), np.repeat(start, len(shares))))
    return csr_array(entries, shape=(n, n))


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
    _require_same_length(totals=totals, expected=expected, centres=centres)
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
    mean, z = _clarity(np.bincount(number, gain))
    factor = np.exp(field.at(centres, blocks, np.ones(totals.shape[1], bool)))
    sd = float(np.sqrt(field.variance_within(blocks)))
    return Capture(factor / factor.mean(), sd, field.length, mean, z, z > CLEAR_CAPTURE)


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
        across = self.variance * _correlation(centres, blocks.centres, self.length)
        found: Floats = across @ np.linalg.solve(covariance, blocks.ratio[:, groups].mean(axis=1))
        return found

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
    return _Blocks(place[enough], ratio, weight[enough] / max(weight[enough].mean(), 1e-12))


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
