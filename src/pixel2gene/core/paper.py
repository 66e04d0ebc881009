"""The published recipe, whole: Li et al., 2026, bioRxiv 10.64898/2026.02.21.707168."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm.auto import trange

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import History, Measurement, Recipe, gene_weights, held_out_deviance

# Units of up to this many superpixels on average are each read off one of them, larger ones off all that they cover.
SINGLE_AREA = 1.5


@dataclass(frozen=True)
class PaperRecipe:
    """How Pixel2Gene trains, as published (Li et al., 2026, bioRxiv 10.64898/2026.02.21.707168).

    Attributes
    ----------
    folds
        Spatial folds, and so members.
    library_size
        Not known to this recipe.
    hidden
        Units of the hidden layers.
    clusters
        Of the units' embeddings, within which units are selected for training.
    drop
        Share of the non-zero totals of a cluster, from the lowest, that are not trained on; nor are zero totals.
    block
        Side in superpixels of the blocks that folds are made of.
    epochs
        Passes of each member through its units.
    """

    folds: int = 10
    library_size: bool = False
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    clusters: int = 15
    drop: float = 0.3
    block: int = 8
    epochs: int = 600

    def __post_init__(self) -> None:
        if self.library_size:
            raise ValueError('The recipe "paper" knows no library size: leave out library_size, or the recipe.')


# By the name under which `pixel2gene.tl.fit` and the file of a model know them.
RECIPES: dict[str, type[Recipe | PaperRecipe]] = {"default": Recipe, "paper": PaperRecipe}


@dataclass(frozen=True)
class Examples:
    """What is trained on, as tensors.

    Attributes
    ----------
    features
        (superpixels, channels), standardised.
    superpixels, share
        (units, most superpixels of a unit) those that each unit is the mean of, and their weights in it.
    target
        (units, genes).
    """

    features: Tensor
    superpixels: Tensor
    share: Tensor
    target: Tensor


def fit_paper(
    data: Measurement, recipe: PaperRecipe, device: torch.device, seed: int, progress: bool
) -> tuple[Ensemble, History]:
    """Train one member per fold on the units outside that fold, all members at once.

    The loss is the squared error of the counts, each gene scaled to 0 to 1 over the training units of all folds. The
    networks learn the counts of a unit; they are told per superpixel by the mean area of the training units. Where
    slides differ in depth, of which the publication does not speak, counts are divided by it first.

    Parameters
    ----------
    data
        Measured units, `fold` within 0 to ``recipe.folds - 1``.
    recipe
        How to train.
    device
        Where to compute.
    seed
        Of the clusters, the weights and the batches.
    progress
        Show a progress bar.

    Raises
    ------
    ValueError
        If all training units lie in one fold.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = training_units(data, recipe, seed)
    seen = [torch.from_numpy(np.flatnonzero(data.fold[kept] != fold)) for fold in range(recipe.folds)]
    if min(len(units) for units in seen) == 0:
        raise ValueError(f"The {len(kept)} units with enough counts to train on all lie in one fold: measure more.")
    counts = data.counts[kept].toarray() / data.depth[kept, None]
    low, span = counts.min(axis=0), np.ptp(counts, axis=0)
    span[span == 0] = 1
    area = float(data.overlap[kept].sum(axis=1).mean())

    network = initial(recipe, data.features.shape[1], counts.shape[1], generator)
    network.standardise_by(data.features)
    network.to(device)
    superpixels, share = covered(data.overlap[kept])
    used, position = np.unique(superpixels, return_inverse=True)
    examples = Examples(
        network.standardise(torch.from_numpy(data.features[used]).to(device)),
        torch.from_numpy(position.reshape(superpixels.shape)).to(device),
        torch.from_numpy(share).to(device),
        torch.from_numpy((counts - low) / span).float().to(device),
    )
    steps = _train(network, examples, seen, recipe, generator, progress)
    network.scale.copy_(torch.from_numpy(span / area))
    network.offset.copy_(torch.from_numpy(low / area))
    deviance = held_out_deviance(network, data, gene_weights(data, 1).to(device), device)
    return network, History([steps], [deviance])


def training_units(data: Measurement, recipe: PaperRecipe, seed: int) -> NDArray[np.intp]:
    """Positions of the units with enough counts among those that look alike.

    In every cluster of the units' mean embeddings, those with no counts or among the lowest of the others are dropped.
    """
    look = (data.overlap @ data.features.astype(np.float32)) / data.overlap.sum(axis=1)[:, None]
    clusters = min(recipe.clusters, len(look))
    cluster = MiniBatchKMeans(clusters, random_state=seed, batch_size=4096, n_init=3).fit_predict(look)
    total = data.counts.sum(axis=1) / data.depth
    kept = total > 0
    for one in np.unique(cluster[kept]):
        units = np.flatnonzero(kept & (cluster == one))
        kept[units] = total[units] >= np.quantile(total[units], recipe.drop)
    return np.flatnonzero(kept)


def learning_rate(units: int) -> float:
    """Of Adam, by the number of training units."""
    return 1e-4 if units < 10_000 else 1e-5 if units <= 500_000 else 1e-6


def batch_size(units: int) -> int:
    """Units per step, by the number of training units."""
    return max(1, min(128, units // 16))


def covered(overlap: csr_array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Superpixels that each unit is the mean of, and their weights in it.

    Returns
    -------
    superpixels, share
        (units, most superpixels of a unit); places that a unit does not need have share 0. Of small units the one
        superpixel that covers most, else all with their share of the area.
    """
    size, area = np.diff(overlap.indptr), overlap.sum(axis=1)
    row = np.repeat(np.arange(len(size)), size)
    if area.mean() <= SINGLE_AREA:
        largest = np.lexsort((overlap.data, row))[overlap.indptr[1:] - 1]
        return overlap.indices[largest, None].astype(np.int64), np.ones((len(size), 1), np.float32)
    needed = np.arange(size.max()) < size[:, None]
    superpixels, share = np.zeros(needed.shape, np.int64), np.zeros(needed.shape, np.float32)
    superpixels[needed], share[needed] = overlap.indices, overlap.data / area[row]
    return superpixels, share


def initial(recipe: PaperRecipe, channels: int, genes: int, generator: torch.Generator) -> Ensemble:
    """Weights as torch starts its linear layers: the publication names no other start."""
    network = Ensemble(Architecture(recipe.folds, channels, genes, recipe.hidden, 0.0, 0.0, link="elu"), generator)
    with torch.no_grad():
        for weight, bias in zip(network.weights, network.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
    return network.eval()


def squared_error(network: Ensemble, examples: Examples, units: Tensor) -> Tensor:
    """(members,) mean squared error of the (members, batch) units that each member is shown."""
    members, batch = units.shape
    x = examples.features[examples.superpixels[units]].reshape(members, -1, examples.features.shape[1])
    scaled = network.link(network.outputs(x)).reshape(members, batch, -1, examples.target.shape[1])
    mean = (scaled * examples.share[units][..., None]).sum(dim=2)
    return (mean - examples.target[units]).square().mean(dim=(1, 2))


def _train(
    network: Ensemble,
    examples: Examples,
    seen: list[Tensor],
    recipe: PaperRecipe,
    generator: torch.Generator,
    progress: bool,
) -> int:
    """Train each member on the units that it may see; the number of steps."""
    units = len(examples.target)
    batch = batch_size(units)
    steps = math.ceil(max(len(own) for own in seen) / batch)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate(units), fused=True)
    for _ in trange(recipe.epochs, desc="fit", disable=not progress, leave=False):
        order = torch.stack([_shuffled(own, steps * batch, generator) for own in seen])
        for chosen in order.to(examples.target.device).split(batch, dim=1):
            optimiser.zero_grad()
            # Members share no weights, so that each has the gradient of its own error.
            squared_error(network, examples, chosen).sum().backward()
            optimiser.step()
    return recipe.epochs * steps


def _shuffled(units: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """All units in random order, from the start again until there are `length`."""
    return units[torch.randperm(len(units), generator=generator)].repeat(math.ceil(length / len(units)))[:length]
