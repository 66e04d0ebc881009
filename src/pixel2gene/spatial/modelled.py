"""A slide in the terms of a fitted model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.core.arguments import require_genes, require_number
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Measurement, predict_units
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.folds import blocks, fold_of
from pixel2gene.spatial.measured import Measured, measure
from pixel2gene.spatial.platform import find_capture, seeks_capture, with_capture, with_effects
from pixel2gene.spatial.units import Units, column_with, measured_units


def open_for_model(sdata: SpatialData, model: Model, image_key: str | None, embedding_key: str | None) -> Embedded:
    """Find the embedding that a model is to read, under the keys of its training unless others are given."""
    require_model(model)
    key = model.inputs["embedding_key"] if embedding_key is None and image_key is None else embedding_key
    embedded = open_embedding(sdata, image_key or str(model.inputs["image_key"]), key)
    require_same_embedding(model, embedded)
    return embedded


def require_model(model: object, name: str = "model") -> None:
    """Refuse what is no model, by name."""
    if not isinstance(model, Model):
        raise TypeError(
            f"{name} is a {type(model).__name__}; a Model is expected, as pixel2gene.tl.fit and pixel2gene.Model.load "
            "return."
        )


def measure_for_model(
    sdata: SpatialData,
    model: Model,
    embedded: Embedded,
    table_key: str | None,
    layer: str | None,
    *,
    by_place: bool = False,
) -> tuple[Model, Units, Measured]:
    """Read the counts of the model's genes, under the keys of its training unless others are given.

    Genes are in the order of the model and units in that of the table; with `by_place`, both are as `pixel2gene.tl.fit`
    learns from them, so that what is drawn at random is the same.

    Returns
    -------
    The model of those genes that were measured, the units, and those of them on tissue.

    Raises
    ------
    KeyError
        If none of the model's genes was measured.
    ValueError
        If the model was trained on several captures, and none is named.
    """
    key = counts_key(model, table_key)
    units = measured_units(sdata, key, embedded.image_key, embedded.grid, layer_of(model, table_key, layer))
    names = [gene for gene in (sorted(model.genes) if by_place else model.genes) if gene in units.genes]
    if not names:
        raise KeyError(
            f"None of the model's {len(model.genes)} genes is in {key!r}: the model has {model.genes[:5]}, the table "
            f"{units.genes[:5].tolist()}{column_with(units, model.genes)}; bring the names to one kind (symbols or "
            "Ensembl ids)."
        )
    measured = measure(embedded, units, units.genes.get_indexer(pd.Index(names)), key, by_place=by_place)
    if not isinstance(model.recipe, PaperRecipe):
        known = training_capture(model, embedded, key)
        measured = with_effects(units, measured, embedded.grid, None if known is None else known.platform)
    return model.of_genes(names), units, measured


def chosen_genes(model: Model, genes: Sequence[str] | None, min_score: float | None) -> list[str]:
    """Genes asked for, all of the model's by default, but for those with a lower held-out Pearson, or none.

    Raises
    ------
    KeyError
        If the model lacks a gene.
    ValueError
        If no gene has the score, or the genes are no list of different names.
    """
    require_genes(genes)
    require_number("min_score", min_score)
    names = list(model.genes if genes is None else genes)
    if min_score is None:
        return names
    scores = model.of_genes(names).scores["pearson"]
    if not (scores >= min_score).any():
        raise ValueError(
            f"None of the {len(names)} genes has a held-out Pearson of min_score={min_score}; the best has "
            f"{scores.max():.3f}: lower it, or leave it out."
        )
    return [name for name in names if scores[name] >= min_score]


def slide_measurement(
    model: Model, embedded: Embedded, measured: Measured, table_key: str | None, device: torch.device
) -> tuple[Measurement, Measured]:
    """Bring measured units into the terms of a fitted model: what was held out of whom, and how deep they are.

    Counts that the model was not trained on have the depth at which their total is as predicted.

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
    known = training_capture(model, embedded, counts_key(model, table_key))
    fold = held_out_fold(slide, measured.centres)
    data = measured.measurement(fold, 1.0 if known is None else known.depth, model.recipe)
    if known is None:
        expected = sum(float(mean.sum()) for _, mean in predict_units(model.network, data, device, held_out=True))
        data = replace(data, depth=(data.depth * (data.counts.sum() / expected)).astype(np.float32))
    if not seeks_capture(model.recipe, measured) or (known is not None and known.platform.capture == 0):
        return data, measured
    found = find_capture(model.network, data, measured.centres, device)
    return with_capture(data, measured, found, known=known is not None)


def require_same_embedding(model: Model, embedded: Embedded) -> None:
    """Refuse an embedding that the model was not made for, by name."""
    found = embedded.record["encoder"]
    own = model.encoder
    # What versions before did not record stands for None.
    differing = [name for name in own | found if own.get(name) != found.get(name)]
    if differing:
        described = "; ".join(f"{name}: model {own.get(name)}, embedding {found.get(name)}" for name in differing)
        raise ValueError(
            f"The model does not fit the embedding of image {embedded.image_key!r} ({described}): embed the image with "
            f"encoder={model.encoder['name']!r}, or fit a model on this embedding."
        )


def counts_key(model: Model, table_key: str | None) -> str:
    """Key of the counts, that of the training unless another is given; a ValueError lists several."""
    key = table_key or model.inputs["table_key"]
    if key is None:
        raise ValueError(f"The model was trained on {sorted(model.tables)}: name one of them, table_key=.")
    return key


def layer_of(model: Model, table_key: str | None, layer: str | None) -> str | None:
    """Layer of the counts, that of the training unless another, or another table, is given."""
    return model.inputs["layer"] if table_key is None and layer is None else layer


def training_slide(model: Model, embedded: Embedded) -> TrainingSlide | None:
    """Find the slide among those that the model was trained on; of several captures under one H&E, the first."""
    return next(iter(_captures(model, embedded)), None)


def training_capture(model: Model, embedded: Embedded, key: str) -> TrainingSlide | None:
    """Find what was measured on the slide under a key; where there was one capture only, it has any name."""
    captures = _captures(model, embedded)
    return captures[0] if len(captures) == 1 else next((one for one in captures if one.table_key == key), None)


def slide_depth(model: Model, embedded: Embedded) -> float:
    """At which a slide is predicted: the mean over its captures, and that of the training for a new one."""
    depths = [one.depth for one in _captures(model, embedded)]
    return float(np.mean(depths)) if depths else 1.0


def _captures(model: Model, embedded: Embedded) -> list[TrainingSlide]:
    return [one for one in model.slides if one.fingerprint == embedded.record["fingerprint"]]


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
