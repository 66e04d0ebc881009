"""Time of each plot on a large slide in a store: reading, drawing and rendering, in seconds.

uv run python benchmarks/plots.py --side 814
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import dask.array as da
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from large import MPP, embedded_slide
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import pixel2gene as p2g
from pixel2gene.spatial.elements import RECORDS, image_element, labels_element, table_element
from pixel2gene.spatial.grid import Grid, superpixel_grid

_GENES = 20
_CLUSTERS = 12
_LEVELS = (2, 2, 2, 2)


def results(grid: Grid) -> dict[str, Any]:
    """What predict and denoise write, of random numbers."""
    rng = np.random.default_rng(0)
    genes = [f"GENE{i}" for i in range(_GENES)]
    raster = da.random.default_rng(0).gamma(1, 2, (_GENES, *grid.shape), chunks=(16, 512, 512)).astype(np.float16)
    values = rng.gamma(1, 2, (grid.size, _GENES)).astype(np.float32)
    table = ad.AnnData(values, var=pd.DataFrame(index=genes), layers={"sd": values / 3})
    table.obs["leiden"] = pd.Categorical(rng.integers(0, _CLUSTERS, grid.size).astype(str))
    return {
        "he_tissue": labels_element(np.ones(grid.shape, np.uint8), grid),
        "denoised_map": image_element(raster, grid, genes),
        "predicted_map": image_element(raster, grid, genes),
        "predicted_trust": image_element(rng.random((1, *grid.shape), np.float32), grid, ["trust"]),
        "predicted_superpixels": labels_element(grid.ids(np.ones(grid.shape, bool)), grid),
        "predicted": table_element(table, "predicted_superpixels", np.arange(1, grid.size + 1)),
    }


def make(side: int, folder: str) -> SpatialData:
    """Slide of `side` x `side` superpixels with bins, an embedding and results, in a store."""
    sdata, _ = embedded_slide(side, _GENES)
    grid = superpixel_grid(sdata, "he", MPP)
    for key, element in results(grid).items():
        sdata[key] = element
    sdata.attrs[RECORDS] |= {"he_tissue": {"verb": "tissue", "mpp": MPP}}
    counts = sdata["counts"]
    counts.obs["leiden"] = pd.Categorical(np.random.default_rng(1).integers(0, _CLUSTERS, len(counts)).astype(str))
    systems = dict(get_transformation(sdata["he"], get_all=True))
    picture = sdata["he"].data.rechunk((3, 2048, 2048))
    sdata["he"] = Image2DModel.parse(picture, dims=("c", "y", "x"), scale_factors=_LEVELS, transformations=systems)
    path = Path(folder) / "slide.zarr"
    sdata.write(path)
    return read_zarr(path)


def timed(draw: Callable[[], Any]) -> float:
    """Seconds until the figure is rendered."""
    start = time.perf_counter()
    axes = np.ravel(draw())
    axes[0].figure.canvas.draw()
    seconds = time.perf_counter() - start
    plt.close("all")
    return round(seconds, 2)


def main(side: int = 814, out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None) -> None:
    """Print one table."""
    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as folder:
        sdata = make(side, folder)
        middle = side * 8 / MPP / 2
        crop = (middle, middle, middle + 2000, middle + 1500)
        plots: dict[str, Callable[..., Any]] = {
            "tissue": lambda **part: p2g.pl.tissue(sdata, **part),
            "embedding": lambda **part: p2g.pl.embedding(sdata, **part),
            "expression": lambda **part: p2g.pl.expression(sdata, "GENE3", min_trust=0.1, **part),
            "trust": lambda **part: p2g.pl.trust(sdata, **part),
            "clusters of superpixels": lambda **part: p2g.pl.clusters(sdata, "predicted", "leiden", **part),
            "clusters of bins": lambda **part: p2g.pl.clusters(sdata, "counts", "leiden", **part),
        }
        plt.subplots()[0].canvas.draw()  # fonts
        rows = [
            {"plot": name, "whole_s": timed(draw), "crop_s": timed(lambda draw=draw: draw(crop=crop))}
            for name, draw in plots.items()
        ]
    print(f"{side**2} superpixels and bins, {round(side * 8 / MPP)} px")
    print(pd.DataFrame(rows).to_string(index=False))
    if out is not None:
        out.write_text(json.dumps({"side": side, "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
