"""The scoreboard of a fitted model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.scoring import COLUMNS


@pytest.fixture(scope="module")
def scores(embedded_once: SpatialData, fitted_once: p2g.Model) -> pd.DataFrame:
    return p2g.tl.evaluate(embedded_once, fitted_once)


def test_scores_of_the_fit_are_repeated(scores: pd.DataFrame, fitted_once: p2g.Model) -> None:
    assert scores.columns.tolist() == COLUMNS
    fitted = fitted_once.scores.drop(columns=["dispersion", "misfit"])
    pd.testing.assert_frame_equal(scores[fitted.columns], fitted, rtol=1e-4, check_flags=False)


def test_what_was_held_out_is_told(scores: pd.DataFrame, fitted_once: p2g.Model, embedded_once: SpatialData) -> None:
    told = scores.attrs["pixel2gene"]
    assert told["held_out"] == "regions, 6 in all"
    assert 0 < told["units"] <= embedded_once["counts"].n_obs
    assert told["genes"] == "chosen on the training data at fit"
    groups = ", ".join(told["scale"]).split(", ")
    assert all(any(group in column for group in groups) for column in COLUMNS)


def test_several_slides_are_told_apart(
    scores: pd.DataFrame, embedded_once: SpatialData, fitted_once: p2g.Model
) -> None:
    # One that the model knows, and as it were a new one.
    stranger = SpatialData.init_from_elements(
        {name: element for _, name, element in embedded_once.gen_elements()},
        attrs={"pixel2gene": embedded_once.attrs["pixel2gene"] | {"he_embedding": _renamed(embedded_once)}},
    )
    both = p2g.tl.evaluate({"old": embedded_once, "new": stranger}, fitted_once)
    assert both.index.names == ["slide", "gene"]
    pd.testing.assert_frame_equal(both.loc["old"], scores)
    in_sample = p2g.tl.evaluate(embedded_once, replace(fitted_once, slides=[]))
    pd.testing.assert_frame_equal(both.loc["new"], in_sample)
    told = both.attrs["pixel2gene"]
    assert told["old"] == scores.attrs["pixel2gene"]
    assert told["new"]["held_out"] == "slide"


def _renamed(sdata: SpatialData) -> dict[str, object]:
    return {**sdata.attrs["pixel2gene"]["he_embedding"], "fingerprint": "other"}


def test_a_list_names_its_slides(scores: pd.DataFrame, embedded_once: SpatialData, fitted_once: p2g.Model) -> None:
    listed = p2g.tl.evaluate([embedded_once], fitted_once)
    assert listed.index.get_level_values("slide").unique().tolist() == ["slide_0"]
    pd.testing.assert_frame_equal(listed.loc["slide_0"], scores)


def test_no_slide_is_refused(fitted_once: p2g.Model) -> None:
    with pytest.raises(ValueError, match="No slide"):
        p2g.tl.evaluate([], fitted_once)


def test_the_true_rate_would_reach_the_ceiling(
    scores: pd.DataFrame, embedded_once: SpatialData, fitted_once: p2g.Model
) -> None:
    truth = p2g.datasets.true_counts(embedded_once, "counts")[fitted_once.genes]
    counts = embedded_once["counts"].to_df()[fitted_once.genes]
    reached = truth.corrwith(counts)
    ceiling = scores["pearson_counts_ceiling"]
    assert (reached / ceiling).median() == pytest.approx(1, abs=0.1)
    # No model can beat it by more than chance.
    assert scores["pearson_counts"].mean() < np.nanmean(ceiling)
