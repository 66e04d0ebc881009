"""What histology, neighbours and a unit's own counts say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pixel2gene.core.empirical_bayes import posterior
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.neighbours import Neighbours
from pixel2gene.core.other_genes import fit_factors
from pixel2gene.core.posterior import gamma_poisson_posterior
from pixel2gene.core.regression import EMPTY_GENE_COUNTS, Measurement, predicted_counts
from pixel2gene.core.uncertainty import (
    gamma_shape,
    gene_blocks,
    misfit,
    misfit_of_seen,
    share_blocks,
    whole_blocks,
)

# Standard deviations of the Gaussian over the neighbours, in superpixels.
WIDTHS = (1.5, 3.0, 6.0, 12.0, 24.0)
# Expected counts among them that weigh as much as what was expected without them.
PRIOR_COUNTS = (1.0, 4.0, 16.0, 64.0)
# Numbers of factors that the genes of a unit share, and how far what they foretell is followed.
FACTORS = (1, 4, 16)
FOLLOWED = (0.5, 1.0)
# Parts of the sample: what other genes foretell in one is learnt from the others.
PARTS = 5
LEAST_UNITS, LEAST_GENES = 20, 3
# To learn it from.
ENOUGH_UNITS = 2_000
# A count may be expected to be so much rarer by other genes.
RAREST = 0.02
SMALLEST = 1e-8

type Candidate = tuple[NDArray[np.float32], NDArray[np.float64]]


@dataclass(frozen=True)
class Denoised:
    """Denoised counts and where they come from.

    Attributes
    ----------
    mean, sd
        (units, genes) expected count of each unit, given what is expected of it and its own count.
    expected, expected_sd
        (units, genes) what histology and neighbours expect, and how far the truth may lie from it.
    histology, neighbours, own
        (genes,) weights of the three in `mean`, averaged over the units; own counts are those of all genes.
    shape
        (genes,) of the gamma distribution of a unit around what is expected of it, its other genes given.
    elsewhere
        What is expected where nothing was measured.
    """

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    expected: NDArray[np.float32]
    expected_sd: NDArray[np.float32]
    histology: NDArray[np.float64]
    neighbours: NDArray[np.float64]
    own: NDArray[np.float64]
    shape: NDArray[np.float64]
    elsewhere: Elsewhere


@dataclass(frozen=True)
class Elsewhere:
    """What histology and neighbours expect where nothing was measured, some genes at a time.

    Attributes
    ----------
    sources
        Counts, and what the H&E lets expect of them.
    weight
        (candidates, genes) how far each way to expect them is believed.
    """

    sources: Sources
    weight: NDArray[np.float64]

    def at(self, centres: NDArray[np.floating], histology: NDArray[np.float32], genes: slice) -> NDArray[np.float32]:
        """(places, genes) expected counts.

        Parameters
        ----------
        centres
            (places, 2) x and y in grid coordinates.
        histology
            (places, some genes) counts that the H&E lets expect there.
        genes
            Which genes these are.
        """
        return _mixture(self.sources.elsewhere(centres, histology, genes), self.weight[:, genes])[0]


def denoise_counts(
    network: Ensemble,
    data: Measurement,
    undisturbed: Measurement,
    centres: NDArray[np.floating],
    device: torch.device,
    seed: int,
) -> Denoised:
    """Weigh histology, neighbours and own counts against one another, gene by gene.

    The weights are those that best predict units which neither the member that predicts them nor the sum over the
    neighbours has seen; genes of few counts lean on the others. Both results add up to the counts of each gene: what a
    mean of ratios gains, as that of the neighbours is, is taken out again.

    Parameters
    ----------
    network
        Trained ensemble.
    data
        Measured units, all of whose genes were measured.
    undisturbed
        The same units, had the platform not done to them what it did: the results are what these would count. `data`
        itself where it did nothing.
    centres
        (units, 2) x and y in grid coordinates.
    device
        Where to compute.
    seed
        Of the units to choose by, where there are many.
    """
    around = Neighbours(centres)
    rows = whole_blocks(around.block, np.random.default_rng(seed))
    held_out = replace(data, fold=data.fold if data.apart is None else data.apart).rows(rows)
    sources = Sources(
        around,
        data.counts.toarray().astype(np.float32),
        predicted_counts(network, data, device, held_out=False),
        rows,
        predicted_counts(network, held_out, device, held_out=True),
    )
    counts, some = sources.counts, sources.counts[rows]
    weight = posterior(_log_likelihoods(sources, gamma_shape(some, sources.unseen)))
    expected, unseen, neighbours = np.empty_like(counts), np.empty_like(some), np.empty(counts.shape[1])
    for genes in gene_blocks(*counts.shape):
        expected[:, genes], neighbours[genes] = _mixture(sources.candidates(genes), weight[:, genes])
        unseen[:, genes], _ = _mixture(sources.candidates(genes, held_out=True), weight[:, genes])
    expected *= _level(counts, expected)
    shape = gamma_shape(some, unseen)
    with_other_genes, foretold, among = _other_genes(sources, unseen, shape, np.lexsort(centres[rows].T), seed)
    block = around.block[rows]
    if share_blocks(block):
        expected_sd = np.sqrt(expected * misfit(some, unseen, shape, block).astype(np.float32))
    else:
        expected_sd = expected * np.sqrt(misfit_of_seen(some, expected[rows], unseen, foretold)).astype(np.float32)
    mean, sd, trusted = np.empty_like(counts), np.empty_like(counts), np.zeros(counts.shape[1])
    # Some units at a time, since each takes its many arrays, and a value for each pair of factors.
    for units in gene_blocks(max(counts.shape[1], max(FACTORS) ** 2), len(counts)):
        prior = with_other_genes(counts[units], expected[units])
        mean[units], sd[units] = gamma_poisson_posterior(counts[units], prior, among)
        trusted += (among / (prior + among)).sum(axis=0) / len(counts)
    own_level = _level(counts, mean)
    mean *= own_level
    sd *= own_level
    # What other genes foretell narrows what a unit has for itself.
    own = 1 - np.minimum(shape / among, 1) * trusted
    weights = ((1 - own) * (1 - neighbours), (1 - own) * neighbours, own)
    if undisturbed is not data:
        plain = predicted_counts(network, undisturbed, device, held_out=False)
        undone: NDArray[np.float32] = (plain / np.maximum(sources.histology, SMALLEST)).astype(np.float32)
        mean, sd, expected, expected_sd = (values * undone for values in (mean, sd, expected, expected_sd))
    return Denoised(mean, sd, expected, expected_sd, *weights, among, Elsewhere(sources, weight))


def _level(counts: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """(genes,) counts of all units over what is expected of them; of few counts, nearer to 1."""
    counted, total = (values.sum(axis=0, dtype=np.float64) + EMPTY_GENE_COUNTS for values in (counts, expected))
    level: NDArray[np.float32] = (counted / total).astype(np.float32)
    return level


@dataclass(frozen=True)
class Sources:
    """What counts can be expected from.

    Attributes
    ----------
    around
        The neighbours of each unit.
    counts
        (units, genes).
    histology
        (units, genes) counts that the H&E lets expect.
    rows
        (sample,) positions of the units to choose by.
    unseen
        (sample, genes) counts that the H&E lets expect there, by members that did not see them.
    """

    around: Neighbours
    counts: NDArray[np.float32]
    histology: NDArray[np.float32]
    rows: NDArray[np.intp]
    unseen: NDArray[np.float32]

    def candidates(self, genes: slice, *, held_out: bool = False) -> Iterator[Candidate]:
        """All ways to expect the counts of some genes: by the H&E alone, and with neighbours of each width and prior.

        Neighbours multiply what the H&E lets expect by what is counted around over what it lets expect there, as the
        mean of a gamma distribution whose prior has mean 1 and the prior counts as its shape.

        Parameters
        ----------
        genes
            Of which genes.
        held_out
            Only of the sample, and as if the blocks of its units had not been measured.

        Returns
        -------
        (units, genes) expected counts, and the (genes,) weight of the neighbours averaged over the units.
        """
        counts, histology = self.counts[:, genes], self.histology[:, genes]
        base, rows = (self.unseen[:, genes], self.rows) if held_out else (histology, slice(None))
        return _with_neighbours(
            base,
            lambda width: [
                self.around.sums(values, width, own_block=not held_out)[rows] for values in (counts, histology)
            ],
        )

    def elsewhere(self, centres: NDArray[np.floating], base: NDArray[np.float32], genes: slice) -> Iterator[Candidate]:
        """As `candidates`, at (places, 2) centres where nothing was measured, and the H&E lets expect `base`."""
        counts, histology = self.counts[:, genes], self.histology[:, genes]
        return _with_neighbours(
            base, lambda width: [self.around.sums_at(centres, values, width) for values in (counts, histology)]
        )


def _with_neighbours(
    base: NDArray[np.float32], around: Callable[[float], list[NDArray[np.float32]]]
) -> Iterator[Candidate]:
    """What is expected by the H&E alone, and corrected by counted and expected counts `around`, by width."""
    yield base, np.zeros(base.shape[1])
    for width in WIDTHS:
        counted, expected = around(width)
        for prior in PRIOR_COUNTS:
            trust = (expected / (expected + prior)).sum(axis=0, dtype=np.float64) / max(len(base), 1)
            yield base * ((counted + prior) / (expected + prior)), trust


def _other_genes(
    sources: Sources, unseen: NDArray[np.float32], shape: NDArray[np.float64], order: NDArray[np.intp], seed: int
) -> tuple[
    Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]], NDArray[np.float32], NDArray[np.float64]
]:
    """Learn to correct what is expected by what a unit's counts of all other genes foretell, as far as it helps a gene.

    Parameters
    ----------
    sources
        Counts, and the sample to choose by.
    unseen
        (sample, genes) what is expected there by what has not seen them.
    shape
        (genes,) of the gamma distribution of the units around it.
    order
        (sample,) its units by their place, so that the order in which they come makes no difference.
    seed
        Of the parts of the sample.

    Returns
    -------
    What makes corrected expectations of (units, genes) counts and expectations, those of the (sample, genes) by factors
    that did not see it, and the (genes,) shape around them.
    """
    some = sources.counts[sources.rows]
    if len(some) < LEAST_UNITS or some.shape[1] < LEAST_GENES:
        return lambda counts, expected: expected, unseen, shape
    drawn = np.empty(len(some), np.intp)
    drawn[order] = np.random.default_rng(seed).permutation(len(some))
    part, enough = drawn % PARTS, drawn < ENOUGH_UNITS
    held_out = [np.empty_like(some) for _ in FACTORS]
    for without_part, number in zip(held_out, FACTORS, strict=True):
        for k in range(PARTS):
            others = enough & (part != k)
            factors = fit_factors(some[others], unseen[others], shape, number, seed)
            without_part[part == k] = factors.foretell(some[part == k], unseen[part == k])

    def ways(mean: NDArray[np.float32], foretold: list[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """What is expected without other genes, and in all ways with them."""
        yield mean
        for each in foretold:
            for share in FOLLOWED:
                yield mean * np.maximum(1 + np.float32(share) * each, np.float32(RAREST))

    weight = posterior(np.stack([_log_likelihood(some, mean, shape) for mean in ways(unseen, held_out)]))

    def mixed(mean: NDArray[np.float32], foretold: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        total = np.zeros_like(mean)
        for way, w in zip(ways(mean, foretold), weight, strict=True):
            total += way * w.astype(np.float32)
        return total

    all_factors = [fit_factors(some[enough], unseen[enough], shape, number, seed) for number in FACTORS]

    def corrected(counts: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
        return mixed(expected, [factors.foretell(counts, expected) for factors in all_factors])

    foretold = mixed(unseen, held_out)
    return corrected, foretold, gamma_shape(some, foretold)


def _log_likelihoods(sources: Sources, shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """(candidates, genes) log-likelihood of the sample."""
    counts = sources.counts[sources.rows]
    return np.concatenate(
        [
            np.stack(
                [
                    _log_likelihood(counts[:, genes], mean, shape[genes])
                    for mean, _ in sources.candidates(genes, held_out=True)
                ]
            )
            for genes in gene_blocks(*sources.counts.shape)
        ],
        axis=1,
    )


def _log_likelihood(
    counts: NDArray[np.float32], mean: NDArray[np.float32], shape: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(genes,) negative binomial log-likelihood of (units, genes) counts, up to a constant of each gene."""
    mean = np.maximum(mean, SMALLEST)
    each: NDArray[np.floating] = counts * np.log(mean / (mean + shape)) - shape * np.log1p(mean / shape)
    result: NDArray[np.float64] = each.sum(axis=0, dtype=np.float64)
    return result


def _mixture(
    candidates: Iterator[Candidate], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Means of the candidates by their (candidates, genes) weights, and of the neighbours' weights in them."""
    mean, neighbours = np.float32(0), np.zeros(weight.shape[1])
    for each, (candidate, trust) in zip(weight, candidates, strict=True):
        mean = mean + candidate * each.astype(np.float32)
        neighbours += each * trust
    return np.asarray(mean), neighbours
