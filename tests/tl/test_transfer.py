"""Fits that start from a model of another slide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe, predict_units
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement

FAST = Recipe(folds=3, hidden=(32, 16), check_steps=(20, 20), max_checks=15)
UNTRAINED = replace(FAST, max_checks=1)
NEW = ["GENE0003", "GENE0007"]


def make(seed: int) -> SpatialData:
    sdata = p2g.datasets.simulate(size=(512, 512), n_genes=20, counts_per_superpixel=80, measured=1.0, seed=seed)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


def fit(sdata: object, **options: object) -> p2g.Model:
    return p2g.tl.fit(sdata, "counts", image_key="he", **{"recipe": FAST, "progress": False, **options})


def with_counts(sdata: SpatialData, rows: np.ndarray) -> SpatialData:
    part = deepcopy(sdata)
    del part["counts"]
    part["counts"] = sdata["counts"][rows].copy()
    return part


@pytest.fixture(scope="module")
def atlas() -> SpatialData:
    return make(1)


@pytest.fixture(scope="module")
def reference(atlas: SpatialData) -> p2g.Model:
    """Lacks two genes."""
    genes = [gene for gene in atlas["counts"].var_names if gene not in NEW]
    return fit({"atlas": atlas}, genes=genes)


@pytest.fixture(scope="module")
def other() -> SpatialData:
    return make(2)


@pytest.fixture(scope="module")
def window(other: SpatialData) -> SpatialData:
    """Measured in a square in the middle."""
    place = other["counts"].obsm["spatial"]
    return with_counts(other, (np.abs(place - 256) < 64).all(axis=1))


@pytest.fixture(scope="module")
def untrained(window: SpatialData, reference: p2g.Model) -> p2g.Model:
    return fit(window, reference=reference, recipe=UNTRAINED)


def pearson(sdata: SpatialData, model: p2g.Model, genes: list[str]) -> float:
    """Mean with the true rate outside the window."""
    sdata = deepcopy(sdata)
    p2g.tl.predict(sdata, model, genes=genes, progress=False)
    truth = p2g.datasets.true_counts(sdata, "predicted").to_numpy()
    away = (np.abs(sdata["predicted"].obsm["spatial"] - 256) > 72).any(axis=1)
    pairs = zip(sdata["predicted"].X[away].T, truth[away].T, strict=True)
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in pairs]))


def test_without_training_it_is_the_reference_at_other_levels(
    untrained: p2g.Model, reference: p2g.Model, window: SpatialData
) -> None:
    assert untrained.history.step == [0]
    features = torch.randn(50, reference.encoder["channels"])
    genes = [untrained.genes.index(gene) for gene in reference.genes]
    with torch.inference_mode():
        levels = untrained.network(features)[..., genes] - reference.network(features)
    # The same for all superpixels.
    torch.testing.assert_close(levels, levels[:, :1].expand_as(levels), rtol=1e-4, atol=1e-4)
    # Those of the window: what is expected there is what was counted.
    embedded = open_for_model(window, untrained, None, None)
    _, _, measured = measure_for_model(window, untrained, embedded, None, None)
    cpu = torch.device("cpu")
    data, _ = slide_measurement(untrained, embedded, measured, None, cpu)
    expected = sum(mean.sum(axis=0) for _, mean in predict_units(untrained.network, data, cpu, held_out=False))
    np.testing.assert_allclose(expected, data.counts.sum(axis=0), rtol=0.2)


def test_a_window_and_a_reference_beat_either_alone(
    other: SpatialData, window: SpatialData, reference: p2g.Model, untrained: p2g.Model
) -> None:
    alone, both = fit(window), fit(window, reference=reference)
    assert both.history.deviance[both.history.best] <= min(both.history.deviance[0], untrained.history.deviance[0])
    found = {name: pearson(other, one, reference.genes) for name, one in (("alone", alone), ("both", both))}
    assert found["both"] > found["alone"] + 0.1
    assert found["both"] > pearson(other, reference, reference.genes) - 0.03


def test_genes_that_the_reference_lacks_are_learnt(other: SpatialData, reference: p2g.Model) -> None:
    model = fit(other, reference=reference)
    assert model.scores.loc[NEW, "pearson_counts"].min() > 0.1
    assert model.reference == ["atlas"] and [slide.name for slide in model.slides] == ["slide"]


def test_members_are_taken_in_turn(window: SpatialData, reference: p2g.Model) -> None:
    more = fit(window, reference=reference, folds=4, recipe=UNTRAINED)
    assert more.network.architecture.members == 4
    for member, origin in enumerate([0, 1, 2, 0]):
        for own, their in zip(more.network.weights[:-1], reference.network.weights[:-1], strict=True):
            assert torch.equal(own[member], their[origin])


def test_hidden_layers_are_those_of_the_reference(window: SpatialData, reference: p2g.Model, tmp_path: Path) -> None:
    model = fit(window, reference=reference, recipe=replace(UNTRAINED, hidden=(5,)))
    assert model.recipe == UNTRAINED
    model.save(tmp_path / "m.p2g")
    assert p2g.Model.load(tmp_path / "m.p2g").reference == ["atlas"]


def test_the_reference_stays_as_it_was(window: SpatialData, reference: p2g.Model) -> None:
    before = {name: value.clone() for name, value in reference.network.state_dict().items()}
    fit(window, reference=reference, recipe=replace(FAST, max_checks=2))
    assert all(torch.equal(value, before[name]) for name, value in reference.network.state_dict().items())


def test_training_that_does_not_help_is_undone(window: SpatialData, reference: p2g.Model, untrained: p2g.Model) -> None:
    wild = replace(FAST, max_checks=2, reference_learning_rate=1.0, reference_pull=0.0)
    model = fit(window, reference=reference, recipe=wild)
    assert model.history.best == 0 and model.history.step == [0, 20]
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, untrained.network.state_dict()[name])


def test_a_strong_pull_leaves_the_shape_as_it_is(window: SpatialData, reference: p2g.Model) -> None:
    model = fit(window, reference=reference, recipe=replace(FAST, max_checks=3, reference_pull=1e9))
    own, their = model.network.weights[0], reference.network.weights[0]
    torch.testing.assert_close(own, their)


def test_several_slides_start_from_a_reference(atlas: SpatialData, other: SpatialData, reference: p2g.Model) -> None:
    third = deepcopy(other)
    record = third.attrs["pixel2gene"]["he_embedding"]
    third.attrs["pixel2gene"]["he_embedding"] = {**record, "fingerprint": "third"}
    lacking = third["counts"][:, ~third["counts"].var_names.isin(NEW)].copy()
    del third["counts"]
    third["counts"] = lacking
    model = fit([other, third], reference=reference, join="outer", recipe=UNTRAINED)
    assert set(model.genes) == {*reference.genes, *NEW}
    table = p2g.tl.cross_validate(
        [other, third], "counts", image_key="he", reference=reference, recipe=UNTRAINED, progress=False
    )
    assert isinstance(table, pd.DataFrame) and table["pearson_counts"].mean() > 0.1


def test_what_makes_no_reference_is_refused(atlas: SpatialData, window: SpatialData, reference: p2g.Model) -> None:
    with pytest.raises(ValueError, match="The reference was trained on the H&E of 'slide'"):
        fit(atlas, reference=reference)
    with pytest.raises(ValueError, match="name: model uni, embedding lite0"):
        fit(window, reference=replace(reference, encoder={**reference.encoder, "name": "uni"}))
    with pytest.raises(ValueError, match='recipe "paper" starts from no reference'):
        fit(window, reference=reference, recipe="paper")
    with pytest.raises(ValueError, match='model of the recipe "paper" is no reference'):
        fit(window, reference=replace(reference, recipe=PaperRecipe()))
    with pytest.raises(ValueError, match="The reference has none of the 2 genes to model"):
        fit(window, reference=reference, genes=NEW)


def test_too_small_a_window_is_refused(other: SpatialData, reference: p2g.Model) -> None:
    place = other["counts"].obsm["spatial"]
    tiny = with_counts(other, (np.abs(place - 256) < 16).all(axis=1))
    with pytest.raises(ValueError, match="fewer than the 9 folds; measure more tissue or ask for fewer folds"):
        fit(tiny, genes=reference.genes[:1], reference=reference, folds=9)
