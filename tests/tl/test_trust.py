"""How far each prediction can be trusted: unfamiliar tissue, and genes that cannot be read off the H&E."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import pixel2gene as p2g
from pixel2gene.core.paper import PaperRecipe
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.geometry import raster_levels

MPP = 0.5


@pytest.fixture(scope="module")
def model(embedded_once: SpatialData) -> p2g.Model:
    return fitted(embedded_once, Recipe(max_checks=2))


def fitted(sdata: SpatialData, recipe: Recipe | PaperRecipe) -> p2g.Model:
    genes = sdata["counts"].var_names[:6].tolist()
    return p2g.tl.fit(sdata, "counts", image_key="he", genes=genes, recipe=recipe, progress=False)


def picture(sdata: SpatialData) -> NDArray[np.uint8]:
    return np.asarray(raster_levels(sdata["he"])[0].data)


def predicted(image: NDArray[np.uint8], model: p2g.Model) -> SpatialData:
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    p2g.tl.tissue(sdata, "he", mpp=MPP, progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    p2g.tl.predict(sdata, model, progress=False)
    return sdata


def test_raster_and_table_tell_the_same(embedded: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(embedded, model, progress=False)
    raster, table = embedded["predicted_trust"], embedded["predicted"]
    assert raster.dims == ("c", "y", "x")
    assert raster.c.values.tolist() == ["trust"]
    assert raster.dtype == np.float16
    values, ids = raster.values.ravel(), table.obs["instance_id"].to_numpy() - 1
    np.testing.assert_allclose(values[ids], table.obs["trust"], rtol=1e-3, atol=1e-6)
    assert np.isnan(np.delete(values, ids)).all()
    assert table.obs["trust"].between(0, 1).all()


def test_measured_tissue_is_familiar(embedded: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(embedded, model, progress=False)
    table = embedded["predicted"]
    measured = table.obsm["spatial"][:, 0] < embedded["counts"].obsm["spatial"][:, 0].max()
    # More so than what is held out in large regions, of which this small slide has six.
    assert 0.5 < table.obs["trust"][measured].mean() < 0.95
    assert table.obs["trust"][~measured].mean() > 0.1


def test_chunks_do_not_matter(embedded: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(embedded, model, progress=False)
    embedded["he_embedding"] = embedded["he_embedding"].chunk({"y": 11, "x": 17})
    p2g.tl.predict(embedded, model, key_added="again", progress=False)
    np.testing.assert_allclose(embedded["again"].obs["trust"], embedded["predicted"].obs["trust"], atol=1e-4)


@pytest.mark.parametrize("kind", ["pen", "blur", "fold"])
def test_artefacts_are_found(embedded_once: SpatialData, model: p2g.Model, kind: str) -> None:
    image, mask = p2g.datasets.plant_artefact(picture(embedded_once), kind, mpp=MPP, seed=1)
    trust = predicted(image, model)["predicted_trust"].values[0].astype(np.float32)
    share = mask.reshape(48, 16, 48, 16).mean(axis=(1, 3))
    tissue = np.isfinite(trust)
    spoilt, untouched = trust[tissue & (share >= 0.5)], trust[tissue & (share == 0)]
    assert len(spoilt) > 40
    assert mannwhitneyu(untouched, spoilt).statistic / len(spoilt) / len(untouched) > 0.95
    assert np.median(spoilt) < 0.05 < 0.2 < np.median(untouched)


def test_another_stain_of_the_whole_slide_is_found(embedded_once: SpatialData, model: p2g.Model) -> None:
    """Though the embedding that the network reads is standardised within the slide."""
    image, _ = p2g.datasets.plant_artefact(picture(embedded_once), "stain", seed=1)
    assert predicted(image, model)["predicted"].obs["trust"].mean() < 0.01


def test_the_published_recipe_knows_it_too(embedded: SpatialData, model: p2g.Model) -> None:
    paper = fitted(embedded, PaperRecipe(epochs=1))
    p2g.tl.predict(embedded, paper, progress=False)
    p2g.tl.predict(embedded, model, key_added="default", progress=False)
    # The embedding is the same, the folds are not.
    found, other = (embedded[key].obs["trust"] for key in ("predicted", "default"))
    assert np.corrcoef(found, other)[0, 1] > 0.9


def test_trust_of_another_result_is_kept(embedded: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(embedded, model, progress=False)
    del embedded["predicted"], embedded["predicted_map"], embedded["predicted_superpixels"]
    with pytest.raises(ValueError, match=r"\['predicted_trust'\] exist already"):
        p2g.tl.predict(embedded, model, progress=False)


def test_min_score_leaves_genes_out(embedded: SpatialData, model: p2g.Model) -> None:
    scores = model.scores["pearson"].sort_values()
    least = scores.iloc[2]
    p2g.tl.predict(embedded, model, min_score=least, progress=False)
    kept = [gene for gene in model.genes if scores[gene] >= least]
    assert embedded["predicted"].var_names.tolist() == kept
    assert embedded["predicted_map"].c.values.tolist() == kept
    assert len(kept) == 4
    asked = [scores.index[4], scores.index[0], scores.index[3]]
    p2g.tl.predict(embedded, model, genes=asked, min_score=least, key_added="asked", progress=False)
    assert embedded["asked"].var_names.tolist() == [asked[0], asked[2]]
    np.testing.assert_allclose(embedded["asked"].X, embedded["predicted"][:, [asked[0], asked[2]]].X, rtol=1e-5)


def test_min_score_that_no_gene_reaches(embedded: SpatialData, model: p2g.Model) -> None:
    best = model.scores["pearson"].max()
    with pytest.raises(ValueError, match=rf"None of the 6 genes .* min_score=0.99; the best has {best:.3f}"):
        p2g.tl.predict(embedded, model, min_score=0.99, progress=False)
    unknown = model.scores.assign(pearson=np.nan)
    with pytest.raises(ValueError, match="the best has nan"):
        p2g.tl.predict(embedded, replace(model, scores=unknown), min_score=0, progress=False)
    assert "predicted" not in embedded


def test_genes_of_nan_score_are_left_out(embedded: SpatialData, model: p2g.Model) -> None:
    scores = model.scores.copy()
    scores.loc[model.genes[0], "pearson"] = np.nan
    p2g.tl.predict(embedded, replace(model, scores=scores), min_score=-1, progress=False)
    assert embedded["predicted"].var_names.tolist() == model.genes[1:]
