"""A slide in the terms of a fitted model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Measurement, predict_units
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.folds import blocks, fold_of
from pixel2gene.spatial.measured import Measured, measure
from pixel2gene.spatial.platform import find_capture, seeks_capture, with_capture, with_effects
from pixel2gene.spatial.units import Units, measured_units


def open_for_model(sdata: SpatialData, model: Model, image_key: str | None, embedding_key: str | None) -> Embedded:
    """Find the embedding that a model is to read, under the keys of its training unless others are given."""
    key = model.inputs["embedding_key"] if embedding_key is None and image_key is None else embedding_key
    embedded = open_embedding(sdata, image_key or str(model.inputs["image_key"]), key)
    require_same_embedding(model, embedded)
    return embedded


def measure_for_model(
    sdata: SpatialData, model: Model, embedded: Embedded, table_key: str | None, layer: str | None
) -> tuple[Model, Units, Measured]:
    """Read the counts of the model's genes, under the keys of its training unless others are given.

    Returns
    -------
    The model of those genes that were measured, the units, and those of them on tissue.

    Raises
    ------
    KeyError
        If none of the model's genes was measured.
    """
    key = table_key or str(model.inputs["table_key"])
    if table_key is None and layer is None:
        layer = model.inputs["layer"]
    units = measured_units(sdata, key, embedded.image_key, embedded.grid, layer)
    names = [gene for gene in model.genes if gene in units.genes]
    if not names:
        raise KeyError(
            f"None of the model's {len(model.genes)} genes is in {key!r}: the model has {model.genes[:5]}, the table "
            f"{units.genes[:5].tolist()}; bring the names to one kind (symbols or Ensembl ids)."
        )
    measured = measure(embedded, units, units.genes.get_indexer(pd.Index(names)), key)
    if not isinstance(model.recipe, PaperRecipe):
        slide = training_slide(model, embedded)
        measured = with_effects(units, measured, embedded.grid, None if slide is None else slide.platform)
    return model.of_genes(names), units, measured


def chosen_genes(model: Model, genes: Sequence[str] | None, min_score: float | None) -> list[str]:
    """Genes asked for, all of the model's by default, but for those with a lower held-out Pearson, or none.

    Raises
    ------
    KeyError
        If the model lacks a gene.
    ValueError
        If no gene has the score.
    """
    names = list(model.genes if genes is None else genes)
    unknown = [name for name in names if name not in model.scores.index]
    if unknown:
        raise KeyError(f"The model lacks {unknown[:5]}; it has {len(model.genes)} genes, such as {model.genes[:5]}.")
    if min_score is None:
        return names
    scores = model.scores.loc[names, "pearson"]
    if not (scores >= min_score).any():
        raise ValueError(
            f"None of the {len(names)} genes has a held-out Pearson of min_score={min_score}; the best has "
            f"{scores.max():.3f}."
        )
    return [name for name in names if scores[name] >= min_score]


def slide_measurement(
    model: Model, embedded: Embedded, measured: Measured, device: torch.device
) -> tuple[Measurement, Measured]:
    """Bring measured units into the terms of a fitted model: what was held out of whom, and how deep they are.

    A slide that the model was not trained on has the depth at which its total counts are as predicted.

    Returns
    -------
    The measurement, and the units with the capture that it takes them to have.

    Raises
    ------
    ValueError
        If the slide is part of one that the model was trained on.
    """
    slide = training_slide(model, embedded)
    if slide is not None:
        _require_whole(slide, embedded)
    fold = held_out_fold(slide, measured.centres)
    data = measured.measurement(fold, 1.0 if slide is None else slide.depth, model.recipe)
    if slide is None:
        expected = sum(float(mean.sum()) for _, mean in predict_units(model.network, data, device, held_out=True))
        data = replace(data, depth=(data.depth * (data.counts.sum() / expected)).astype(np.float32))
    if not seeks_capture(model.recipe, measured) or (slide is not None and slide.platform.capture == 0):
        return data, measured
    found = find_capture(model.network, data, measured.centres, device)
    return with_capture(data, measured, found, known=slide is not None)


def require_same_embedding(model: Model, embedded: Embedded) -> None:
    """Refuse an embedding that the model was not made for, by name."""
    found = embedded.record["encoder"]
    differing = [name for name, value in model.encoder.items() if found.get(name) != value]
    if differing:
        described = "; ".join(f"{name}: model {model.encoder[name]}, embedding {found.get(name)}" for name in differing)
        raise ValueError(
            f"The model does not fit the embedding of image {embedded.image_key!r} ({described}): embed the image with "
            f"encoder={model.encoder['name']!r}, or fit a model on this embedding."
        )


def training_slide(model: Model, embedded: Embedded) -> TrainingSlide | None:
    """Find the slide among those that the model was trained on."""
    return next((s for s in model.slides if s.fingerprint == embedded.record["fingerprint"]), None)


def _require_whole(slide: TrainingSlide, embedded: Embedded) -> None:
    """What was held out of whom is known by its place on the whole slide."""
    if slide.fold.shape != blocks(embedded.grid.shape, slide.side):
        raise ValueError(
            f"Image {embedded.image_key!r} was cut out of {slide.name!r}, on which the model was trained: work on the "
            "whole slide and crop the result."
        )


def held_out_fold(slide: TrainingSlide | None, centres: NDArray[np.floating]) -> NDArray[np.int8]:
    """(n,) member that did not see each place; -1 where none did, as on a new slide."""
    if slide is None:
        return np.full(len(centres), -1, np.int8)
    return fold_of(centres, slide.fold, slide.side)
