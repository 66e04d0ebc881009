from __future__ import annotations

import pandas as pd
from spatialdata import SpatialData

from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model
from pixel2gene.core.scoring import held_out_scores
from pixel2gene.spatial.embedded import measure_for_model, open_for_model, slide_measurement


def evaluate(
    sdata: SpatialData,
    model: Model,
    *,
    table_key: str | None = None,
    image_key: str | None = None,
    layer: str | None = None,
    embedding_key: str | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Score each gene on counts that the model did not see.

    On a slide of its training each unit is predicted by the member that was trained without the unit's block
    (out-of-fold); on any other slide by all members.

    Parameters
    ----------
    sdata
        Slide with counts and an embedding like that of the training.
    model
        From `pixel2gene.tl.fit`.
    table_key, image_key, layer, embedding_key
        Those of the training by default.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.

    Returns
    -------
    One row per gene: ``mean_count`` per unit; ``pearson`` between counts and prediction, both scaled to the mean
    total per unit and log(1 + x) transformed; ``pearson_counts`` between them as they are; ``deviance_explained``,
    1 minus the Poisson deviance of the prediction over that of the gene's mean rate. NaN where a gene does not vary.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or genes of the model were not measured.
    ValueError
        If the embedding is of another encoder or scale than the model's, or the values are no counts.
    """
    chosen_device = choose_device(device)
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    _, measured = measure_for_model(sdata, model, embedded, table_key, layer)
    data = slide_measurement(model, embedded, measured, chosen_device)
    return held_out_scores(model.network.to(chosen_device), data, model.genes, chosen_device)
