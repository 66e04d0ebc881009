"""Rates that run away are bounded, counted and told, whichever verb meets them; sound models are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core import outputs
from pixel2gene.core.regression import Recipe

SAID = "far beyond all that was measured in training"


@pytest.fixture
def runaway(fitted_once: p2g.Model) -> p2g.Model:
    """One member predicts e¹⁰ and more times too much of the first gene."""
    network = fitted_once.network.of_genes(np.arange(len(fitted_once.genes)))
    with torch.no_grad():
        network.biases[-1][0, 0, 0] += 10
        network.weights[-1][0, :, 0] *= 3
    return replace(fitted_once, network=network)


def denoise(sdata: SpatialData, model: p2g.Model) -> None:
    p2g.tl.denoise(sdata, model, progress=False)


def predict(sdata: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(sdata, model, progress=False)


def predict_lazily(sdata: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(sdata, model, lazy=True, progress=False)


@pytest.mark.parametrize("verb", [predict, predict_lazily, denoise])
def test_it_is_told(
    verb: Callable[[SpatialData, p2g.Model], None],
    embedded_once: SpatialData,
    fitted_once: p2g.Model,
    runaway: p2g.Model,
) -> None:
    sound, sdata = deepcopy(embedded_once), deepcopy(embedded_once)
    key = "denoised" if verb is denoise else "predicted"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{SAID}")
        verb(sound, fitted_once)
    assert sound[key].uns["pixel2gene"]["bounded"] == sound.attrs["pixel2gene"][key]["bounded"] == 0
    with pytest.warns(UserWarning, match=SAID) as told:
        verb(sdata, runaway)
    ours = next(one for one in told if SAID in str(one.message))
    assert Path(ours.filename).name == Path(__file__).name
    assert verb is predict_lazily or runaway.genes[0] in str(ours.message)
    assert sdata[key].uns["pixel2gene"]["bounded"] > 0
    first = sdata[f"{key}_map"].sel(c=runaway.genes[0]).values
    assert not np.isinf(first).any()
    if verb is not denoise:
        most = fitted_once.network.log_ceiling[0].exp().item()
        assert np.nanmax(first) <= most * 1.01
        np.testing.assert_allclose(
            sdata[f"{key}_map"].sel(c=runaway.genes[1]).values, sound[f"{key}_map"].sel(c=runaway.genes[1]).values,
            rtol=1e-2,
        )  # fmt: skip


def test_a_fit_that_is_not_sound_is_told(embedded_once: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(folds=2, hidden=(8, 8), max_checks=2)
    monkeypatch.setattr(outputs.Finished, "complaint", lambda self, genes: f"The fit is not sound: {genes[0]}.")
    with pytest.warns(UserWarning, match="The fit is not sound"):
        model = p2g.tl.fit(deepcopy(embedded_once), "counts", image_key="he", recipe=recipe, progress=False)
    assert model.fitted is not None and "not sound" in model.fitted["complaint"]


def test_a_stored_model_keeps_its_ceiling_and_its_held_out_outputs(fitted_once: p2g.Model, tmp_path: Path) -> None:
    fitted_once.save(tmp_path / "model.p2g")
    again = p2g.Model.load(tmp_path / "model.p2g").network
    for name in ("log_ceiling", "held_out_weight", "held_out_bias"):
        torch.testing.assert_close(getattr(again, name), getattr(fitted_once.network, name))
    assert (again.held_out_bias != again.biases[-1]).any()
