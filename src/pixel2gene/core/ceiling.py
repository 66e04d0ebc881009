"""The highest rates that are believed: what a model may not exceed, whatever it is shown."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.regression import SCORING_RATES, Measurement

# Standard deviations of counting, and counts besides, that a rate may lie above what was counted.
NOISE, FEW = 4.0, 8.0
# Units of less depth and area than this share of the median one tell little, and are not asked.
LEAST_EXPOSURE = 0.25
SMALLEST_EXPOSURE = 1e-6
# A place may have so many times the rate of the richest unit: tissue is finer than spots are.
MARGIN = 10.0
# The same over the mean count of a unit, where nothing more is known of what was measured.
MARGIN_OF_MEAN = 1e4
# Superpixels of each member that are asked, where not all can be.
FARTHEST = 64
REMEDY = "Do not use these places; if they are many, fit the model again."


def highest_rates(data: Measurement) -> NDArray[np.float64]:
    """(genes,) highest rate per superpixel that the counts of a unit allow, at a depth of 1.

    Each gene by the units that measured it. Those of little depth and area tell little, unless they have most of its
    counts.
    """
    exposure = np.maximum(data.area * data.depth, SMALLEST_EXPOSURE)
    slide = np.zeros(len(exposure), np.intp) if data.slide is None else data.slide
    panels = np.ones((1, data.counts.shape[1]), bool) if data.panels is None else data.panels
    highest = np.zeros(data.counts.shape[1])
    for panel in np.unique(panels.T, axis=0):
        genes, units = np.flatnonzero((panels.T == panel).all(axis=1)), np.flatnonzero(panel[slide])
        if len(units) == 0:
            continue
        counts, typical = data.counts[units][:, genes].tocoo(), float(np.median(exposure[units]))
        own = exposure[units][counts.row]
        told = own >= LEAST_EXPOSURE * typical
        of_told = np.bincount(counts.col[told], counts.data[told], len(genes))
        enough = of_told >= np.asarray(counts.sum(axis=0)).ravel() / 2
        used = told | ~enough[counts.col]
        allowed = (counts.data + NOISE * np.sqrt(counts.data) + FEW * ~enough[counts.col]) / own
        found = np.zeros(len(genes))
        np.maximum.at(found, counts.col[used], allowed[used])
        highest[genes] = found + FEW / typical
    return highest


def log_ceiling(highest: NDArray[np.floating]) -> Tensor:
    """(genes,) log of the highest rate that is believed, given the `highest_rates` of the training."""
    return torch.from_numpy(np.log(MARGIN * highest)).float()


def log_ceiling_of_mean(mean_count: NDArray[np.floating]) -> Tensor:
    """(genes,) the same of a model that was stored without, given the mean count of a unit."""
    return torch.from_numpy(np.log(MARGIN_OF_MEAN * np.maximum(mean_count, 1e-6))).float()


def count_bounded(
    network: Ensemble,
    features: NDArray[np.floating],
    mean: NDArray[np.float32],
    genes: NDArray[np.intp],
    device: torch.device,
) -> NDArray[np.int64]:
    """(genes,) number of superpixels at which the rate of a member was bounded.

    `mean` is the (superpixels, genes) mean over the members at a depth of 1. Where it is less than the share of one
    member at its ceiling, none is, and nothing needs to be looked at again.
    """
    bounded = np.zeros(len(genes), np.int64)
    if network.log_ceiling is None:
        return bounded
    chosen = torch.from_numpy(genes).to(device)
    most = network.log_ceiling[chosen].exp().cpu().numpy() / network.architecture.members
    suspect = np.flatnonzero(~(mean < most).all(axis=1))
    with torch.inference_mode():
        for rows in np.array_split(suspect, len(suspect) * len(genes) // SCORING_RATES + 1):
            output = network(torch.from_numpy(features[rows]).to(device), genes=chosen)
            bounded += network.beyond(output, chosen).sum(dim=0).cpu().numpy()
    return bounded


def count_bounded_of_farthest(head: Ensemble, latents: NDArray[np.float32]) -> NDArray[np.int64]:
    """(genes,) as `count_bounded`, of the superpixels with the largest outputs alone, `FARTHEST` of each member.

    For where a look at all genes of all superpixels would take as long as a map of them: there may be more.

    Parameters
    ----------
    head
        The last layer.
    latents
        (members, superpixels, width).
    """
    genes = head.architecture.genes
    bounded = np.zeros(genes, np.int64)
    if head.log_ceiling is None:
        return bounded
    far = torch.from_numpy(np.unique(farthest(head, torch.from_numpy(latents)).cpu().numpy()))
    with torch.inference_mode():
        for some in torch.arange(genes).split(max(SCORING_RATES // (len(latents) * max(len(far), 1)), 1)):
            outputs = torch.from_numpy(latents[:, far]) @ head.weights[-1][..., some] + head.biases[-1][..., some]
            bounded[some.numpy()] = head.beyond(outputs, some).sum(dim=0).numpy()
    return bounded


def farthest(network: Ensemble, latents: Tensor) -> Tensor:
    """Positions of those with the largest outputs, in mean square over the genes and but for their levels."""
    with torch.inference_mode():
        last = network.weights[-1]
        square = ((latents @ (last @ last.transpose(1, 2))) * latents).sum(dim=2)
        far: Tensor = square.topk(min(FARTHEST, square.shape[1]), dim=1).indices.flatten()
        return far


def bounded_message(bounded: NDArray[np.integer], genes: list[str]) -> str:
    """Say which rates were bounded, given the (genes,) number of superpixels at which one was."""
    most = [i for i in np.argsort(-bounded, kind="stable") if bounded[i] > 0]
    named = ", ".join(f"{genes[i]} at {bounded[i]}" for i in most[:3])
    return (
        f"{len(most)} of {len(genes)} genes have predicted rates far beyond all that was measured in training; these "
        f"were bounded ({named}{', ...' if len(most) > 3 else ''} superpixels). {REMEDY}"
    )


def bounded_places_message(places: int) -> str:
    """Say at how many superpixels rates were bounded, where it was not asked of which genes."""
    return (
        f"At {places} superpixels or more, predicted rates are far beyond all that was measured in training; these "
        f"were bounded. {REMEDY}"
    )
