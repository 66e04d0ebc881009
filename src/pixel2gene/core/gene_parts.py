"""Many genes a part at a time: each part is an ensemble of its own, on hidden layers that all of them share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixel2gene.core.ensemble import Ensemble


@dataclass(frozen=True)
class GenePart:
    """Some of the genes.

    Attributes
    ----------
    genes
        Their positions among all.
    network, average
        Ensembles of these genes; hidden layers are those of the other parts, not copies.
    """

    genes: NDArray[np.intp]
    network: Ensemble
    average: Ensemble


def deal_genes(totals: NDArray[np.floating], most: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Deal genes out to as few parts of at most `most` as there can be, each with abundant and rare ones alike.

    Genes are ranked by their (genes,) totals; of as many neighbours as there are parts, each part has one.
    """
    parts = -(-len(totals) // most)
    if parts == 1:
        return [np.arange(len(totals))]
    ranked = np.argsort(totals, kind="stable")
    dealt = [rng.permutation(parts)[: len(group)] for group in np.split(ranked, range(parts, len(ranked), parts))]
    owner = np.concatenate(dealt)
    return [np.sort(ranked[owner == part]) for part in range(parts)]


def split(network: Ensemble, average: Ensemble, dealt: list[NDArray[np.intp]]) -> list[GenePart]:
    """Give each part of the genes its outputs; the only part has the ensembles themselves."""
    if len(dealt) == 1:
        return [GenePart(dealt[0], network, average)]
    return [GenePart(genes, _sharing(network, genes), _sharing(average, genes)) for genes in dealt]


def gather(average: Ensemble, parts: list[GenePart]) -> Ensemble:
    """Bring the averaged outputs of the parts back to where `split` found them."""
    if len(parts) > 1:
        with torch.no_grad():
            for part in parts:
                for whole, some in zip(output_layer(average), output_layer(part.average), strict=True):
                    whole[..., part.genes] = some
    return average


def hidden_layers(network: Ensemble) -> list[Tensor]:
    """Weights and biases that all genes share."""
    return [*network.weights[:-1], *network.biases[:-1]]


def output_layer(network: Ensemble) -> list[Tensor]:
    """Weights and biases that each gene has for itself."""
    return [network.weights[-1], network.biases[-1]]


def _sharing(network: Ensemble, genes: NDArray[np.intp]) -> Ensemble:
    part = network.of_genes(genes)
    for layers, shared in ((part.weights, network.weights), (part.biases, network.biases)):
        for i in range(len(layers) - 1):
            layers[i] = shared[i]
    return part
