from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import block_diag, csr_array, vstack
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import RECIPES, PaperRecipe, fit_paper
from pixel2gene.core.regression import Measurement, Recipe, fit_ensemble
from pixel2gene.core.scoring import held_out_scores
from pixel2gene.spatial.embedded import Embedded, measure, open_embedding
from pixel2gene.spatial.folds import BLOCK_SIDES, block_folds, fold_of
from pixel2gene.spatial.slides import by_name
from pixel2gene.spatial.units import Units, measured_units, select_genes

MIN_COUNTS = 20


def fit(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    table_key: str,
    *,
    image_key: str,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    embedding_key: str | None = None,
    recipe: str | Recipe | PaperRecipe = "default",
    folds: int | None = None,
    library_size: bool | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Learn to read expression off the H&E, from the places where both were measured.

    Counts of every unit (bin, spot, cell, superpixel with transcripts) are Poisson with mean
    ``depth * sum_s A[unit, s] * rate(embedding of s)``, where A is the overlapping area of unit and superpixel s.
    One network per spatial fold is trained on the units outside that fold; training stops when the held-out units
    are predicted best.

    ``recipe="paper"`` is the published Pixel2Gene instead, whole: the squared error of scaled counts, ten folds over
    small blocks, a selection of units, 600 epochs (Li et al., 2026, bioRxiv 10.64898/2026.02.21.707168). It takes far
    longer, and is there to compare with.

    Parameters
    ----------
    sdata
        One slide, or several as a list or by name: then genes that all have are modelled, and each slide has its own
        sequencing depth.
    table_key
        Table of raw counts, or points element of transcripts.
    image_key
        H&E that `pixel2gene.tl.embed` has described.
    layer
        Layer with the counts, X by default.
    genes
        To model; by default all with at least 20 counts that are no control probes.
    embedding_key
        ``f"{image_key}_embedding"`` by default.
    recipe
        ``"default"`` or ``"paper"``; or a `Recipe` or `PaperRecipe` of your own.
    folds
        Number of folds, that of the recipe by default: 5, or 10 with ``"paper"``.
    library_size
        Take each unit's total as given, and learn the composition: for spots whose totals differ for technical
        reasons. By default the total is learnt, too: it follows the number of cells. Not with ``"paper"``.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.
    seed
        Of folds and training.
    progress
        Show a progress bar.

    Returns
    -------
    Model, with the held-out scores of each gene in ``model.scores``.

    Raises
    ------
    KeyError
        If there is no such table, layer, gene or embedding.
    ValueError
        If there is no such recipe, the values are no counts, nothing of the table lies on tissue, the genes have no
        counts, the slides share no gene, were embedded differently or have the same H&E, or there are fewer spatial
        blocks than folds.
    """
    slides, chosen = by_name(sdata), _chosen_recipe(recipe, folds, library_size)
    chosen_device = choose_device(device)
    embedded = {name: open_embedding(one, image_key, embedding_key) for name, one in slides.items()}
    encoder = _common_encoder(embedded)
    _require_different_images(embedded)
    units = {
        name: measured_units(one, table_key, image_key, embedded[name].grid, layer) for name, one in slides.items()
    }
    names = _common_genes(units, list(genes) if genes is not None else None)
    measured = {
        name: measure(
            embedded[name],
            u,
            u.genes.get_indexer(pd.Index(names)),
            table_key if len(slides) == 1 else f"{table_key} of {name}",
        )
        for name, u in units.items()
    }
    typical = float(np.mean([m.density for m in measured.values()]))

    sides = (chosen.block,) if isinstance(chosen, PaperRecipe) else BLOCK_SIDES
    parts, training = [], []
    for i, (name, m) in enumerate(measured.items()):
        fold, side = block_folds(m.centres, embedded[name].grid.shape, chosen.folds, seed + i, sides)
        depth = m.density / typical
        parts.append(m.measurement(fold_of(m.centres, fold, side), depth, chosen.library_size))
        training.append(TrainingSlide(embedded[name].record["fingerprint"], name, depth, fold, side))
    data = _join(parts)
    if isinstance(chosen, PaperRecipe):
        network, history = fit_paper(data, chosen, chosen_device, seed, progress)
    else:
        network, history = fit_ensemble(data, chosen, chosen_device, seed, progress)
    scores = held_out_scores(network, data, names, chosen_device)
    return Model(
        genes=names,
        encoder=encoder,
        inputs={"table_key": table_key, "image_key": image_key, "layer": layer, "embedding_key": embedding_key},
        recipe=chosen,
        network=network.cpu(),
        slides=training,
        scores=scores,
        history=history,
        version=__version__,
    )


def _chosen_recipe(
    recipe: str | Recipe | PaperRecipe, folds: int | None, library_size: bool | None
) -> Recipe | PaperRecipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe!r}: choose from {list(RECIPES)}.")
        recipe = RECIPES[recipe]()
    return replace(
        recipe,
        folds=recipe.folds if folds is None else folds,
        library_size=recipe.library_size if library_size is None else library_size,
    )


def _common_encoder(embedded: dict[str, Embedded]) -> dict[str, object]:
    encoders = {name: e.record["encoder"] for name, e in embedded.items()}
    first = next(iter(encoders.values()))
    other = [name for name, encoder in encoders.items() if encoder != first]
    if other:
        raise ValueError(f"The slides {other} were embedded otherwise than the first: embed all with one encoder.")
    return dict(first)


def _require_different_images(embedded: dict[str, Embedded]) -> None:
    """Folds and depth are kept by H&E: of two slides with the same one, each would give away the other's blocks."""
    named: dict[str, str] = {}
    for name, one in embedded.items():
        other = named.setdefault(one.record["fingerprint"], name)
        if other != name:
            raise ValueError(f"The slides {other!r} and {name!r} have the same H&E: join their counts in one table.")


def _common_genes(units: dict[str, Units], genes: list[str] | None) -> list[str]:
    kept = [set(u.genes[select_genes(u, genes, MIN_COUNTS)]) for u in units.values()]
    if genes is not None:
        return genes
    common = set.intersection(*kept)
    if not common:
        raise ValueError(
            f"The {len(units)} slides share no gene with at least {MIN_COUNTS} counts: are the names of one kind "
            "(symbols or Ensembl ids)?"
        )
    first = next(iter(units.values())).genes
    return [gene for gene in first if gene in common]


def _join(parts: list[Measurement]) -> Measurement:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [part.patch.max() + 1 for part in parts[:-1]])
    return Measurement(
        np.concatenate([part.features for part in parts]),
        csr_array(block_diag([part.overlap for part in parts], format="csr")),
        csr_array(vstack([part.counts for part in parts], format="csr")),
        np.concatenate([part.depth for part in parts]),
        np.concatenate([part.fold for part in parts]),
        np.concatenate([part.patch + start for part, start in zip(parts, starts, strict=True)]),
    )
