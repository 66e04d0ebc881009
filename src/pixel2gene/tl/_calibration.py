from __future__ import annotations

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from pixel2gene.core.arguments import require_whole
from pixel2gene.core.calibration import Calibration, negative_binomial_transform
from pixel2gene.core.device import choose_device
from pixel2gene.core.model import Model
from pixel2gene.core.regression import predict_units
from pixel2gene.spatial.evaluation import GENES, held_out_part
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement, training_slide

# With them the standard error of one gene's coverage is below half a per cent.
UNITS = 20_000


def calibration(
    sdata: SpatialData,
    model: Model,
    *,
    table_key: str | None = None,
    image_key: str | None = None,
    layer: str | None = None,
    embedding_key: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell how often counts that the model did not see lie where it says that they do.

    A count is said to be negative binomial around its held-out prediction, with the gene's ``dispersion`` of
    `model.scores`: its variance is mean + dispersion * mean². On a slide of the model's training each unit is
    predicted by the member that was trained without the unit's region (out-of-fold); on any other slide by all
    members. The dispersion was itself found on the out-of-fold predictions of the training slides.

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
    seed
        Of the units that are looked at, where there are over 20,000, and of the place of each count within its step
        of the distribution function (Dunn & Smyth, 1996).

    Returns
    -------
    One row per decile of expression and nominal level, 10 % to 95 %. The
    columns:

    ``decile``
        Of the genes by their mean count, from 1 for the lowest to 10; with fewer than ten genes, some are missing.
    ``genes``
        Number of genes in the decile.
    ``mean_count``
        Their mean count per unit.
    ``nominal``
        Level of the central interval.
    ``covered``
        Share of the counts that lie in it. Above `nominal`, intervals are too wide; below, too narrow.

    ``attrs["pixel2gene"]`` says what was ``held_out``, of how many ``units``, and how the ``genes`` were chosen.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or none of the genes was measured.
    ValueError
        If the embedding is of another encoder or scale than the model's, or the values are no counts.

    Examples
    --------
    >>> table = p2g.tl.calibration(sdata, model)
    >>> table.loc[table["nominal"] == 0.9, ["decile", "covered"]].columns.tolist()
    ['decile', 'covered']
    """
    require_whole("seed", seed)
    chosen_device = choose_device(device)
    embedded = open_for_model(sdata, model, image_key, embedding_key)
    part, _, measured = measure_for_model(sdata, model, embedded, table_key, layer, by_place=True)
    network = part.network.to(chosen_device)
    data, _ = slide_measurement(part, embedded, measured, table_key, chosen_device)

    rng = np.random.default_rng(seed)
    some = data.rows(np.sort(rng.permutation(len(data.fold))[:UNITS]))
    result = Calibration(np.asarray(data.counts.sum(axis=0, dtype=np.float64)).ravel() / len(data.fold))
    dispersion = part.scores["dispersion"].to_numpy()
    for units, mean in predict_units(network, some, chosen_device, held_out=True):
        result.add(negative_binomial_transform(some.counts[units].toarray(), mean, dispersion, rng))
    table = result.table()
    table.attrs["pixel2gene"] = {
        "held_out": held_out_part(training_slide(model, embedded), model.recipe),
        "units": len(some.fold),
        "genes": GENES,
    }
    return table
