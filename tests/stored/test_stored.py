"""Models that released versions wrote are read, and predict what they did."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pixel2gene as p2g

STORED = sorted(Path(__file__).parent.glob("model_format_*/"))


@pytest.mark.parametrize("folder", STORED, ids=[folder.name for folder in STORED])
def test_a_stored_model_predicts_what_it_did(folder: Path) -> None:
    model = p2g.Model.load(folder)
    features = torch.linspace(-2, 2, 40).reshape(5, 8)
    with torch.no_grad():
        found = model.network.rates(features).mean(dim=0).numpy()
    np.testing.assert_allclose(found, np.loadtxt(folder.with_suffix(".tsv")), rtol=1e-5)
    assert model.genes == ["ACTB", "ERBB2", "CD3E"] and np.isnan(model.scores.loc["CD3E", "pearson"])
    assert "first" in str(model.card())


def test_there_is_one() -> None:
    assert STORED
