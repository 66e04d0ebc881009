"""Several captures under one H&E: each its depth and panel, one prediction of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

FAST = Recipe(folds=2, hidden=(32, 8), check_steps=(20, 20), max_checks=8)
KEYS = ["left", "right"]
THINNED = 0.4
ONLY_LEFT, ONLY_RIGHT = ["GENE0001", "GENE0002"], ["GENE0003", "GENE0004"]


@pytest.fixture(scope="module")
def whole() -> SpatialData:
    sdata = p2g.datasets.simulate(size=(384, 768), n_genes=12, counts_per_superpixel=80, measured=1.0, seed=3)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


@pytest.fixture(scope="module")
def slide(whole: SpatialData) -> SpatialData:
    """Two captures with a gap between, the right one shallower, and two genes that only one of them measured."""
    sdata, table = deepcopy(whole), whole["counts"]
    del sdata["counts"]
    x = table.obsm["spatial"][:, 0]
    place = (x - x.min()) / np.ptp(x)
    left, right = table[place < 0.4].copy(), table[place > 0.55].copy()
    counts = right.X.astype(np.int64)
    counts.data = np.random.default_rng(0).binomial(counts.data, THINNED)
    right.X = csr_matrix(counts, dtype=np.float32)
    sdata["left"] = left[:, ~left.var_names.isin(ONLY_RIGHT)].copy()
    sdata["right"] = right[:, ~right.var_names.isin(ONLY_LEFT)].copy()
    return sdata


@pytest.fixture(scope="module")
def model(slide: SpatialData) -> p2g.Model:
    return p2g.tl.fit(slide, KEYS, image_key="he", join="outer", recipe=FAST, progress=False)


def test_each_has_its_depth_and_panel(slide: SpatialData, model: p2g.Model) -> None:
    left, right = model.slides
    assert [left.name, right.name] == ["slide/left", "slide/right"] and model.tables == set(KEYS)
    assert set(model.genes) == {*slide["left"].var_names, *slide["right"].var_names}
    # Tissue differs from side to side, too.
    assert THINNED / 1.5 < right.depth / left.depth < THINNED * 1.5


def test_the_whole_slide_is_filled_in_one_unit(whole: SpatialData, slide: SpatialData, model: p2g.Model) -> None:
    sdata = deepcopy(slide)
    p2g.tl.predict(sdata, model, progress=False)
    rate = sdata["predicted_map"].sel(c=model.genes).values.reshape(len(model.genes), -1)
    truth = whole["truth"].sel(c=model.genes).values.reshape(len(model.genes), -1)
    there = np.isfinite(rate).all(axis=0)
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(rate[:, there], truth[:, there], strict=True)]
    assert np.mean(r) > 0.5
    # Left at full depth, right at 0.4 of it, predicted at the mean of both.
    scale = rate[:, there].sum(dtype=np.float64) / truth[:, there].sum()
    np.testing.assert_allclose(scale, (1 + THINNED) / 2, rtol=0.2)


def test_a_capture_is_denoised_and_scored_by_name(slide: SpatialData, model: p2g.Model) -> None:
    sdata = deepcopy(slide)
    for verb in (p2g.tl.denoise, p2g.tl.evaluate, p2g.tl.calibration):
        with pytest.raises(ValueError, match=r"trained on \['left', 'right'\]: name one of them, table_key="):
            verb(sdata, model)
    for key in KEYS:
        p2g.tl.denoise(sdata, model, table_key=key, key_added=f"denoised_{key}", progress=False)
        denoised, counts = sdata[f"denoised_{key}"], sdata[key]
        assert set(denoised.var_names) == set(counts.var_names)
        raw = counts[denoised.obs_names, denoised.var_names].X.toarray()
        np.testing.assert_allclose(denoised.X.sum(), raw.sum(), rtol=0.1)
        scores = p2g.tl.evaluate(sdata, model, table_key=key)
        assert scores.attrs["pixel2gene"]["held_out"] == "regions, 2 in all"
        unmeasured = [gene for gene in model.genes if gene not in counts.var_names]
        assert scores["pearson"].isna().pipe(lambda none: set(none.index[none])) == set(unmeasured)


def test_captures_of_one_place_are_held_out_together(whole: SpatialData) -> None:
    """Halves of the same counts: what one member is not shown of the first, it is not shown of the second."""
    sdata, table = deepcopy(whole), whole["counts"]
    first, second = table.copy(), table.copy()
    counts = table.X.astype(np.int64)
    half = counts.copy()
    half.data = np.random.default_rng(0).binomial(counts.data, 0.5)
    first.X, second.X = csr_matrix(half, dtype=np.float32), csr_matrix(counts - half, dtype=np.float32)
    sdata["first"], sdata["second"] = first, second
    model = p2g.tl.fit(sdata, ["first", "second"], image_key="he", recipe=FAST, progress=False)
    one, other = model.slides
    np.testing.assert_array_equal(one.fold, other.fold)
    alone = p2g.tl.fit(sdata, "first", image_key="he", recipe=FAST, progress=False)
    np.testing.assert_array_equal(one.fold, alone.slides[0].fold)
    assert abs(one.depth / other.depth - 1) < 0.05


def test_a_saved_model_knows_its_captures(slide: SpatialData, model: p2g.Model, tmp_path) -> None:
    model.save(tmp_path / "model.p2g")
    loaded = p2g.Model.load(tmp_path / "model.p2g")
    assert [s.table_key for s in loaded.slides] == KEYS and loaded.tables == set(KEYS)
    assert "slide/left" in str(loaded.card())


def test_one_table_in_a_list_is_one_table(whole: SpatialData) -> None:
    model = p2g.tl.fit(whole, ["counts"], image_key="he", recipe=FAST, progress=False)
    assert [slide.name for slide in model.slides] == ["slide"] and model.inputs["table_key"] == "counts"
    p2g.tl.evaluate(whole, model)


def test_bad_input(slide: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No slide has the tables \['middle'\]; there are \['left', 'right'\]"):
        p2g.tl.fit(slide, ["left", "middle"], image_key="he", progress=False)
    with pytest.raises(ValueError, match="at least one in table_key, and none twice"):
        p2g.tl.fit(slide, ["left", "left"], image_key="he", progress=False)
    with pytest.raises(KeyError, match=r"'b' has none of the tables \['left', 'right'\]; there are \['counts'\]"):
        p2g.tl.fit(
            {"a": slide, "b": p2g.datasets.simulate(size=(256, 256), n_genes=3)}, KEYS, image_key="he", progress=False
        )
    with pytest.raises(ValueError, match="have the same H&E: put their tables into one SpatialData"):
        p2g.tl.fit({"a": slide, "b": slide}, "left", image_key="he", progress=False)
