"""Scores of a slide: what `pixel2gene.tl.evaluate` and `pixel2gene.tl.cross_validate` share."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from spatialdata import SpatialData

from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.core.scoring import Layout, full_scores
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement, training_slide

SCALE = {
    "mean_count": "counts per unit",
    "pearson, rmse, ssim, morans_i": "log(1 + x) of values scaled to the mean total per unit",
    "pearson_counts, deviance_explained": "counts as they are",
    "spearman": "ranks",
    "ceiling, share": "that of the score they are named after",
}
GENES = "chosen on the training data at fit"


def score_slide(
    sdata: SpatialData,
    model: Model,
    table_key: str | None,
    image_key: str | None,
    layer: str | None,
    embedding_key: str | None,
    device: str | None,
) -> pd.DataFrame:
    """Score each gene of the model on one slide, NaN where it was not measured; see `pixel2gene.tl.evaluate`."""
    chosen_device = choose_device(device)
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    part, _, measured = measure_for_model(sdata, model, embedded, table_key, layer, by_place=True)
    network = part.network.to(chosen_device)
    data, _ = slide_measurement(part, embedded, measured, table_key, chosen_device)
    layout = Layout(embedded.grid.shape, measured.superpixels, measured.centres)
    table = full_scores(network, data, part.genes, layout, chosen_device)
    table = table.reindex(pd.Index(model.genes, name=table.index.name))
    table.attrs["pixel2gene"] = {
        "held_out": held_out_part(training_slide(model, embedded), model.recipe),
        "units": len(measured.rows),
        "scale": dict(SCALE),
        "genes": GENES,
    }
    return table


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Scores of several slides as one table, by slide and gene."""
    table = pd.concat(tables, names=["slide", "gene"])
    table.attrs["pixel2gene"] = {name: one.attrs["pixel2gene"] for name, one in tables.items()}
    return table


def held_out_part(slide: TrainingSlide | None, recipe: Recipe | PaperRecipe) -> str:
    """Say which units no member that predicts them has seen."""
    if slide is None:
        return "slide"
    if isinstance(recipe, PaperRecipe):
        return f"blocks of {slide.side} x {slide.side} superpixels in {recipe.folds} folds"
    return f"regions, {recipe.folds} in all"
