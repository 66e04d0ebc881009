"""Scores of each gene, from units that come some at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import xlogy


def log_normalise(values: NDArray[np.floating], target: float) -> NDArray[np.float64]:
    """log(1 + x) of (units, genes) scaled to `target` per unit, as scanpy's normalize_total and log1p do."""
    total = values.sum(axis=1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float64] = np.log1p(values / np.where(total > 0, total, 1) * target)
    return result


def poisson_deviance(counts: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """2 (y log(y / m) - y + m) of each count (McCullagh & Nelder, 1989)."""
    mean = np.maximum(mean, 1e-8).astype(np.float64)
    result: NDArray[np.float64] = 2 * (xlogy(counts, counts / mean) - counts + mean)
    return result


class Correlation:
    """Pearson correlation of each column, over rows that come some at a time."""

    def __init__(self, columns: int) -> None:
        self._rows = 0
        self._shift: NDArray[np.float64] | None = None
        self._sums = np.zeros((5, columns))

    def add(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> None:
        """Take in (rows, columns) of both."""
        if self._shift is None:
            # Sums around the first rows' mean, against cancellation.
            self._shift = np.stack([x.mean(axis=0), y.mean(axis=0)]).astype(np.float64)
        x, y = x - self._shift[0], y - self._shift[1]
        self._rows += len(x)
        self._sums += np.stack([x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])

    @property
    def pearson(self) -> NDArray[np.float64]:
        """(columns,) correlation; NaN where one side does not vary."""
        x, y, xx, yy, xy = self._sums / max(self._rows, 1)
        variance_x, variance_y = xx - x**2, yy - y**2
        tiny = 1e-12
        flat = (variance_x <= tiny * np.maximum(xx, tiny)) | (variance_y <= tiny * np.maximum(yy, tiny))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(flat, np.nan, (xy - x * y) / np.sqrt(variance_x * variance_y))


class Scores:
    """Held-out scores of each gene."""

    def __init__(self, genes: list[str], base: NDArray[np.floating], target: float) -> None:
        """Compare with `base`, (genes,) rates per unit of depth and area; log-normalise to `target` counts."""
        self._genes, self._base, self._target = genes, base, target
        self._log, self._raw = Correlation(len(genes)), Correlation(len(genes))
        self._units = 0
        self._counts, self._deviance, self._null = np.zeros((3, len(genes)))

    def add(self, counts: NDArray[np.floating], mean: NDArray[np.floating], exposure: NDArray[np.floating]) -> None:
        """Take in (units, genes) counts, their prediction, and (units,) depth times area."""
        self._log.add(log_normalise(counts, self._target), log_normalise(mean, self._target))
        self._raw.add(counts, mean)
        self._units += len(counts)
        self._counts += counts.sum(axis=0)
        self._deviance += poisson_deviance(counts, mean).sum(axis=0)
        self._null += poisson_deviance(counts, exposure[:, None] * self._base).sum(axis=0)

    def table(self) -> pd.DataFrame:
        """One row per gene: see `pixel2gene.tl.evaluate`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            explained = 1 - self._deviance / self._null
        return pd.DataFrame(
            {
                "mean_count": self._counts / max(self._units, 1),
                "pearson": self._log.pearson,
                "pearson_counts": self._raw.pearson,
                "deviance_explained": explained,
            },
            index=pd.Index(self._genes, name="gene"),
        )
