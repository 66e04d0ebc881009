from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import block_diag, csr_array, vstack
from spatialdata import SpatialData

from pixel2gene import __version__
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.regression import Measurement, Recipe, fit_ensemble
from pixel2gene.core.scoring import held_out_scores
from pixel2gene.spatial.embedded import Embedded, measure, open_embedding
from pixel2gene.spatial.folds import block_folds, fold_of
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
    folds: int = 5,
    library_size: bool = False,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Learn to read expression off the H&E, from the places where both were measured.

    Counts of every unit (bin, spot, cell, superpixel with transcripts) are Poisson with mean
    ``depth * sum_s A[unit, s] * rate(embedding of s)``, where A is the overlapping area of unit and superpixel s.
    One network per spatial fold is trained on the units outside that fold; training stops when the held-out units
    are predicted best.

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
    folds
        Number of folds.
    library_size
        Take each unit's total as given, and learn the composition: for spots whose totals differ for technical
        reasons. By default the total is learnt, too: it follows the number of cells.
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
        If the values are no counts, nothing of the table lies on tissue, the genes have no counts, the slides share
        no gene, were embedded differently or have the same H&E, or there are fewer spatial blocks than folds.
    """
    slides = _by_name(sdata)
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

    parts, training = [], []
    for i, (name, m) in enumerate(measured.items()):
        fold, side = block_folds(m.centres, embedded[name].grid.shape, folds, seed + i)
        depth = m.density / typical
        parts.append(m.measurement(fold_of(m.centres, fold, side), depth, library_size))
        training.append(TrainingSlide(embedded[name].record["fingerprint"], name, depth, fold, side))
    data = _join(parts)
    recipe = Recipe(folds=folds, library_size=library_size)
    network, history = fit_ensemble(data, recipe, chosen_device, seed, progress)
    scores = held_out_scores(network, data, names, chosen_device)
    return Model(
        genes=names,
        encoder=encoder,
        inputs={"table_key": table_key, "image_key": image_key, "layer": layer, "embedding_key": embedding_key},
        recipe=recipe,
        network=network.cpu(),
        slides=training,
        scores=scores,
        history=history,
        version=__version__,
    )


def _by_name(sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData]) -> dict[str, SpatialData]:
    if isinstance(sdata, SpatialData):
        return {"slide": sdata}
    named = dict(sdata) if isinstance(sdata, Mapping) else {f"slide_{i}": one for i, one in enumerate(sdata)}
    if not named:
        raise ValueError("No slide was given: pass a SpatialData, or a list or dict of them.")
    return named


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
