"""Denoising is scored on what no method saw, and the rivals do what they are said to."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from pixel2gene.core.regression import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def denoising(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a model that is trained for a moment only."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("denoising")
    short = partial(module.pixel2gene, recipe=Recipe(folds=3, max_checks=8, hidden=(64, 16)))
    monkeypatch.setattr(module, "pixel2gene", short)
    return module


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("rivals")


@pytest.fixture
def counts() -> NDArray[np.float32]:
    """Of units that differ in depth and profile."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 2, (400, 1)) * np.exp(rng.normal(0, 1, (3, 20)))[rng.integers(0, 3, 400)]
    return rng.poisson(rate).astype(np.float32)


@pytest.mark.parametrize("data", ["hd", "xenium"])
def test_table(denoising: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str) -> None:
    out = tmp_path / "table.json"
    denoising.table(out, data=data, seeds=1, side=384, genes=12)
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == [name for name in denoising.METHODS if name != "paper"]
    assert all(row["deviance"] < 1 for row in rows.values())
    assert rows["denoised"]["deviance"] > max(rows["raw"]["deviance"], 0)
    assert rows["expected"]["pearson"] > rows["raw"]["pearson"] > 0
    assert all(0.5 < share <= 1 for share in rows["denoised"]["covered"].values())
    printed = capsys.readouterr().out
    assert "best of raw, smoothing, histology" in printed
    assert "by decile of expression" in printed


def test_depth(denoising: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "depth.json"
    denoising.depth(out, data="hd", method="raw,expected", seeds=1, depths="100,10", side=384, genes=8)
    rows = json.loads(out.read_text())["rows"]
    score = {(row["depth"], row["method"]): row["pearson"] for row in rows}
    assert score[10, "raw"] < score[100, "raw"] < score[100, "expected"]
    assert "better of both" in capsys.readouterr().out


def test_regions(denoising: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("igraph", reason="Leiden clusters need igraph")
    out = tmp_path / "regions.json"
    denoising.regions(out, seeds=1, side=384, genes=20)
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["truth"]["right"] > rows["counts"]["right"] > 0
    assert rows["truth"]["z_correlation"] > 0.5
    assert rows["truth"]["ari_truth"] == 1
    assert "ARI with regions" in capsys.readouterr().out


def test_units_and_counts_stay_in_order(denoising: ModuleType) -> None:
    for name in ("hd", "xenium"):
        ((_, whole),) = denoising._measured_everywhere(name, denoising.Sizes(side=256, genes=6), 0)
        counts = whole.measured.counts.toarray()
        again = denoising.remeasured(whole, counts, 1)
        assert again.genes == whole.genes
        np.testing.assert_array_equal(again.measured.counts.toarray(), counts)
        np.testing.assert_allclose(again.measured.centres, whole.measured.centres)
        np.testing.assert_allclose(again.true_counts(), whole.true_counts(), rtol=1e-5)


def test_split_parts_add_up(denoising: ModuleType, counts: NDArray[np.float32]) -> None:
    first, second = denoising.split(counts, 0.3, np.random.default_rng(0))
    np.testing.assert_array_equal(first + second, counts)
    assert min(first.min(), second.min()) >= 0
    assert abs(first.sum() / counts.sum() - 0.3) < 4 * np.sqrt(0.21 / counts.sum())


@pytest.mark.parametrize(
    ("with_replacement", "drawn"),
    # Variance that drawing adds to that of the gamma share: of a fraction rounded to either side, or of a binomial.
    [(True, 1 / 6), (False, 400 * (0.1 - 0.1**2 * 1.1))],
)
def test_thinning_has_its_mean_and_variance(denoising: ModuleType, with_replacement: bool, drawn: float) -> None:
    def thin(counts: NDArray[np.float32]) -> NDArray[np.float32]:
        return denoising.thin(counts, 0.1, np.random.default_rng(0), with_replacement=with_replacement)

    counts = np.tile(np.float32([[300, 99, 1, 0]]), (20_000, 1))
    total = (thinned := thin(counts)).sum(axis=1)
    assert total.mean() == pytest.approx(40, rel=0.01)
    assert total.var() == pytest.approx(40**2 / denoising.THINNING_SHAPE + drawn, rel=0.05)
    assert thinned[:, 0].sum() / thinned.sum() == pytest.approx(0.75, abs=0.005)
    assert (thinned > counts).any() == with_replacement
    assert thinned[:, 3].sum() == 0
    assert thin(0 * counts).sum() == 0


def test_pooling_of_no_steps_is_the_identity(rivals: ModuleType, counts: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(rivals.diffuse(rivals.transition(counts, 0), counts, 0), counts)


def test_pooling_keeps_constants_and_about_the_mean(rivals: ModuleType, counts: NDArray[np.float32]) -> None:
    matrix = rivals.transition(counts, 0)
    np.testing.assert_allclose(rivals.diffuse(matrix, np.ones((len(counts), 1)), 3), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pooled = rivals.diffuse(matrix, shares, 3)
    np.testing.assert_allclose(pooled.mean(axis=0), shares.mean(axis=0), rtol=0.2, atol=2e-3)
    assert (pooled.var(axis=0) < shares.var(axis=0)).all()


def test_pooling_averages_each_of_two_kinds_of_identical_units(rivals: ModuleType) -> None:
    size = rivals.NEIGHBOURS + 1
    kind = np.repeat([0, 1], size)
    matrix = rivals.transition(np.float32([[9, 1, 0], [0, 1, 9]])[kind], 0)
    values = np.random.default_rng(0).normal(size=(2 * size, 4))
    means = np.stack([values[kind == one].mean(axis=0) for one in (0, 1)])
    np.testing.assert_allclose(rivals.diffuse(matrix, values, 1), means[kind], atol=1e-12)


def test_shrinking_follows_counts_that_vary_and_not_those_that_do_not(rivals: ModuleType) -> None:
    class Measured:
        area = np.ones(5000)

    class Training:
        measured = Measured

    rng = np.random.default_rng(0)
    rate = np.stack([np.full(5000, 4.0), rng.gamma(0.5, 8, 5000)], axis=1)
    counts = rng.poisson(rate).astype(np.float32)
    Measured.counts = rivals.csr_array(counts)
    constant, varied = rivals.shrunk(Training).T
    np.testing.assert_allclose(constant, counts[:, 0].mean(), rtol=0.15)
    # The posterior mean with the true shape of 0.5 and mean of 4.
    np.testing.assert_allclose(varied, (0.5 + counts[:, 1]) / (0.5 / 4 + 1), rtol=0.1)
