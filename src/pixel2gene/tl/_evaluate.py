from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from spatialdata import SpatialData

from pixel2gene.core.model import Model
from pixel2gene.spatial.evaluation import joined, score_slide
from pixel2gene.spatial.slides import by_name


def evaluate(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    model: Model,
    *,
    table_key: str | None = None,
    image_key: str | None = None,
    layer: str | None = None,
    embedding_key: str | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Score each gene on counts that the model did not see.

    On a slide of its training each unit is predicted by the member that was trained without the unit's region
    (out-of-fold); on any other slide by all members.

    Parameters
    ----------
    sdata
        Slide with counts and an embedding like that of the training, or several as a list or by name.
    model
        From `pixel2gene.tl.fit`.
    table_key, image_key, layer, embedding_key
        Those of the training by default.
    device
        ``"cpu"``, ``"cuda"`` ...; the best there is by default.

    Returns
    -------
    One row per gene; of a list or dict, one per ``(slide, gene)``. Log-normalised means scaled to the mean total per
    unit and log(1 + x) transformed. The columns, NaN where that which they compare does not vary and for genes that
    the slide did not measure:

    ``mean_count``
        Counts per unit.
    ``pearson``, ``pearson_counts``, ``spearman``
        Correlation of counts and prediction, log-normalised, as they are, and by ranks.
    ``rmse``
        Root of the mean squared error of the log-normalised prediction.
    ``deviance_explained``
        1 minus the Poisson deviance of the prediction over that of the gene's mean rate.
    ``ssim``
        Structural similarity of the log-normalised maps on the superpixel grid; NaN for spots, which fill a window.
    ``morans_i_counts``, ``morans_i_predicted``
        Spatial autocorrelation of the log-normalised values.
    ``pearson_ceiling``, ``pearson_counts_ceiling``, ``spearman_ceiling``
        The highest correlation that the noise of counting allows; NaN where random halves of the counts do not
        correlate positively. What else differs between units counts as signal, whether or not an H&E shows it.
    ``pearson_share``, ``pearson_counts_share``, ``spearman_share``
        Correlation over its ceiling.

    ``attrs["pixel2gene"]`` (of a list or dict, for each slide) says what was ``held_out``, on how many ``units``, on
    what ``scale`` and how the ``genes`` were chosen.

    Raises
    ------
    KeyError
        If there is no such table, layer or embedding, or none of the model's genes was measured.
    ValueError
        If the embedding is of another encoder or scale than the model's, the values are no counts, or no slide was
        given.

    Examples
    --------
    >>> scores = p2g.tl.evaluate(sdata, model)
    >>> told = scores[scores["pearson"] > 0.3].index  # genes that the H&E tells
    >>> scores.attrs["pixel2gene"]["scale"]["spearman"]
    'ranks'
    """
    keys = table_key, image_key, layer, embedding_key
    tables = {name: score_slide(one, model, *keys, device) for name, one in by_name(sdata).items()}
    if isinstance(sdata, SpatialData):
        return tables.popitem()[1]
    return joined(tables)
