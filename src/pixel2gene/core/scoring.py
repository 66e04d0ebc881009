"""Held-out scores of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.metrics import (
    ALL,
    SSIM_WINDOW,
    Columns,
    Scores,
    halve,
    log_normalise,
    masked_ssim,
    morans_i,
    noise_ceiling,
    spearman,
    with_shares,
)
from pixel2gene.core.regression import Measurement, predict_units

COLUMNS = [
    "mean_count",
    "pearson",
    "pearson_counts",
    "spearman",
    "rmse",
    "deviance_explained",
    "ssim",
    "morans_i_counts",
    "morans_i_predicted",
    "pearson_ceiling",
    "pearson_counts_ceiling",
    "spearman_ceiling",
    "pearson_share",
    "pearson_counts_share",
    "spearman_share",
]
# Values of a dense array of (units, genes), at most.
BLOCK_VALUES = 2**25
HALVING_SEED = 0
# Neighbours are the nearest units, and those hardly farther: 8 on a square lattice, 6 on a hexagonal one.
NEIGHBOURS, SLACK = 6, 1.1
# A superpixel is part of a map where at least this share of it is measured.
COVERED = 0.5
# Of units that fill much of a window there is no structure within it: all maps of spots look alike.
LARGEST_UNIT = SSIM_WINDOW**2 / 4


@dataclass(frozen=True)
class Layout:
    """Where units and superpixels lie.

    Attributes
    ----------
    shape
        Rows and columns of the superpixel grid.
    superpixels
        (superpixels,) their flat indices.
    centres
        (units, 2) x and y.
    """

    shape: tuple[int, int]
    superpixels: NDArray[np.int64]
    centres: NDArray[np.float64]


def held_out_scores(network: Ensemble, data: Measurement, genes: list[str], device: torch.device) -> pd.DataFrame:
    """Score every gene in one pass over the units that measured it, each predicted by the members that did not see it.

    Returns
    -------
    One row per gene: those columns of `pixel2gene.tl.evaluate` that are sums over the units.
    """
    return _sums(network, data, genes, _half(data), device)[0]


def full_scores(
    network: Ensemble, data: Measurement, genes: list[str], layout: Layout, device: torch.device
) -> pd.DataFrame:
    """Score every gene, also by ranks and maps, each unit predicted by the members that did not see it.

    All units have measured all genes.

    Returns
    -------
    One row per gene, see `pixel2gene.tl.evaluate`.
    """
    half = _half(data)
    table, predicted_total = _sums(network, data, genes, half, device)
    total = np.asarray(data.counts.sum(axis=1, dtype=np.float64))
    graph, maps = neighbours(layout.centres), Maps(data.overlap, layout)
    blocks = []
    for block in _pieces(len(genes), len(data.fold)):
        part = replace(data, counts=data.counts[:, block])
        counts, first = part.counts.toarray(order="F"), half[:, block].toarray(order="F")
        mean = np.empty(counts.shape, np.float32, order="F")
        chosen = torch.arange(block.start, block.stop, device=device)
        for units, some in predict_units(network, part, device, held_out=True, genes=chosen):
            mean[units] = some
        log_counts = log_normalise(counts, total.mean(), total)
        log_mean = log_normalise(mean, total.mean(), predicted_total)
        scores = {
            "spearman": spearman(counts, mean),
            "spearman_ceiling": noise_ceiling(spearman(first, counts - first)),
            "ssim": maps.ssim(log_counts, log_mean),
            "morans_i_counts": morans_i(graph, log_counts),
            "morans_i_predicted": morans_i(graph, log_mean),
        }
        blocks.append(pd.DataFrame(scores, index=table.index[block]))
    return with_shares(table.join(pd.concat(blocks)))[COLUMNS]


def neighbours(centres: NDArray[np.float64]) -> csr_array:
    """(units, units) graph, in which the weights of the neighbours of a unit sum to 1."""
    n = len(centres)
    # Room for the ties.
    most = min(2 * NEIGHBOURS, n - 1)
    if most == 0:
        return csr_array((n, n))
    distance, index = NearestNeighbors().fit(centres).kneighbors(n_neighbors=most)
    near = distance <= SLACK * distance[:, [min(NEIGHBOURS, most) - 1]]
    degree = near.sum(axis=1)
    ends = np.concatenate([[0], np.cumsum(degree)])
    return csr_array((np.repeat(1 / degree, degree), index[near], ends), shape=(n, n))


class Maps:
    """Values of units laid on the superpixels that they cover."""

    def __init__(self, overlap: csr_array, layout: Layout) -> None:
        area = np.asarray(overlap.sum(axis=0, dtype=np.float64))
        covered = np.flatnonzero(area >= COVERED)
        self._shares = csr_array(csr_array(overlap.T)[covered].multiply(1 / area[covered, None]))
        self._positions = layout.superpixels[covered]
        self._mask = np.zeros(layout.shape, bool)
        self._mask.flat[self._positions] = True
        self._too_coarse = np.median(overlap.sum(axis=1, dtype=np.float64)) > LARGEST_UNIT

    def ssim(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Structural similarity of each column, in relation to the range of x's map.

        NaN where x does not vary, or units are so large that windows see few of them.
        """
        if self._too_coarse:
            return np.full(x.shape[1], np.nan)
        # Gene by gene: the grid can be far larger than the number of units.
        return np.array([self._ssim(a, b) if np.ptp(a) > 0 else np.nan for a, b in zip(x.T, y.T, strict=True)])

    def _ssim(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        a, b = self._map(x), self._map(y)
        inside = a[self._mask]
        return float(masked_ssim(a, b, self._mask, np.ptp(inside) if len(inside) else 0.0))

    def _map(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        raster = np.zeros(self._mask.shape)
        raster.flat[self._positions] = self._shares @ values
        return raster


def _sums(
    network: Ensemble, data: Measurement, genes: list[str], half: csr_array, device: torch.device
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Scores that are sums over the units, and the (units,) totals of the predictions."""
    exposure = data.area * data.depth
    totals = np.asarray(data.counts.sum(axis=0, dtype=np.float64)).ravel()
    base = totals / data.over_genes(exposure)
    scores = Scores(genes, base, target=float(base.sum() * exposure.mean()))
    predicted = np.empty(len(data.fold))
    for units, mean in predict_units(network, data, device, held_out=True):
        predicted[units] = mean.sum(axis=1, dtype=np.float64)
        for rows, columns in _panels(data, units):
            some = units[rows]
            counts, first = (_of_columns(matrix[some], columns) for matrix in (data.counts, half))
            scores.add(counts, first, mean[rows][:, columns], exposure[some], columns)
    return scores.table(), predicted


def _panels(data: Measurement, units: NDArray[np.intp]) -> Iterator[tuple[Columns, Columns]]:
    """Positions of those of the units that measured the same genes, and of these genes."""
    if data.panels is None or data.slide is None:
        yield ALL, ALL
        return
    slide = data.slide[units]
    for one in np.unique(slide):
        yield np.flatnonzero(slide == one), np.flatnonzero(data.panels[one])


def _of_columns(matrix: csr_array, columns: Columns) -> csr_array:
    return matrix if isinstance(columns, slice) else csr_array(matrix[:, columns])


def _half(data: Measurement) -> csr_array:
    return halve(data.counts, np.random.default_rng(HALVING_SEED))


def _pieces(length: int, width: int) -> Iterator[slice]:
    """Slices of at most so many rows that a piece with `width` columns holds a bounded number of values."""
    size = max(BLOCK_VALUES // width, 1)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
