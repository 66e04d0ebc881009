"""Scores of each gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_array
from scipy.special import xlogy
from scipy.stats import rankdata
from torch import from_numpy

# Variation smaller than this, in relation to the values, is rounding.
TINY = 1e-12
SSIM_WINDOW = 7
# Positions of some columns.
Columns = slice | NDArray[np.intp]
ALL = slice(None)
# (rows, columns).
Values = csr_array | NDArray[np.floating]


def log_normalise(
    values: NDArray[np.floating], target: float, total: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """log(1 + x) of (units, genes) scaled to `target` per unit, as scanpy's normalize_total and log1p do.

    The (units,) `total` is given where `values` are but some of the genes.
    """
    sums = (values.sum(axis=1, dtype=np.float64) if total is None else total)[:, None]
    result: NDArray[np.float64] = np.log1p(values / np.where(sums > 0, sums, 1) * target)
    return result


def poisson_deviance(counts: csr_array, mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """(columns,) sums of 2 (y log(y / m) - y + m) over the rows (McCullagh & Nelder, 1989)."""
    return _deviance(counts, mean[_entries(counts)], column_sums(mean))


def halve(counts: csr_array, rng: np.random.Generator) -> csr_array:
    """Binomial(y, 1/2) of each count y; of Poisson counts it and the rest are independent given the rate."""
    # A copy, because scipy may sort the indices of either in place.
    half = counts.copy()
    half.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(counts.dtype)
    return half


def noise_ceiling(half: NDArray[np.floating]) -> NDArray[np.float64]:
    """Highest correlation with counts that their noise allows, from the correlation of their halves.

    The reliability of the whole follows from that of a half (Spearman, 1910; Brown, 1910), and its root bounds any
    correlation with the counts (Spearman, 1904). NaN where the halves do not correlate positively.
    """
    positive = np.where(half > 0, half, np.nan)
    ceiling: NDArray[np.float64] = np.sqrt(2 * positive / (1 + positive))
    return ceiling


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of the ranks of each column, ties averaged (Spearman, 1904); NaN where one side does not vary."""
    ranks = Correlation(x.shape[1])
    ranks.add(rankdata(x, axis=0), rankdata(y, axis=0))
    return ranks.pearson


def morans_i(graph: csr_array, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Spatial autocorrelation of each column over the sparse graph of its rows (Moran, 1950).

    NaN where a column does not vary or nothing is connected.
    """
    z = values - values.mean(axis=0, dtype=np.float64)
    power = (z**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = (z * (graph @ z)).sum(axis=0) / power * len(z) / graph.sum()
    return np.where((np.ptp(values, axis=0) > 0) & (graph.nnz > 0), result, np.nan)


def masked_ssim(
    x: NDArray[np.floating], y: NDArray[np.floating], mask: NDArray[np.bool_], data_range: NDArray[np.floating] | float
) -> NDArray[np.float64]:
    """Structural similarity of (..., rows, columns) maps within a mask (Wang et al., 2004).

    Means and sample covariances are of the superpixels of the mask in a window of 7 x 7, and the similarity is
    averaged over the windows around those that lie 3 or more from the border. With a full mask this is scikit-image's
    `structural_similarity`. NaN where the mask has fewer superpixels than a window or the range is not positive.
    """
    pad = SSIM_WINDOW // 2
    inner = np.s_[..., pad : mask.shape[0] - pad, pad : mask.shape[1] - pad]
    n = np.rint(uniform_filter(mask.astype(np.float64), SSIM_WINDOW) * SSIM_WINDOW**2)
    # The covariance of a single superpixel is undefined.
    used = mask & (n > 1)
    if mask.sum() < SSIM_WINDOW**2 or min(mask.shape) < SSIM_WINDOW or not used[inner].any():
        return np.full(x.shape[:-2], np.nan)
    share = np.where(used, n, np.nan) / SSIM_WINDOW**2

    def mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
        sums = uniform_filter(np.where(mask, values, 0.0), SSIM_WINDOW, axes=(-2, -1))
        windows: NDArray[np.float64] = (sums / share)[inner]
        return windows

    unbias = (n / np.maximum(n - 1, 1))[inner]
    mean_x, mean_y = mean(x), mean(y)
    variances = unbias * (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2)
    covariance = unbias * (mean(x * y) - mean_x * mean_y)
    size = np.where(np.asarray(data_range) > 0, data_range, np.nan)[..., None, None]
    c1, c2 = (0.01 * size) ** 2, (0.03 * size) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    result: NDArray[np.float64] = similarity[..., used[inner]].mean(axis=-1)
    return result


class Correlation:
    """Pearson correlation of each column, over rows that come some at a time."""

    def __init__(self, columns: int) -> None:
        self._rows = np.zeros(columns)
        self._shift = np.zeros((2, columns))
        self._sums = np.zeros((5, columns))

    def add(self, x: Values, y: Values, columns: Columns = ALL) -> None:
        """Take in (rows, columns) of both, dense or sparse, of all columns or those at some positions."""
        # Sums around the first rows' mean, against cancellation; sparse values are around 0.
        new = self._rows[columns] == 0
        for shift, values in zip(self._shift, (x, y), strict=True):
            if not isinstance(values, csr_array):
                shift[columns] = np.where(new, values.mean(axis=0, dtype=np.float64), shift[columns])
        x, y = (_shifted(values, shift[columns]) for shift, values in zip(self._shift, (x, y), strict=True))
        self._rows[columns] += x.shape[0]
        products = (x, y, _product(x, x), _product(y, y), _product(x, y))
        self._sums[:, columns] += np.stack([column_sums(values) for values in products])

    @property
    def pearson(self) -> NDArray[np.float64]:
        """(columns,) correlation; NaN where one side does not vary."""
        x, y, xx, yy, xy = self._sums / np.maximum(self._rows, 1)
        spread = np.sqrt(_variance(x, xx) * _variance(y, yy))
        return np.clip(_ratio(xy - x * y, spread, spread > 0), -1, 1)

    @property
    def x_variance(self) -> NDArray[np.float64]:
        """(columns,) sample variance of x; 0 where it does not vary."""
        x, _, xx, _, _ = self._sums / np.maximum(self._rows, 1)
        return _variance(x, xx) * (self._rows / np.maximum(self._rows - 1, 1))


class Scores:
    """Held-out scores of each gene, from units that come some at a time."""

    def __init__(self, genes: list[str], base: NDArray[np.floating], target: float) -> None:
        """Compare with `base`, (genes,) rates per unit of depth and area; log-normalise to `target` counts."""
        self._genes, self._base, self._target = genes, base, target
        self._log, self._raw, self._halves = (Correlation(len(genes)) for _ in range(3))
        self._units, self._counts, self._squares, self._deviance, self._null = np.zeros((5, len(genes)))

    def add(
        self,
        counts: csr_array,
        half: csr_array,
        mean: NDArray[np.floating],
        exposure: NDArray[np.floating],
        genes: Columns = ALL,
    ) -> None:
        """Take in (units, genes) counts, a random half of them, their prediction, and (units,) depth times area.

        Of units that measured but some genes, those at the positions `genes`; totals are then of these, log-normalised
        to their share of the target.
        """
        base = self._base[genes]
        target = self._target * float(base.sum() / (self._base.sum() or 1))
        log_counts, log_mean = _log_normalised(counts, target), _log_normalised(mean, target)
        self._log.add(log_counts, log_mean, genes)
        squares = column_sums(_product(log_counts, log_counts)) + column_sums(_product(log_mean, log_mean))
        self._squares[genes] += squares - 2 * column_sums(_product(log_counts, log_mean))
        self._halves.add(_log_normalised(half, target), _log_normalised(counts - half, target), genes)
        self._raw.add(counts, mean, genes)
        self._units[genes] += counts.shape[0]
        self._counts[genes] += column_sums(counts)
        self._deviance[genes] += poisson_deviance(counts, mean)
        row, column = _entries(counts)
        self._null[genes] += _deviance(counts, exposure[row] * base[column], exposure.sum() * base)

    def table(self) -> pd.DataFrame:
        """One row per gene: those scores of `pixel2gene.tl.evaluate` that are sums over the units."""
        mean, variance = self._counts / np.maximum(self._units, 1), self._raw.x_variance
        # Half of Poisson counts has variance (v + m) / 4 and covariance (v - m) / 4 with the other half.
        half = _ratio(variance - mean, variance + mean, variance > 0)
        varied = (self._counts > 0) & (self._null > TINY * self._counts)
        return with_shares(
            pd.DataFrame(
                {
                    "mean_count": mean,
                    "pearson": self._log.pearson,
                    "pearson_counts": self._raw.pearson,
                    "rmse": np.sqrt(_ratio(self._squares, self._units, self._log.x_variance > 0)),
                    "deviance_explained": 1 - _ratio(self._deviance, self._null, varied),
                    "pearson_ceiling": noise_ceiling(self._halves.pearson),
                    "pearson_counts_ceiling": noise_ceiling(half),
                },
                index=pd.Index(self._genes, name="gene"),
            )
        )


def with_shares(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the share of its ceiling that each score reaches."""
    names = [name.removesuffix("_ceiling") for name in map(str, scores) if name.endswith("_ceiling")]
    return scores.assign(**{f"{name}_share": scores[name] / scores[f"{name}_ceiling"] for name in names})


def column_sums(values: Values) -> NDArray[np.float64]:
    """(columns,) sums over the rows."""
    if isinstance(values, csr_array):
        return np.bincount(values.indices, values.data, values.shape[1])
    sums: NDArray[np.float64] = values.sum(axis=0, dtype=np.float64)
    return sums


def _log_normalised[V: (csr_array, NDArray[np.floating])](values: V, target: float) -> V:
    """As `log_normalise`, in the form and precision of the values."""
    total = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    factor = target / np.where(total > 0, total, 1)
    if isinstance(values, csr_array):
        scaled = values.data * np.repeat(factor, np.diff(values.indptr))
        return csr_array((np.log1p(scaled), values.indices, values.indptr), shape=values.shape)
    # Of numpy and torch, torch has the faster logarithm by far.
    scaled = values * factor[:, None].astype(values.dtype)
    return from_numpy(scaled).log1p_().numpy()


def _deviance(counts: csr_array, mean: NDArray[np.floating], total: NDArray[np.floating]) -> NDArray[np.float64]:
    """Where there are no counts it is but the mean, which is given where there are, and as its (columns,) total."""
    y = counts.data.astype(np.float64)
    each = xlogy(y, y / np.maximum(mean, 1e-8)) - y
    return 2 * (np.bincount(counts.indices, each, counts.shape[1]) + total)


def _entries(values: csr_array) -> tuple[NDArray[np.intp], NDArray[np.integer]]:
    return np.repeat(np.arange(values.shape[0]), np.diff(values.indptr)), values.indices


def _product(x: Values, y: Values) -> Values:
    """Entry by entry."""
    if isinstance(x, csr_array):
        if isinstance(y, csr_array):
            return csr_array(x.multiply(y))
        data = x.data.astype(np.float64) * y[_entries(x)]
        return csr_array((data, x.indices, x.indptr), shape=x.shape)
    return _product(y, x) if isinstance(y, csr_array) else x * y


def _shifted(values: Values, shift: NDArray[np.float64]) -> Values:
    return values if isinstance(values, csr_array) else values - shift.astype(values.dtype)


def _variance(mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of columns with that mean and mean square; 0 where it is but rounding."""
    variance = square - mean**2
    return np.where(variance > TINY * np.maximum(square, TINY), variance, 0)


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`a / b` where it is defined, else NaN."""
    result: NDArray[np.float64] = np.divide(a, b, out=np.full(a.shape, np.nan), where=defined)
    return result
