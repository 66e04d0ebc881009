"""Coverage of counts that a model did not see."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.posterior import ShapeEstimator
from pixel2gene.core.regression import predict_units
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement


def held_out(sdata: SpatialData, model: p2g.Model) -> tuple[np.ndarray, np.ndarray]:
    """(units, genes) counts on tissue and their out-of-fold predictions."""
    device = choose_device("cpu")
    embedded = open_for_model(sdata, model, None, None)
    part, _, measured = measure_for_model(sdata, model, embedded, None, None)
    data, _ = slide_measurement(part, embedded, measured, None, device)
    mean = np.empty(data.counts.shape)
    for units, some in predict_units(part.network, data, device, held_out=True):
        mean[units] = some
    return data.counts.toarray().astype(float), mean


@pytest.fixture(scope="module")
def told(embedded_once: SpatialData, fitted_once: p2g.Model) -> p2g.Model:
    """The model, with the dispersion of its out-of-fold predictions."""
    estimator = ShapeEstimator(len(fitted_once.genes))
    estimator.add(*held_out(embedded_once, fitted_once))
    return replace(fitted_once, scores=fitted_once.scores.assign(dispersion=1 / estimator.shape))


@pytest.fixture(scope="module")
def table(embedded_once: SpatialData, told: p2g.Model) -> pd.DataFrame:
    return p2g.tl.calibration(embedded_once, told)


def test_table(table: pd.DataFrame, embedded_once: SpatialData, told: p2g.Model) -> None:
    assert table.columns.tolist() == ["decile", "genes", "mean_count", "nominal", "covered"]
    assert table.groupby("decile").genes.first().tolist() == 10 * [len(told.genes) / 10]
    assert sorted(set(table.nominal)) == pytest.approx(np.arange(0.1, 0.99, 0.05))
    counts, _ = held_out(embedded_once, told)
    assert table.groupby("decile").mean_count.first().mean() == pytest.approx(counts.mean())
    assert table.attrs["pixel2gene"] == {
        "held_out": "regions, 6 in all",
        "units": len(counts),
        "genes": "chosen on the training data at fit",
    }


def test_coverage_is_that_of_the_out_of_fold_negative_binomial(
    table: pd.DataFrame, embedded_once: SpatialData, told: p2g.Model
) -> None:
    """The expected share, over all that chance could draw, by scipy."""
    counts, mean = held_out(embedded_once, told)
    dispersion = told.scores["dispersion"].to_numpy()
    truth = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    below, at = truth.cdf(counts - 1), truth.pmf(counts)
    within = np.clip((0.95 - below) / at, 0, 1) - np.clip((0.05 - below) / at, 0, 1)
    order = np.argsort(counts.mean(axis=0), kind="stable")
    expected = within.mean(axis=0)[order].reshape(10, -1).mean(axis=1)
    found = table[np.isclose(table.nominal, 0.9)].covered.to_numpy()
    chance = 0.5 / np.sqrt(counts.size / 10)
    assert found == pytest.approx(expected, abs=4 * chance)


def test_own_dispersion_covers_and_none_does_not(
    table: pd.DataFrame, embedded_once: SpatialData, told: p2g.Model
) -> None:
    poisson = p2g.tl.calibration(embedded_once, replace(told, scores=told.scores.assign(dispersion=0.0)))
    right, wrong = (one[np.isclose(one.nominal, 0.9)].covered.to_numpy() for one in (table, poisson))
    assert np.abs(right - 0.9).max() < 0.03
    assert wrong[-1] < 0.85


def test_seed_repeats(table: pd.DataFrame, embedded_once: SpatialData, told: p2g.Model) -> None:
    pd.testing.assert_frame_equal(p2g.tl.calibration(embedded_once, told, seed=0), table)
    assert not p2g.tl.calibration(embedded_once, told, seed=1).covered.equals(table.covered)


def test_new_slide(embedded_once: SpatialData, told: p2g.Model) -> None:
    new = p2g.tl.calibration(embedded_once, replace(told, slides=[]))
    assert new.attrs["pixel2gene"]["held_out"] == "slide"


def test_no_more_units_than_needed(
    embedded_once: SpatialData, told: p2g.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixel2gene.tl._calibration.UNITS", 50)
    found = p2g.tl.calibration(embedded_once, told)
    assert found.attrs["pixel2gene"]["units"] == 50
    # Of 50 units and 4 genes.
    hits = found.covered.to_numpy() * 200
    assert hits == pytest.approx(np.rint(hits))
