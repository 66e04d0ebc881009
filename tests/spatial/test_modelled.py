"""A slide in the terms of a fitted model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial import modelled
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement


@pytest.mark.parametrize(
    ("changed", "sought"),
    [({"slides": []}, True), ({"slides": [], "recipe": PaperRecipe()}, False), ({"recipe": Recipe()}, False)],
)
def test_capture_is_sought_on_new_slides_and_where_training_found_some(
    changed: dict[str, Any],
    sought: bool,
    embedded_once: SpatialData,
    fitted_once: p2g.Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(modelled, "find_capture", lambda *given: looked.append(given))
    model = replace(fitted_once, **changed)
    embedded = open_for_model(embedded_once, model, "he", None)
    part, _, measured = measure_for_model(embedded_once, model, embedded, "counts", None)
    slide_measurement(part, embedded, measured, "counts", choose_device("cpu"))
    assert bool(looked) is sought
