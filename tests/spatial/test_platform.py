"""What a platform did to the counts, as slides see it."""

from dataclasses import replace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array, eye_array
from spatialdata.transformations import Identity

from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.platform import NO_EFFECTS, Capture, Platform, blur
from pixel2gene.core.regression import Recipe
from pixel2gene.datasets import simulate
from pixel2gene.spatial import platform as module
from pixel2gene.spatial.embedded import Embedded
from pixel2gene.spatial.grid import Grid, superpixel_grid
from pixel2gene.spatial.measured import gaps_between, measure
from pixel2gene.spatial.platform import find_capture, seeks_capture, with_capture, with_effects, without_effects
from pixel2gene.spatial.units import Units, array_places, measured_units, tiled_array

SIDE = 96
RECORD = {"image_key": "he"}
GRID = Grid((SIDE, SIDE), 16.0, {"global": Identity()})
PLACES = np.stack(np.divmod(np.arange(GRID.size), SIDE), axis=1)
TISSUE = gaussian_filter(np.random.default_rng(3).standard_normal((SIDE, SIDE)), 10, mode="wrap") > 0


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    return Embedded(RECORD, GRID, da.from_array((TISSUE[None] * np.ones((2, 1, 1))).astype(np.float16)))


def bins(counts: np.ndarray, **kind: object) -> Units:
    """One bin on each superpixel, of one gene."""
    values = csr_array(counts.reshape(-1, 1).astype(np.float32))
    return Units(pd.Index(["A"]), values, csr_array(eye_array(GRID.size, dtype=np.float32, format="csr")), **kind)


def rates() -> np.ndarray:
    return np.where(TISSUE, 30.0, 0.0)


def seen(units: Units, embedded: Embedded, known: Platform | None = None):
    measured = measure(embedded, units, np.arange(1), "bins")
    return with_effects(units, measured, GRID, known)


def test_stripes_of_bins_become_their_efficiency(embedded):
    rng = np.random.default_rng(0)
    factor = np.exp(0.4 * rng.standard_normal((2, SIDE)))
    counts = rng.poisson(rates() * factor[0][:, None] * factor[1])
    measured = seen(bins(counts, array=PLACES), embedded, NO_EFFECTS)
    planted = np.outer(*factor).ravel()[measured.rows]
    assert measured.platform.row_stripes == pytest.approx(0.4, rel=0.25)
    assert measured.platform.column_stripes == pytest.approx(0.4, rel=0.25)
    assert np.corrcoef(np.log(measured.efficiency), np.log(planted))[0, 1] > 0.9
    assert measured.efficiency.mean() == pytest.approx(1)
    data = measured.measurement(np.zeros(len(planted), np.int8), 2.0, Recipe())
    np.testing.assert_allclose(data.depth, 2 * measured.efficiency, rtol=1e-5)


def test_drift_is_put_into_what_bins_collect(embedded):
    rng = np.random.default_rng(1)
    drifted = blur(csr_array(eye_array(GRID.size, format="csr")), GRID.shape, 2.0) @ rates().ravel()
    measured = seen(bins(rng.poisson(drifted + 0.2), array=PLACES), embedded)
    assert measured.platform.diffusion_um == pytest.approx(16, rel=0.1)
    assert (measured.platform.row_stripes, measured.platform.capture) == (0, 0)
    expected = blur(csr_array(eye_array(GRID.size, format="csr")), GRID.shape, measured.platform.diffusion_um / 8)
    part = expected[measured.rows][:, measured.superpixels]
    assert abs(measured.collects - part).max() < 1e-6
    data = measured.measurement(np.zeros(len(measured.rows), np.int8), 1.0, Recipe())
    assert data.overlap is measured.collects
    # Their own area is as it was.
    np.testing.assert_allclose(measured.area, 1)


def test_spots_and_cells_are_taken_as_they_are(embedded):
    rng = np.random.default_rng(2)
    measured = seen(bins(rng.poisson(rates() * np.exp(0.4 * rng.standard_normal((SIDE, 1))))), embedded)
    assert measured.platform == NO_EFFECTS and measured.collects is measured.overlap
    assert (measured.efficiency == 1).all()


def test_what_was_known_of_the_drift_is_not_sought_again(embedded, monkeypatch):
    monkeypatch.setattr(module, "find_diffusion", None)
    measured = seen(bins(rates(), array=PLACES), embedded, Platform(diffusion_um=8.0))
    assert measured.platform.diffusion_um == 8 and measured.collects.nnz > measured.overlap.nnz


def test_effects_can_be_taken_back(embedded):
    measured = seen(bins(rates()), embedded)
    data = measured.measurement(np.zeros(len(measured.rows), np.int8), 1.5, Recipe())
    assert without_effects(data, measured) is data
    field = np.linspace(0.5, 1.5, len(measured.rows))
    changed, other = with_capture(data, measured, Capture(field, 0.3, 50.0, 1.0, 5.0, True))
    assert other.platform == Platform(capture=0.3)
    np.testing.assert_allclose(changed.depth, 1.5 * field, rtol=1e-6)
    np.testing.assert_allclose(without_effects(changed, other).depth, 1.5, rtol=1e-6)
    blurred = blur(other.overlap, (1, len(other.superpixels)), 1.0)
    assert without_effects(replace(changed, overlap=blurred), other).overlap is measured.overlap
    # What was clear when the model was fitted holds, if it can be told at all.
    unclear, untold = Capture(field, 0.3, 50.0, 1.0, 1.0, False), Capture(field, np.nan, np.nan, 0.0, 0.0, False)
    assert with_capture(data, measured, unclear, known=True)[1].platform == Platform(capture=0.3)
    assert with_capture(data, measured, untold, known=True) == (data, measured)
    for found in (None, Capture(field, 0.3, 50.0, 1.0, 1.0, False)):
        assert with_capture(data, measured, found) == (data, measured)


def test_capture_needs_genes_to_tell_it_from(embedded):
    measured = seen(bins(rates()), embedded)
    data = measured.measurement(np.zeros(len(measured.rows), np.int8), 1.0, Recipe())
    assert find_capture(None, data, measured.centres, torch.device("cpu")) is None
    assert not seeks_capture(Recipe(), measured)
    tiled = replace(measured, gapless=True)
    assert seeks_capture(Recipe(), tiled)
    assert not seeks_capture(Recipe(library_size=True), tiled) and not seeks_capture(PaperRecipe(), tiled)


@pytest.mark.parametrize("kind", ["bins", "some bins", "spots", "doubled columns", "no columns", "no numbers"])
def test_an_array_is_of_bins_that_tile(kind):
    """Spots of a lattice have rows and columns, too, whether columns are counted by ones or by twos."""
    row, column = np.divmod(np.arange(400), 20)
    obs = pd.DataFrame({"array_row": row, "array_col": column}, index=np.arange(400).astype(str))
    step = 1 if "bins" in kind else 4
    flat = step * row * SIDE + step * column
    overlap = csr_array((np.ones(400, np.float32), (np.arange(400), flat)), shape=(400, GRID.size))
    if kind == "doubled columns":
        obs["array_col"] = 2 * column + row % 2
    if kind == "no columns":
        obs = obs[["array_row"]]
    if kind == "no numbers":
        obs["array_col"] = [f"c{i}" for i in column]
    table = AnnData(np.zeros((400, 1)), obs=obs)
    if kind == "some bins":
        kept = np.random.default_rng(0).random(400) < 0.4
        table, overlap, row, column = table[kept], csr_array(overlap[kept]), row[kept], column[kept]
    units = Units(pd.Index(["A"]), csr_array(table.X), overlap)
    found = tiled_array(array_places(table), units, GRID)
    assert (found is not None) == ("bins" in kind)
    if found is not None:
        np.testing.assert_array_equal(found, np.stack([row, column], axis=1))


@pytest.mark.parametrize(("platform", "tiles"), [("visium_hd", True), ("visium", False)])
def test_platforms_are_told_apart(platform, tiles):
    sdata = simulate(platform, size=(1024, 1024), n_genes=2, measured=1.0, rotation=10)
    units = measured_units(sdata, "counts", "he", superpixel_grid(sdata, "he", 0.5))
    assert (units.array is not None) == tiles


def test_gaps_lie_between_the_units(embedded):
    """Every other superpixel of a square has a bin; far from it, nothing was measured."""
    inside = (PLACES > 20).all(axis=1) & (PLACES < 60).all(axis=1) & (PLACES.sum(axis=1) % 2 == 0)
    whole = bins(rates())
    some = Units(whole.genes, whole.counts[inside], whole.overlap[inside])
    measured = measure(embedded, some, np.arange(1), "bins")
    places = PLACES[measured.superpixels[gaps_between(measured, GRID)]]
    assert (places.sum(axis=1) % 2 == 1).all()
    assert (places > 19).all() and (places < 61).all()
    between = TISSUE & (np.indices(TISSUE.shape) > 22).all(axis=0) & (np.indices(TISSUE.shape) < 58).all(axis=0)
    between &= np.indices(TISSUE.shape).sum(axis=0) % 2 == 1
    # Deep inside the square and the tissue none is missed.
    deep = between & (gaussian_filter(TISSUE.astype(float), 2) > 0.999)
    assert set(map(tuple, np.argwhere(deep))) <= set(map(tuple, places))
    assert len(gaps_between(measure(embedded, whole, np.arange(1), "bins"), GRID)) == 0
