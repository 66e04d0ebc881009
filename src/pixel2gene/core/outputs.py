"""The output layer, fitted anew: what each gene makes of what the hidden layers have learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from pixel2gene.core.device import quick_products
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.regression import (
    Measurement,
    Recipe,
    gene_weights,
    held_out_deviance,
    pieces,
    some_units,
    sparse_overlap,
    thin_rows,
)

# Superpixels that tell how much of a gene is expected, whatever its weights; genes at once; rows of an embedding.
SAMPLE, GENES, ROWS = 20_000, 512, 16_384
# Newton's steps, at most; the longest of one weight; and where they end.
STEPS, LONGEST, SHORTEST = 12, 1.5, 1e-3
# Turns in which weights agree with their distribution, and with where counts came from; a change of no matter.
TURNS, CLOSE = 4, 0.02
# How wide the distribution is at first, as a multiple of the variance of weights that were trained, and shrunken.
WIDER = 4.0
# Superpixels of a unit that a count may have come from, chosen at random, as in training.
SUPERPIXELS = 12
# Counts that a gene has beforehand, in the middle of what is known of its level, and how well that is known.
EMPTY_GENE_COUNTS, LEVEL_PRECISION = 0.5, 0.1


@dataclass(frozen=True)
class _Prior:
    """Normal distribution of the (width,) output weights of a gene."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class _Evidence:
    """What a member has to learn its output weights from.

    Attributes
    ----------
    latents
        (superpixels, width).
    overlap
        (units, superpixels) of the units that it saw.
    counts
        (units, genes) of these.
    sample
        (some superpixels, width) latents of superpixels that stand for all of these units.
    exposure
        (some superpixels, slides) depth times area that each stands for.
    panels
        (slides, genes) 1 where a gene was measured.
    """

    latents: NDArray[np.float32]
    overlap: csr_array
    counts: csr_array
    sample: Tensor
    exposure: Tensor
    panels: Tensor

    def of_genes(self, genes: NDArray[np.intp]) -> _Evidence:
        return replace(self, counts=csr_array(self.counts[:, genes]), panels=self.panels[:, torch.from_numpy(genes)])


def choose_outputs(
    network: Ensemble, lead: NDArray[np.intp], data: Measurement, recipe: Recipe, device: torch.device, seed: int
) -> Ensemble:
    """Keep the outputs that were trained, or those of `fit_outputs`: whichever foretell held-out units better.

    Genes that did not train the network have but the latter. One gene alone does not tell how weights are distributed,
    and keeps what was trained.
    """
    if len(lead) == 1:
        return network
    fitted = fit_outputs(network, lead, data, device, seed)
    if len(lead) < data.counts.shape[1]:
        return fitted
    some = some_units(data, recipe, np.random.default_rng(seed))
    weight = gene_weights(data, recipe.gene_power).to(device)
    trained, anew = (held_out_deviance(one, some, weight, device) for one in (network, fitted))
    return fitted if anew < trained else network


def fit_outputs(
    network: Ensemble, lead: NDArray[np.intp], data: Measurement, device: torch.device, seed: int
) -> Ensemble:
    """Fit the output layer to all genes of the data, the hidden layers as they are.

    Weights are at their posterior mode: Poisson likelihood of the units that a member saw, and a normal distribution of
    the weights of a gene, which is that of the leading genes (empirical Bayes). So genes of few counts lean on what the
    others have in common. Which superpixel of a unit a count came from, and the distribution of the weights, are found
    by expectation maximisation (Dempster et al., 1977); in between, the weights of each gene by Newton's method.

    Parameters
    ----------
    network
        Trained on the leading genes.
    lead
        (leading genes,) their positions among the genes of the data.
    data
        Measured units.
    device
        Where to compute.
    seed
        Of the superpixels looked at.
    """
    genes = data.counts.shape[1]
    whole = Ensemble(replace(network.architecture, genes=genes)).to(device)
    last = len(whole.weights) - 1
    fitted = (f"weights.{last}", f"biases.{last}")
    state = {name: value for name, value in network.state_dict().items() if name not in fitted}
    whole.load_state_dict(whole.state_dict() | state)
    for member in range(network.architecture.members):
        evidence = _evidence(network, member, data, device, np.random.default_rng(seed))
        weights = _posterior_mode(evidence, lead, network.weights[-1][member].detach().T)
        with torch.no_grad():
            whole.biases[last][member, 0], whole.weights[last][member] = weights[:, 0], weights[:, 1:].T
    return whole.eval()


def leading_genes(counts: csr_array, most: int) -> NDArray[np.intp]:
    """Positions of at most so many genes, those with the most counts."""
    totals = np.asarray(counts.sum(axis=0)).ravel()
    return np.sort(np.argsort(-totals, kind="stable")[:most])


def _evidence(
    network: Ensemble, member: int, data: Measurement, device: torch.device, rng: np.random.Generator
) -> _Evidence:
    latents = _latents(network, member, data.features, device)
    units = np.flatnonzero(data.seen(np.arange(len(data.fold)), network.architecture.members)[member])
    overlap, depth = data.overlap[units], data.depth[units]
    slide = np.zeros(len(units), np.intp) if data.slide is None else data.slide[units]
    panels = np.ones((1, data.counts.shape[1])) if data.panels is None else data.panels
    of_slide = csr_array((depth, (slide, np.arange(len(units)))), shape=(len(panels), len(units)))
    exposure = np.asarray((of_slide @ overlap).todense()).T
    chosen = np.sort(rng.permutation(np.flatnonzero(exposure.sum(axis=1) > 0))[:SAMPLE])
    sampled = [_standing_for(all_of_it, latents, chosen) for all_of_it in exposure.T]
    return _Evidence(
        latents,
        thin_rows(overlap, round(SUPERPIXELS * data.units_per_superpixel), rng),
        data.counts[units],
        torch.from_numpy(latents[chosen]).to(device),
        torch.from_numpy(np.stack(sampled, axis=1).astype(np.float32)).to(device),
        torch.from_numpy(panels.astype(np.float32)).to(device),
    )


def _standing_for(
    exposure: NDArray[np.floating], latents: NDArray[np.float32], chosen: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Exposure of some superpixels that makes up for the others: its sum and its mean latents are those of all.

    By calibration weights (Deville & Särndal, 1992): a chance difference of the means would move all genes alike.
    """
    total, part = float(exposure.sum()), float(exposure[chosen].sum())
    if part == 0:
        return np.zeros(len(chosen))
    some = np.asarray(exposure[chosen] * (total / part), np.float64)
    mean = some @ latents[chosen] / total
    off = latents[chosen] - mean
    covariance = (off * some[:, None]).T @ off / total
    towards = np.linalg.pinv(covariance, rcond=1e-6) @ (exposure @ latents / total - mean)
    standing: NDArray[np.float64] = some * np.maximum(1 + off @ towards, 0)
    return standing


def _latents(
    network: Ensemble, member: int, features: NDArray[np.floating], device: torch.device
) -> NDArray[np.float32]:
    """(superpixels, width) last hidden units of one member."""
    latents = np.empty((len(features), network.architecture.hidden[-1]), np.float32)
    with torch.inference_mode(), quick_products():
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            some = torch.from_numpy(features[rows]).to(device)
            latents[rows] = network.latent(some, slice(member, member + 1))[0].cpu().numpy()
    return latents


def _posterior_mode(evidence: _Evidence, lead: NDArray[np.intp], trained: Tensor) -> Tensor:
    """(genes, 1 + width) level and weights of each gene.

    `trained` are the (leading genes, width) weights that the hidden layers were trained with.
    """
    trained = trained.double()
    off = trained - trained.mean(dim=0)
    prior = _Prior(trained.mean(dim=0), WIDER * _covariance(off, torch.zeros_like(off.T @ off)))
    leading = evidence.of_genes(lead)
    weights = None
    for _ in range(TURNS):
        weights, uncertainty = _modes(leading, prior, weights)
        mean = weights[:, 1:].mean(dim=0)
        prior = _Prior(mean, _covariance(weights[:, 1:] - mean, uncertainty))
    weights, _ = _modes(evidence, prior, None)
    # Where a unit is one superpixel, it is known where its counts came from.
    for _ in range(TURNS if (np.diff(evidence.overlap.indptr) > 1).any() else 0):
        before = weights
        weights, _ = _modes(evidence, prior, before)
        if (weights - before).abs().max() < CLOSE:
            break
    return weights.float()


def _covariance(deviations: Tensor, uncertainty: Tensor) -> Tensor:
    """(width, width) of normal weights that are known but so well; of few genes, nearer to one along all axes."""
    genes, width = deviations.shape
    found = deviations.T @ deviations / genes + uncertainty
    even = torch.eye(width, dtype=found.dtype, device=found.device) * found.diagonal().mean()
    covariance: Tensor = (genes * found + width * even) / (genes + width)
    return covariance


def _modes(evidence: _Evidence, prior: _Prior, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """(genes, 1 + width) weights, and the mean over the genes of their (width, width) posterior covariance.

    Counts are taken to come from where the weights to `start` from expect them; else evenly from all of a unit.
    """
    design = _with_level(evidence.sample)
    size = design.shape[1]
    first, second = torch.triu_indices(size, size, device=design.device)
    products = design[:, first] * design[:, second]
    precision = torch.zeros(size, size, dtype=torch.float64, device=design.device)
    precision[0, 0] = LEVEL_PRECISION
    precision[1:, 1:] = torch.linalg.inv(prior.covariance)
    told = _told(evidence, start)
    found, uncertainty = [], torch.zeros_like(prior.covariance)
    for part in torch.arange(len(told), device=design.device).split(GENES):
        exposure = evidence.exposure @ evidence.panels[:, part]
        level = ((told[part, 0] + EMPTY_GENE_COUNTS) / exposure.sum(dim=0)).log()
        centre = torch.cat([level[:, None], prior.mean.expand(len(part), -1)], dim=1)
        weights = centre.clone() if start is None else start[part]
        for _ in range(STEPS):
            expected = (design @ weights.float().T).exp() * exposure
            gradient = told[part] - (expected.T @ design).double() - (weights - centre) @ precision
            curvature = torch.empty(len(part), size, size, dtype=torch.float64, device=design.device)
            curvature[:, first, second] = curvature[:, second, first] = (expected.T @ products).double()
            curvature += precision
            step = torch.linalg.solve(curvature, gradient[..., None])[..., 0]
            longest = step.abs().amax(dim=1, keepdim=True)
            weights = weights + step * (LONGEST / longest.clamp_min(LONGEST))
            if longest.max() < SHORTEST:
                break
        found.append(weights)
        uncertainty += torch.linalg.inv(curvature)[:, 1:, 1:].sum(dim=0)
    return torch.cat(found), uncertainty / len(told)


def _told(evidence: _Evidence, weights: Tensor | None) -> Tensor:
    """(genes, 1 + width) number of the counts of each gene, and sum of the latents of where they came from."""
    device = evidence.sample.device
    if weights is None:
        share = diags_array(1 / evidence.overlap.sum(axis=1)) @ evidence.overlap
        mean = np.pad(share @ evidence.latents, ((0, 0), (1, 0)), constant_values=1)
        return torch.from_numpy(np.asarray(evidence.counts.T @ mean, np.float64)).to(device)
    total = torch.zeros_like(weights)
    everything = np.arange(len(evidence.overlap.indptr) - 1)
    for units in pieces(evidence.overlap, everything, len(weights)):
        overlap, superpixels = sparse_overlap(evidence.overlap[units], device)
        design = _with_level(torch.from_numpy(evidence.latents[superpixels]).to(device))
        rate = (design @ weights.float().T).exp()
        counts = torch.from_numpy(evidence.counts[units].toarray().astype(np.float32)).to(device)
        per_rate = counts / torch.sparse.mm(overlap, rate).clamp_min(torch.finfo(torch.float32).tiny)
        total += ((rate * torch.sparse.mm(overlap.T, per_rate)).T @ design).double()
    return total


def _with_level(latents: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
