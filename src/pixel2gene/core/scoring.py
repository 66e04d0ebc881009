"""Held-out scores of an ensemble."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.metrics import Scores
from pixel2gene.core.regression import Measurement, predict_units


def held_out_scores(network: Ensemble, data: Measurement, genes: list[str], device: torch.device) -> pd.DataFrame:
    """Score every gene, each unit predicted by the members that did not see it.

    Returns
    -------
    One row per gene, see `pixel2gene.tl.evaluate`.
    """
    exposure = np.asarray(data.overlap.sum(axis=1, dtype=np.float64)).ravel() * data.depth
    totals = np.asarray(data.counts.sum(axis=0, dtype=np.float64)).ravel()
    scores = Scores(genes, totals / exposure.sum(), target=float(totals.sum()) / len(data.fold))
    for units, mean in predict_units(network, data, device, held_out=True):
        scores.add(data.counts[units].toarray(), mean, exposure[units])
    return scores.table()
