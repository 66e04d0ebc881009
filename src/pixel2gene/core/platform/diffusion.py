"""Diffusion: molecules that drifted before they were caught, seen at the border of the tissue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import binary_opening, correlate1d, distance_transform_edt, gaussian_filter
from scipy.optimize import minimize
from scipy.sparse import csr_array, eye_array, kron
from scipy.special import gammaln, ive, logsumexp

from pixel2gene.core.platform._held_out import Floats, clarity

# All lengths are in superpixels. Widths and offsets of the mask that are computed; between widths, linearly.
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
# Standard errors by which the held-out gain must exceed 0.
CLEAR = 3.0
# Without so large a gain where it was fitted, none that is held out can be clear.
LEAST_GAIN = 5.0
# Of the mean log-likelihood: a change of less is no better.
TOLERANCE = 1e-6
MOST_UNITS, LEAST_UNITS = 5000, 100
# Where the search for a width starts, and what is none: rates are of superpixels, and so little does not show.
FIRST_WIDTH, LEAST_WIDTH = 0.7, 0.1
# Where the likelihood starts: log of the density over that of the tissue nearby, log ambient counts, mean and log
# spread of the offset of the border, log dispersion, log share of anything else.
START = (0.0, np.log(0.01), 0.0, np.log(0.5), np.log(0.5), np.log(0.01))
BOUNDS = ((-2.0, 2.0), (-12.0, 5.0), (-3.5, 1.5), (np.log(0.1), np.log(3.0)), (-7.0, 3.0), (-12.0, -1.0))


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
    none = edge.sharp()
    best = edge.drifting(none)
    number = np.unique(block, return_inverse=True)[1]
    gain = np.zeros(len(units))
    if best[0] == 0 or edge.total(best) < edge.total(none) + LEAST_GAIN:
        return Diffusion(float(best[0]), float(np.exp(best[2])), 0.0, 0.0, False)
    for held in (block % 2 == 0, block % 2 == 1):
        sharp = edge.of(~held).sharp()
        drifting = edge.of(~held).drifting(sharp)
        gain[held] = edge.of(held).log_likelihood(drifting) - edge.of(held).log_likelihood(sharp)
    # Per block, so that neighbours do not count as independent.
    _, z = clarity(np.bincount(number, gain))
    return Diffusion(float(best[0]), float(np.exp(best[2])), float(gain.mean()), z, z > CLEAR)


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
        found = max((self._fit(start, DRIFTS[-1]) for start in starts), key=self.total)
        return found if found[0] > LEAST_WIDTH and self.total(found) > self.total(sharp) else sharp

    def total(self, parameters: Floats) -> float:
        """Log-likelihood of all units."""
        return float(self.log_likelihood(parameters).sum())

    def _fit(self, start: Floats, widest: float) -> Floats:
        def cost(parameters: Floats) -> float:
            return -self.total(parameters) / len(self.counts)

        bounds = [(0.0, widest), *BOUNDS]
        found: Floats = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"ftol": TOLERANCE}).x
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
