"""A slide as the model sees it."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_array, random_array
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.model import Model, TrainingSlide
from pixel2gene.core.regression import History, Recipe, predict_units
from pixel2gene.core.trust import fit_familiarity
from pixel2gene.spatial.elements import image_element, labels_element, table_element, write_elements
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.grid import Grid, superpixel_grid
from pixel2gene.spatial.measured import TISSUE_SHARE, measure
from pixel2gene.spatial.modelled import (
    held_out_fold,
    measure_for_model,
    open_for_model,
    require_same_embedding,
    slide_measurement,
    training_slide,
)
from pixel2gene.spatial.units import Units

SHAPE = (20, 30)
CHANNELS = 4
GENES = ["A", "B", "C"]
ENCODER = {"name": "lite0", "channels": CHANNELS, "mpp": 0.5, "weights_sha256": "f00"}
RECORD = {"verb": "embed", "image_key": "he", "mpp": 0.5, "fingerprint": "abc", "encoder": ENCODER}


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    # Some tissue superpixels have a channel that is zero.
    noise = rng.normal(size=(CHANNELS, *SHAPE)) * (rng.random((CHANNELS, *SHAPE)) < 0.8)
    noise[0] += 10
    return (noise * (rng.random(SHAPE) < 0.5)).astype(np.float16)


@pytest.fixture(scope="module")
def embedded(values):
    return Embedded(RECORD, Grid(SHAPE, 16.0, {"global": Identity()}), da.from_array(values, chunks=(-1, 7, 11)))


@pytest.fixture(scope="module")
def units():
    """Of 3 x 3 superpixels each, and of all genes."""
    rng = np.random.default_rng(1)
    blocks = [(y, x) for y in range(0, 18, 3) for x in range(0, 30, 3)]
    overlap = np.zeros((len(blocks), *SHAPE), np.float32)
    for unit, (y, x) in enumerate(blocks):
        overlap[unit, y : y + 3, x : x + 3] = rng.uniform(0.2, 1, (3, 3))
    counts = csr_array(rng.poisson(4, (len(blocks), 3)).astype(np.float32))
    return Units(pd.Index(GENES), counts, csr_array(overlap.reshape(len(blocks), -1)))


def model_of(slides=(), library_size=False, genes=GENES, **inputs):
    network = Ensemble(Architecture(3, CHANNELS, len(genes), (5,), 0, 0), torch.Generator().manual_seed(0)).eval()
    return Model(
        genes=list(genes),
        encoder=ENCODER,
        inputs={"image_key": "he", "embedding_key": None, "table_key": "table", "layer": None, **inputs},
        recipe=Recipe(folds=3, library_size=library_size),
        network=network,
        slides=list(slides),
        scores=pd.DataFrame({"pearson": np.ones(len(genes))}, index=pd.Index(list(genes), name="gene")),
        history=History(),
        version="1",
        familiarity=fit_familiarity(np.random.default_rng(0).normal(size=(60, 30)), np.arange(60) % 3),
    )


def standardised(values):
    """(superpixels, channels) of the tissue."""
    inside = values[:, (values != 0).any(axis=0)].T.astype(np.float64)
    return (inside - inside.mean(axis=0)) / inside.std(axis=0)


def test_tissue_is_that_of_the_raster_standardised(values, embedded):
    index, features = embedded.tissue()
    np.testing.assert_array_equal(index, np.flatnonzero((values != 0).any(axis=0)))
    np.testing.assert_allclose(features, standardised(values), atol=5e-3)
    assert features.dtype == np.float16


def test_tissue_within_a_mask_is_standardised_as_the_whole(embedded):
    within = np.zeros(SHAPE, bool)
    within[3:9, 10:25] = True
    index, features = embedded.tissue()
    kept = within.ravel()[index]
    some, found = embedded.tissue(within)
    np.testing.assert_array_equal(some, index[kept])
    np.testing.assert_array_equal(found, features[kept])


def test_blocks_come_apart(values, embedded):
    seen = []
    row = np.cumsum((values != 0).any(axis=0).ravel()) - 1
    for index, raw, features in embedded.blocks():
        np.testing.assert_array_equal(raw, values.reshape(CHANNELS, -1)[:, index].T)
        np.testing.assert_allclose(features, standardised(values)[row[index]], atol=5e-3)
        seen += index.tolist()
    assert len(seen) == len(set(seen)) == (values != 0).any(axis=0).sum()
    assert len(list(embedded.blocks())) == 9


def test_another_stain_makes_no_difference(values, embedded):
    """One that scales and shifts the channels."""
    inside = (values != 0).any(axis=0)
    stained = (values * 0.5 + np.arange(1, CHANNELS + 1)[:, None, None]) * inside
    other = Embedded(RECORD, embedded.grid, da.from_array(stained.astype(np.float16), chunks=(-1, 7, 11)))
    np.testing.assert_allclose(other.tissue()[1], embedded.tissue()[1], atol=2e-2)


def test_constant_channel_stays_finite(values, embedded):
    constant = values.copy()
    constant[1] = np.where((values != 0).any(axis=0), 3, 0)
    _, features = Embedded(RECORD, embedded.grid, da.from_array(constant, chunks=-1)).tissue()
    np.testing.assert_array_equal(features[:, 1], 0)


def test_units_off_tissue_are_dropped(values, embedded, units):
    found = measure(embedded, units, np.array([2, 0]), "table")
    inside = (values != 0).any(axis=0).ravel()
    dense = units.overlap.toarray()
    share = dense[:, inside].sum(axis=1) / dense.sum(axis=1)
    kept = share >= TISSUE_SHARE
    assert 5 < kept.sum() < len(kept) - 5
    np.testing.assert_array_equal(found.rows, np.flatnonzero(kept))
    np.testing.assert_allclose(found.overlap.toarray(), dense[kept][:, inside], rtol=1e-6)
    counts = units.counts.toarray()[kept]
    np.testing.assert_array_equal(found.counts.toarray(), counts[:, [2, 0]])
    np.testing.assert_array_equal(found.totals, counts.sum(axis=1))
    np.testing.assert_array_equal(found.superpixels, np.flatnonzero(inside))
    np.testing.assert_allclose(found.area, dense[kept][:, inside].sum(axis=1), rtol=1e-5)
    assert found.density == pytest.approx(counts.sum() / dense[kept][:, inside].sum())
    np.testing.assert_allclose(
        found.centres, (dense @ embedded.grid.centres / dense.sum(axis=1)[:, None])[kept], rtol=1e-5
    )


def test_nothing_on_tissue_or_no_counts_is_refused(values, embedded, units):
    outside = np.flatnonzero(~(values != 0).any(axis=0))[:5]
    away = csr_array((np.ones(5), (np.arange(5), outside)), shape=(5, embedded.grid.size))
    message = "None of the 5 units of 'bins' lies on the tissue of image 'he' and has counts"
    with pytest.raises(ValueError, match=message):
        measure(embedded, Units(units.genes, units.counts[:5], away), np.arange(3), "bins")
    with pytest.raises(ValueError, match="None of the 60 units"):
        measure(embedded, Units(units.genes, csr_array((60, 3)), units.overlap), np.arange(3), "bins")


@pytest.mark.parametrize("library_size", [False, True])
def test_measurement(embedded, units, library_size):
    measured = measure(embedded, units, np.arange(3), "table")
    fold = np.zeros(len(measured.rows), np.int8)
    data = measured.measurement(fold, 0.7, Recipe(library_size=library_size))
    expected = measured.totals / measured.area / measured.density if library_size else 1.0
    np.testing.assert_allclose(data.depth, np.broadcast_to(0.7 * expected, fold.shape), rtol=1e-5)
    assert data.depth.dtype == np.float32
    cells = [tuple(cell) for cell in (measured.centres // 4).astype(int)]
    assert len(set(zip(cells, data.patch.tolist(), strict=True))) == len(set(cells)) == len(set(data.patch))


def test_held_out_fold():
    fold = np.array([[0, 1, 2], [2, -1, 0]], np.int8)
    slide = TrainingSlide("abc", "a", 1.0, fold, 8)
    centres = np.array([[0.5, 0.5], [7.9, 7.9], [8, 0], [23, 15], [9, 9], [3, 8.1]])
    assert held_out_fold(slide, centres).tolist() == [0, 0, 1, 0, -1, 2]
    assert held_out_fold(None, centres).tolist() == [-1] * 6


def test_a_slide_is_known_by_its_fingerprint(embedded):
    slides = [TrainingSlide(name, name, 1.0, np.zeros((1, 1), np.int8), 64) for name in ("xyz", "abc")]
    assert training_slide(model_of(slides), embedded) is slides[1]
    assert training_slide(model_of(slides[:1]), embedded) is None


def test_of_a_training_slide_depth_and_folds_are_known(embedded, units):
    fold = (np.arange(12).reshape(3, 4) % 3).astype(np.int8)
    model = model_of([TrainingSlide("abc", "a", 0.25, fold, 8)])
    measured = measure(embedded, units, np.arange(3), "table")
    data, _ = slide_measurement(model, embedded, measured, None, torch.device("cpu"))
    np.testing.assert_array_equal(data.depth, 0.25)
    x, y = (measured.centres // 8).astype(int).T
    np.testing.assert_array_equal(data.fold, fold[y, x])


@pytest.mark.parametrize("library_size", [False, True])
def test_a_new_slide_is_as_deep_as_its_counts_say(embedded, units, library_size):
    model = model_of(library_size=library_size)
    measured = measure(embedded, units, np.arange(3), "table")
    data, _ = slide_measurement(model, embedded, measured, None, torch.device("cpu"))
    assert (data.fold == -1).all()
    predicted = sum(mean.sum() for _, mean in predict_units(model.network, data, torch.device("cpu"), held_out=False))
    assert predicted == pytest.approx(measured.counts.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet"}, "name: model lite0, embedding resnet"),
        ({"weights_sha256": "beef"}, "weights_sha256: model f00, embedding beef"),
        ({"channels": 9, "mpp": 1.0}, "channels: model 4, embedding 9; mpp: model 0.5, embedding 1.0"),
    ],
)
def test_another_embedding_is_refused_by_name(embedded, change, message):
    require_same_embedding(model_of(), embedded)
    other = Embedded({**RECORD, "encoder": {**ENCODER, **change}}, embedded.grid, embedded.values)
    with pytest.raises(ValueError, match=f"does not fit the embedding of image 'he' .{message}.: embed the image with"):
        require_same_embedding(model_of(), other)


@pytest.fixture(scope="module")
def sdata(values):
    image = Image2DModel.parse(
        np.zeros((3, 320, 480), np.uint8), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    made = SpatialData(images={"he": image})
    grid = superpixel_grid(made, "he", 0.5)
    names = [f"lite0_{i}" for i in range(CHANNELS)]
    for key in ("he_embedding", "mine"):
        write_elements(made, {key: image_element(values, grid, names)}, RECORD, progress=False, label="embed")
    made["bins"] = labels_element(grid.ids(np.ones(SHAPE, bool)), grid)
    counts = random_array((grid.size, 5), density=0.5, rng=np.random.default_rng(0), format="csr")
    counts.data = np.ceil(counts.data * 5)
    table = AnnData(counts.tocsr(), var=pd.DataFrame(index=["C", "X", "A", "B", "Y"]))
    table.layers["double"] = 2 * table.X
    made["table"] = table_element(table, "bins", np.arange(1, grid.size + 1))
    return made


def test_the_embedding_of_an_image(sdata, values):
    found = open_embedding(sdata, "he")
    assert found.image_key == "he" and found.grid.shape == SHAPE
    np.testing.assert_array_equal(found.values, values)
    assert open_embedding(sdata, "he", "mine").record == RECORD
    with pytest.raises(KeyError, match="No 'she_embedding' written by pixel2gene.tl.embed"):
        open_embedding(sdata, "she")


def test_a_model_looks_where_it_was_trained_unless_told_otherwise(sdata):
    assert open_for_model(sdata, model_of(), None, None).image_key == "he"
    assert open_for_model(sdata, model_of(image_key="other"), "he", None).image_key == "he"
    with pytest.raises(KeyError, match="'nowhere'"):
        open_for_model(sdata, model_of(embedding_key="nowhere"), None, None)
    assert open_for_model(sdata, model_of(embedding_key="nowhere"), "he", None).image_key == "he"
    assert open_for_model(sdata, model_of(embedding_key="nowhere"), None, "mine").image_key == "he"


def test_counts_come_in_the_order_of_the_models_genes(sdata):
    embedded = open_embedding(sdata, "he")
    _, units, measured = measure_for_model(sdata, model_of(), embedded, None, None)
    counts = sdata["table"].to_df()
    np.testing.assert_array_equal(measured.counts.toarray(), counts[GENES].to_numpy()[measured.rows])
    np.testing.assert_array_equal(measured.totals, counts.to_numpy()[measured.rows].sum(axis=1))
    assert len(measured.rows) == len(measured.superpixels) < units.counts.shape[0]
    for model, table, layer in [(model_of(layer="double"), None, None), (model_of(), None, "double")]:
        double = measure_for_model(sdata, model, embedded, table, layer)[2]
        np.testing.assert_array_equal(double.counts.toarray(), 2 * measured.counts.toarray())
    plain = measure_for_model(sdata, model_of(layer="double"), embedded, "table", None)[2]
    np.testing.assert_array_equal(plain.counts.toarray(), measured.counts.toarray())


def test_genes_that_were_not_measured_are_left_out(sdata):
    model, embedded = model_of(genes=["P", "A", "Q", "C"]), open_embedding(sdata, "he")
    part, _, measured = measure_for_model(sdata, model, embedded, None, None)
    assert part.genes == ["A", "C"]
    np.testing.assert_array_equal(
        measured.counts.toarray(), sdata["table"].to_df()[["A", "C"]].to_numpy()[measured.rows]
    )
    features = torch.from_numpy(measured.features)
    torch.testing.assert_close(part.network(features), model.network(features)[..., [1, 3]])
    with pytest.raises(KeyError, match=r"None of the model's 2 genes is in 'table': the model has \['P', 'Q'\]"):
        measure_for_model(sdata, model_of(genes=["P", "Q"]), embedded, None, None)


def test_an_unmeasured_gene_is_an_empty_column(embedded, units):
    whole, part = (measure(embedded, units, np.array(genes), "table") for genes in ([0, 2], [0, -1, 2]))
    np.testing.assert_array_equal(part.counts.toarray()[:, [0, 2]], whole.counts.toarray())
    assert part.counts[:, [1]].nnz == 0
    np.testing.assert_array_equal(part.totals, whole.totals)
