"""Slides that tests share: made once, handed out as copies."""

from __future__ import annotations

import matplotlib
import pytest
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def embedded_once() -> SpatialData:
    sdata = p2g.datasets.simulate(size=(768, 768), n_genes=40, counts_per_superpixel=60, seed=3)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return sdata


@pytest.fixture(scope="session")
def fitted_once(embedded_once: SpatialData) -> p2g.Model:
    return p2g.tl.fit(embedded_once, "counts", image_key="he", progress=False)


@pytest.fixture
def embedded(embedded_once: SpatialData) -> SpatialData:
    """A simulated Visium HD slide with tissue and embedding."""
    return deepcopy(embedded_once)


@pytest.fixture
def fitted(fitted_once: p2g.Model) -> p2g.Model:
    """A model of that slide."""
    return fitted_once
