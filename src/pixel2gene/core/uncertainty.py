"""How far counts, and the truth behind them, lie from what is expected of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pixel2gene.core.empirical_bayes import posterior
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.neighbours import pairs
from pixel2gene.core.posterior import ShapeEstimator
from pixel2gene.core.regression import Measurement, predicted_counts

# Variance of the truth in relation to the square of its mean level: nearly none, to where next to nothing is known.
MISFITS = np.geomspace(1e-4, 10, 61)
# Of fewer units that share a block, as spots of two captures do by chance, pairs do not speak for the others.
TOGETHER = 0.1
# Units that suffice to tell.
SAMPLE = 20_000
# Values of a dense array of (units, genes), at most.
BLOCK_VALUES = 2**25
SMALLEST, SINGULAR = 1e-8, 1e-6


def truth_sd(sd: NDArray[np.float32], mean: NDArray[np.float32], misfit: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the truth may lie from a prediction: members disagree, and all of them miss something.

    Parameters
    ----------
    sd, mean
        (n, genes) over the members.
    misfit
        (genes,) variance of what all miss, as a multiple of the mean.
    """
    off: NDArray[np.float32] = np.sqrt(np.square(sd) + mean * misfit)
    return off


def held_out_uncertainty(
    network: Ensemble, data: Measurement, genes: list[str], device: torch.device, seed: int
) -> pd.DataFrame:
    """Tell each gene's uncertainty from units that the members which predict them did not see.

    Parameters
    ----------
    network
        Trained ensemble.
    data
        Measured units.
    genes
        Names of the genes.
    device
        Where to compute.
    seed
        Of the units looked at, where there are many.

    Returns
    -------
    One row per gene: ``dispersion`` of the negative binomial distribution of a unit's count around its prediction, and
    ``misfit``, the variance of the true rate around the predicted one as a multiple of it, in counts per superpixel.
    """
    exposure = data.over_genes(data.area * data.depth) / data.over_genes(np.ones(len(data.fold)))
    data = data.rows(whole_blocks(data.patch, np.random.default_rng(seed)))
    parts = []
    for some in gene_blocks(*data.counts.shape):
        chosen = torch.arange(some.start, some.stop, device=device)
        counts = data.counts[:, some].toarray().astype(np.float32)
        mean = predicted_counts(network, data, device, held_out=True, genes=chosen)
        measured = data.measured(np.arange(len(counts)))
        if measured is not None:
            mean *= measured[:, some]
        shape = gamma_shape(counts, mean)
        parts.append(np.stack([1 / shape, misfit(counts, mean, shape, data.patch)]))
    dispersion, variance = np.concatenate(parts, axis=1)
    return pd.DataFrame({"dispersion": dispersion, "misfit": variance / exposure}, index=pd.Index(genes, name="gene"))


def gamma_shape(counts: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """(genes,) shape of the gamma distribution of units around their (units, genes) expectation."""
    estimator = ShapeEstimator(counts.shape[1])
    estimator.add(counts, mean)
    return estimator.shape


def misfit(
    counts: NDArray[np.floating], mean: NDArray[np.floating], shape: NDArray[np.floating], block: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Variance of the truth around its expectation, as a multiple of that.

    Each unit of a block has its own noise, but what is missed of the truth is about the same in all, so that the
    products of their residuals tell its variance. Where hardly any share a block, all that differs counts as truth.
    Units of which nothing is expected, as where a gene was not measured, do not count.

    Parameters
    ----------
    counts, mean
        (units, genes), the mean by what has not seen any unit of the block.
    shape
        (genes,) of the gamma distribution of units around their expectation.
    block
        (units,).

    Returns
    -------
    (genes,).
    """
    level = mean.sum(axis=0, dtype=np.float64) / np.maximum((mean > 0).sum(axis=0), 1)
    result: NDArray[np.float64] = level / shape
    if not share_blocks(block):
        return result
    expected = pairs(np.sqrt(mean), block)
    known = expected > 0
    if not known.any():
        return result
    # Around their expectations, the estimates are nearly normal.
    noise = pairs(mean + mean**2 / shape, block)[known] / np.square(expected[known] * level[known])
    relative = pairs(counts - mean, block)[known] / (expected[known] * level[known])
    result[known] = level[known] * (MISFITS @ posterior(-np.square(relative - MISFITS[:, None]) / (2 * noise)))
    return result


def share_blocks(block: NDArray[np.integer]) -> bool:
    """Whether so many units share their block that pairs speak for all; `block` is (units,)."""
    return bool((np.bincount(block)[block] > 1).mean() > TOGETHER)


def misfit_of_seen(
    counts: NDArray[np.floating],
    mean: NDArray[np.floating],
    unseen: NDArray[np.floating],
    foretold: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Variance of the truth around an expectation that has seen the counts, as a multiple of the expectation squared.

    The expectation follows a count, and its noise, by some share h, so that counts lie nearer to it than they would
    otherwise: the variance of the truth is that of the counts around it, less that of counting, plus 2 h times the
    expectation. The share is the slope of the expectation on the counts, given what is known without them.

    Parameters
    ----------
    counts, mean
        (units, genes).
    unseen
        (units, genes) what is expected without the counts of a unit.
    foretold
        (units, genes) what is expected without the counts of a unit but those of its other genes.

    Returns
    -------
    (genes,).
    """
    known = (unseen, foretold, counts)
    products, with_mean = np.empty((counts.shape[1], 3, 3)), np.empty((counts.shape[1], 3, 1))
    for i, values in enumerate(known):
        weighted = values / np.maximum(unseen, SMALLEST)
        for j, others in enumerate(known):
            products[:, i, j] = _summed(weighted, others)
        with_mean[:, i, 0] = _summed(weighted, mean)
    # What foretells as much as another, as where other genes say nothing, shares the slope with it.
    slope = (np.linalg.pinv(products, rcond=SINGULAR, hermitian=True) @ with_mean)[:, 2, 0].clip(0, 1)
    level = _summed(mean, mean) / np.maximum(mean.sum(axis=0, dtype=np.float64), SMALLEST)
    result: NDArray[np.float64] = 1 / gamma_shape(counts, mean) + 2 * slope / np.maximum(level, SMALLEST)
    return result


def _summed(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """(columns,) sum of the products."""
    result: NDArray[np.float64] = np.einsum("ug,ug->g", one, other, dtype=np.float64)
    return result


def whole_blocks(block: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of the units of random blocks, enough to tell by."""
    number = np.unique(block, return_inverse=True)[1].ravel()
    size = np.bincount(number)
    order = rng.permutation(len(size))
    kept = np.zeros(len(size), bool)
    kept[order[: np.searchsorted(np.cumsum(size[order]), SAMPLE) + 1]] = True
    return np.flatnonzero(kept[number])


def gene_blocks(units: int, genes: int) -> Iterator[slice]:
    """Slices of genes, of which a dense array for all units holds a bounded number of values."""
    size = max(BLOCK_VALUES // max(units, 1), 1)
    for start in range(0, genes, size):
        yield slice(start, min(start + size, genes))
