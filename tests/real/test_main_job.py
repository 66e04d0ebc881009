"""The main job on real sections of HER2+ breast cancer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData

import pixel2gene as p2g

SHARED = Path(os.environ.get("PIXEL2GENE_DATA", Path(__file__).parents[3] / "shared" / "data"))
# Genes of tumour, stroma, immune and plasma cells, expressed in every section.
GENES = ["ERBB2", "FASN", "KRT19", "MUCL1", "CD74", "HLA-DRA", "IGKC", "IGHG3", "COL1A1", "COL1A2", "VIM", "GRB7"]

pytestmark = pytest.mark.skipif(not (SHARED / "her2st").exists(), reason="the real her2st sections are not here")


def embedded(section: str) -> SpatialData:
    sdata = p2g.datasets.her2st(section, folder=SHARED)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


def test_one_section_predicts_another() -> None:
    training, unseen = embedded("C3"), embedded("C4")
    model = p2g.tl.fit(training, "counts", image_key="he", genes=GENES, library_size=True, progress=False)
    scores = p2g.tl.evaluate(unseen, model)
    assert scores["pearson_counts"].mean() > 0.25
    assert (scores["deviance_explained"] > 0).mean() > 0.7

    p2g.tl.predict(unseen, model, progress=False)
    p2g.tl.denoise(unseen, model, progress=False)
    assert np.isfinite(unseen["predicted"].X).all()
    raw = unseen["counts"][unseen["denoised"].obs_names, GENES].X.toarray()
    np.testing.assert_allclose(unseen["denoised"].X.sum(axis=0), raw.sum(axis=0), rtol=0.25)
