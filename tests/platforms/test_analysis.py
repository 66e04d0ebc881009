"""scanpy and squidpy take the tables as they are, and find in them what they find in the truth."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
import squidpy as sq
from scipy.cluster.vq import kmeans2
from spatialdata import SpatialData, deepcopy
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

import pixel2gene as p2g

QUIET = {"show_progress_bar": False, "n_jobs": 1}


@pytest.fixture(scope="module")
def finished(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    """Slide with predicted, denoised and aggregated tables."""
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, progress=False)
    p2g.tl.denoise(sdata, fitted_once, progress=False)
    rng = np.random.default_rng(0)
    centres = np.argwhere(np.ones((30, 30))) * 25.0 + 20 + rng.uniform(-5, 5, (900, 2))
    cells = gpd.GeoDataFrame({"radius": rng.uniform(8, 12, 900)}, geometry=shapely.points(centres))
    systems = get_transformation(sdata["he"], get_all=True)
    sdata["cells"] = ShapesModel.parse(cells, transformations=dict(systems))
    p2g.tl.aggregate(sdata, "predicted", "cells", progress=False)
    return sdata


def log_normalised(table: ad.AnnData) -> ad.AnnData:
    sc.pp.normalize_total(table)
    sc.pp.log1p(table)
    return table


def standardised(table: ad.AnnData) -> np.ndarray:
    return (table.X - table.X.mean(axis=0)) / table.X.std(axis=0)


@pytest.mark.parametrize("key", ["predicted", "denoised", "predicted_cells"])
def test_neighbourhoods_are_those_of_the_truth(finished: SpatialData, key: str) -> None:
    sdata = deepcopy(finished)
    # Before it is normalised: the truth is in counts, as the tables are.
    true_counts = p2g.datasets.true_counts(sdata, key)
    table = log_normalised(sdata[key])
    truth = log_normalised(ad.AnnData(np.array(true_counts), obs=table.obs[[]], var=table.var[[]]))
    sc.pp.pca(table, n_comps=10)
    sc.pp.neighbors(table)
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False)
    assert table.obs["leiden"].nunique() > 1

    # Kinds of tissue in the truth, and the kind that each unit is most like by the table.
    expected = standardised(truth)
    _, kinds = kmeans2(expected, 6, seed=0, minit="++")
    centroids = np.stack([expected[kinds == kind].mean(axis=0) for kind in range(6)])
    nearest = np.square(standardised(table)[:, None] - centroids).sum(axis=2).argmin(axis=1)
    table.obs["found"], table.obs["true"] = (pd.Categorical(one, categories=range(6)) for one in (nearest, kinds))

    if key == "predicted":
        element = {"elements_to_coordinate_systems": {"predicted_superpixels": "global"}, "table_key": key}
        sq.gr.spatial_neighbors_grid(sdata, n_neighs=4, **element)
    elif key == "denoised":
        # From SpatialData squidpy takes the places of all bins, and those off the tissue have no row.
        sq.gr.spatial_neighbors_grid(table, n_neighs=4)
    else:
        sq.gr.spatial_neighbors_delaunay(table)
    scores = []
    for name in ("found", "true"):
        sq.gr.nhood_enrichment(sdata, cluster_key=name, table_key=key, n_perms=50, seed=0, **QUIET)
        scores.append(table.uns[f"{name}_nhood_enrichment"]["zscore"].ravel())
    # Kinds that no unit is of have no score.
    scored = np.isfinite(scores).all(axis=0)
    assert scored.mean() > 0.6
    assert np.corrcoef(np.array(scores)[:, scored])[0, 1] > 0.7

    sq.gr.co_occurrence(table, cluster_key="found", interval=np.linspace(1, 400, 5))
    assert np.isfinite(table.uns["found_co_occurrence"]["occ"]).any()
    genes = table.var_names[:4].tolist()
    sq.gr.spatial_autocorr(sdata, table_key=key, mode="moran", genes=genes, n_perms=None, n_jobs=1)
    assert table.uns["moranI"]["I"].max() > 0.2
    pairs = [tuple(genes[:2]), tuple(genes[2:])]
    found = sq.gr.ligrec(table, "leiden", interactions=pairs, use_raw=False, n_perms=10, copy=True, **QUIET)
    assert found["means"].shape[0] == 2
