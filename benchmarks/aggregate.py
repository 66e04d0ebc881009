"""Time and memory of `tl.aggregate`: 200,000 cells x 500 genes from a slide of 313,600 superpixels."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

import pixel2gene as p2g
from pixel2gene.spatial.elements import RECORDS, image_element, labels_element, table_element
from pixel2gene.spatial.grid import Grid, superpixel_grid

_SIDE = 560  # superpixels
_MPP = 1.0


def prediction(genes: list[str], grid: Grid) -> dict[str, object]:
    """What `tl.predict` writes, of random numbers."""
    rng = np.random.default_rng(0)
    raster = da.random.default_rng(0).random((len(genes), *grid.shape), chunks=(16, 512, 512))
    table = ad.AnnData(
        rng.random((grid.size, len(genes)), np.float32),
        obs=pd.DataFrame(index=np.arange(1, grid.size + 1).astype(str)),
        var=pd.DataFrame(index=genes),
        layers={"sd": rng.random((grid.size, len(genes)), np.float32)},
    )
    return {
        "predicted_map": image_element(raster.astype(np.float16), grid, genes),
        "predicted_superpixels": labels_element(grid.ids(np.ones(grid.shape, bool)), grid),
        "predicted": table_element(table, "predicted_superpixels", np.arange(1, grid.size + 1)),
    }


def cells(n: int) -> gpd.GeoDataFrame:
    """Sixteen-sided cells of radius 3 to 6 µm all over the slide."""
    rng = np.random.default_rng(1)
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    outline = rng.uniform(3, 6, (n, 1, 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outline = (outline + rng.uniform(0, _SIDE * 8, (n, 1, 2))) / _MPP
    return gpd.GeoDataFrame(geometry=shapely.polygons(outline))


def make(n_cells: int, n_genes: int) -> SpatialData:
    """Slide with a prediction and cells."""
    side = int(_SIDE * 8 / _MPP)
    transformations = {"global": Identity(), "micrometers": Scale([_MPP, _MPP], axes=("x", "y"))}
    blank = da.full((3, side, side), 255, dtype=np.uint8, chunks=(3, 1024, 1024))
    sdata = SpatialData(
        images={"he": Image2DModel.parse(blank, dims=("c", "y", "x"), transformations=dict(transformations))},
        shapes={"cells": ShapesModel.parse(cells(n_cells), transformations=dict(transformations))},
    )
    written = prediction([f"GENE{i}" for i in range(n_genes)], superpixel_grid(sdata, "he", _MPP))
    for key, element in written.items():
        sdata[key] = element
    sdata.attrs[RECORDS] = {key: {"verb": "predict", "image_key": "he"} for key in written}
    return sdata


def measure(n_cells: int, n_genes: int) -> dict[str, float]:
    """Aggregate in memory; the raster is lazy, the table of the prediction is in memory before."""
    sdata = make(n_cells, n_genes)
    aggregate = p2g.tl.aggregate  # imports torch
    before = _peak_mb()
    start = time.perf_counter()
    aggregate(sdata, "predicted", "cells", progress=False)
    seconds = round(time.perf_counter() - start, 1)
    return {"cells": n_cells, "genes": n_genes, "seconds": seconds, "peak_rss_mb": _peak_mb(), "mb_before": before}


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Print one table; write it as JSON with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    row = measure(arguments.cells, arguments.genes)
    print(*(f"{name:>12}" for name in row))
    print(*(f"{value:>12}" for value in row.values()))
    if arguments.out:
        arguments.out.write_text(json.dumps([row], indent=2))


if __name__ == "__main__":
    main()
