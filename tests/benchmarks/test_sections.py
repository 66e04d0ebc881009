"""Scores of real sections by themselves, on spots that are simulated."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GENES = [f"gene{i}" for i in range(40)]


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("sections")


def test_thinned_counts_do_not_tell_the_depth_that_log_normalised_ones_do(sections: ModuleType) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 20, 2000)
    spots = sections.Spots.__new__(sections.Spots)
    # The same composition everywhere.
    spots.counts = rng.poisson(depth[:, None] * rng.uniform(0.5, 2, len(GENES))).astype(np.float32)
    spots.units = SimpleNamespace(genes=pd.Index(GENES))
    some = GENES[::2]

    def correlation(log: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(depth[rows], gene)[0, 1] for gene in log[rows].T]))

    everywhere = np.ones(len(depth), bool)
    assert correlation(spots.log(some), everywhere) > 0.2
    assert spots.deep.mean() == pytest.approx(1 - sections.SHALLOW, abs=0.02)
    thinned = spots.thinned_log(some, rng)
    assert abs(correlation(thinned, spots.deep)) < 0.02
    kept = np.expm1(spots.thinned_log(GENES, rng)[spots.deep]).sum(axis=1)
    assert kept.mean() == pytest.approx(sections.TARGET, rel=0.02)
