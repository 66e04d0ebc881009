"""Scores of each gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_array
from scipy.special import xlogy
from scipy.stats import rankdata

# Variation smaller than this, in relation to the values, is rounding.
TINY = 1e-12
SSIM_WINDOW = 7
# Positions of some columns.
Columns = slice | NDArray[np.intp]
ALL = slice(None)


def log_normalise(
    values: NDArray[np.floating], target: float, total: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """log(1 + x) of (units, genes) scaled to `target` per unit, as scanpy's normalize_total and log1p do.

    The (units,) `total` is given where `values` are but some of the genes.
    """
    sums = (values.sum(axis=1, dtype=np.float64) if total is None else total)[:, None]
    result: NDArray[np.float64] = np.log1p(values / np.where(sums > 0, sums, 1) * target)
    return result


def poisson_deviance(counts: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """2 (y log(y / m) - y + m) of each count (McCullagh & Nelder, 1989)."""
    mean = np.maximum(mean, 1e-8).astype(np.float64)
    result: NDArray[np.float64] = 2 * (xlogy(counts, counts / mean) - counts + mean)
    return result


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

    def add(self, x: NDArray[np.floating], y: NDArray[np.floating], columns: Columns = ALL) -> None:
        """Take in (rows, columns) of both, of all columns or those at some positions."""
        # Sums around the first rows' mean, against cancellation.
        first = np.stack([x.mean(axis=0), y.mean(axis=0)]).astype(np.float64)
        self._shift[:, columns] = np.where(self._rows[columns] == 0, first, self._shift[:, columns])
        x, y = x - self._shift[0, columns], y - self._shift[1, columns]
        self._rows[columns] += len(x)
        self._sums[:, columns] += np.stack([x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])

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
        counts: NDArray[np.floating],
        half: NDArray[np.floating],
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
        log_counts, log_mean = log_normalise(counts, target), log_normalise(mean, target)
        self._log.add(log_counts, log_mean, genes)
        self._squares[genes] += np.square(log_counts - log_mean).sum(axis=0)
        self._halves.add(log_normalise(half, target), log_normalise(counts - half, target), genes)
        self._raw.add(counts, mean, genes)
        self._units[genes] += len(counts)
        self._counts[genes] += counts.sum(axis=0)
        self._deviance[genes] += poisson_deviance(counts, mean).sum(axis=0)
        self._null[genes] += poisson_deviance(counts, exposure[:, None] * base).sum(axis=0)

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


def _variance(mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of columns with that mean and mean square; 0 where it is but rounding."""
    variance = square - mean**2
    return np.where(variance > TINY * np.maximum(square, TINY), variance, 0)


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`a / b` where it is defined, else NaN."""
    result: NDArray[np.float64] = np.divide(a, b, out=np.full(a.shape, np.nan), where=defined)
    return result
