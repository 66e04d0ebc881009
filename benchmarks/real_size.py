"""Is every number sound at the size of real slides, at every seed? Totals, single units, infinities, held-out counts.

uv run python benchmarks/real_size.py mouse --seeds 20
uv run python benchmarks/real_size.py mouse --seeds 5 --genes 1000 --library-size
uv run python benchmarks/real_size.py rare --seeds 5 --side 560

`mouse` is a whole real Visium slide, in the folder that PIXEL2GENE_DATA names or ../shared/data; half of its counts
are fitted, unless --full, and the other half scores what is made of them. `rare` has as many different superpixels as
--side squared, of many rare morphologies, so that latents have tails as on real slides, under bins or spots.
"""

from __future__ import annotations

import json
import os
import resource
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import geopandas as gpd
import numpy as np
import shapely
import torch
import typer
from large import rare_slide
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array, csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

import pixel2gene as p2g
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement

app = typer.Typer(add_completion=False, help=__doc__)
Out = Annotated[Path | None, typer.Option(help="JSON to write.")]
Seeds = Annotated[int, typer.Option(help="How many.")]
MOUSE_MPP, SPOT_UM, BATCH = 4.20927, 55.0, 50


@app.command()
def mouse(
    seeds: Seeds = 20, first: int = 0, genes: int = 300, full: bool = False, library_size: bool = False, out: Out = None
) -> None:
    """The real slide; explained: deviance of the other half of the counts, by X and by expected."""
    counts, sdata = read_mouse()
    names = variable_genes(counts, genes)
    rows = []
    for seed in range(first, first + seeds):
        other = put_counts(sdata, counts, names, None if full else seed)
        rows.append({"seed": seed} | row_of(sdata, seed, other, library_size=library_size))
        print(json.dumps(rows[-1]), flush=True)
    finish(rows, out)


@app.command()
def rare(
    seeds: Seeds = 5, first: int = 0, side: int = 560, genes: int = 100, spots: bool = False, out: Out = None
) -> None:
    """Simulated slides of side x side different superpixels."""
    rows = []
    for seed in range(first, first + seeds):
        sdata = rare_slide(side, genes, spots=spots, seed=seed)
        rows.append({"seed": seed} | row_of(sdata, seed, None))
        print(json.dumps(rows[-1]), flush=True)
    finish(rows, out)


def read_mouse(left: int = 0) -> tuple[ad.AnnData, SpatialData]:
    """Counts, and an embedded slide to put them on; `left` pixels are cut off."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PIXEL2GENE_DATA", shared)) / "visium_mouse_brain"
    counts = ad.read_h5ad(folder / "counts.h5ad")
    counts.obsm["spatial"] = counts.obsm["spatial"] - (left, 0)
    counts = counts[counts.obsm["spatial"][:, 0] > SPOT_UM / MOUSE_MPP].copy()
    circles = gpd.GeoDataFrame(
        {"radius": np.full(counts.n_obs, SPOT_UM / 2 / MOUSE_MPP)},
        geometry=shapely.points(counts.obsm["spatial"]),
        index=np.arange(counts.n_obs),
    )
    pixels = np.moveaxis(np.asarray(Image.open(folder / "hires.png"))[:, left:, :3], -1, 0)
    same = {"global": Identity()}
    sdata = SpatialData.init_from_elements(
        {
            "he": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=same),
            "spots": ShapesModel.parse(circles, transformations=same),
        }
    )
    p2g.tl.tissue(sdata, "he", mpp=MOUSE_MPP, force=True, progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    return counts, sdata


def put_counts(sdata: SpatialData, counts: ad.AnnData, names: list[str], halved: int | None) -> csr_array | None:
    """Put the counts of some genes on the slide, or half of them by the seed `halved`; the other half."""
    part = counts.X.tocsr().astype(np.int64)
    if halved is not None:
        part.data = np.random.default_rng([halved, 1]).binomial(part.data, 0.5)
    table = ad.AnnData(part.astype(np.float32), obs=counts.obs.copy(), var=counts.var.copy())[:, names].copy()
    table.obs["region"], table.obs["spot"] = "spots", np.arange(table.n_obs)
    table.obs["region"] = table.obs["region"].astype("category")
    if "counts" in sdata.tables:
        del sdata.tables["counts"]
    sdata["counts"] = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    if halved is None:
        return None
    return csr_array(counts.X.astype(np.int64) - part)[:, counts.var_names.get_indexer(names)]


def variable_genes(counts: ad.AnnData, number: int) -> list[str]:
    """Genes of the largest variance of log-normalised counts."""
    total = np.asarray(counts.X.sum(axis=1)).ravel()
    log = csr_matrix(csr_matrix(counts.X.astype(np.float32)).multiply(1e4 / total[:, None]))
    log.data = np.log1p(log.data)
    mean = np.asarray(log.mean(axis=0)).ravel()
    variance = np.asarray(log.multiply(log).mean(axis=0)).ravel() - mean**2
    return [counts.var_names[i] for i in sorted(np.argsort(-variance)[:number])]


def row_of(sdata: SpatialData, seed: int, other: csr_array | None, **options: Any) -> dict[str, Any]:
    """Fit, predict, denoise and aggregate, and look at all that comes of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        model = p2g.tl.fit(sdata, "counts", image_key="he", seed=seed, progress=False, **options)
        fit_s = time.perf_counter() - start
        start = time.perf_counter()
        p2g.tl.denoise(sdata, model, overwrite=True, progress=False)
        denoise_s = time.perf_counter() - start
        p2g.tl.predict(sdata, model, lazy=True, overwrite=True, progress=False)
    told = [
        str(one.message)[:120] for one in said if issubclass(one.category, UserWarning) and one.filename == __file__
    ]
    embedded = open_for_model(sdata, model, None, None)
    part, _, measured = measure_for_model(sdata, model, embedded, None, None)
    cpu = torch.device("cpu")
    data, _ = slide_measurement(part, embedded, measured, None, cpu)
    y = data.counts.toarray().astype(np.float64)
    # What the noise of counting allows a unit to have had.
    allowed = y + 4 * np.sqrt(y) + 8
    row: dict[str, Any] = {"fit_s": fit_s, "denoise_s": denoise_s, "told": told}
    levels, largest, finite = [], [], True
    for member in range(model.network.architecture.members):
        total, most = np.zeros(y.shape[1]), np.zeros(y.shape[1])
        for units in np.array_split(np.arange(len(y)), max(len(y) // 4000, 1)):
            mean = expected_of(model, data, units, member)
            total += mean.sum(axis=0)
            most = np.maximum(most, mean.max(axis=0))
            finite &= bool(np.isfinite(mean).all())
        levels.append(total / y.sum(axis=0))
        largest.append(most / allowed.max(axis=0))
    row |= spread("member_total", np.stack(levels)) | {"member_largest": float(np.max(largest))}
    table = sdata["denoised"]
    results = {"x": np.asarray(table.X), "expected": np.asarray(table.layers["expected"])}
    # Of spots and other units apart, what a prediction has on their area.
    if data.area.mean() > 2:
        results["aggregated"] = aggregated(sdata, model)
    for name, values in results.items():
        row |= spread(f"{name}_total", values.sum(axis=0, dtype=np.float64) / y.sum(axis=0))
        row[f"{name}_largest"] = float((values.max(axis=0) / allowed.max(axis=0)).max())
        finite &= bool(np.isfinite(values).all())
        if other is not None and name != "aggregated":
            row[f"{name}_explained"] = explained(values, other[measured.rows].toarray(), data)
    inside = np.asarray(sdata["denoised_map"].values)
    finite &= not np.isinf(inside).any() and bool(np.isfinite(inside[:, np.isfinite(inside[0])]).all())
    return row | {"finite": finite, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def expected_of(model: p2g.Model, data: Any, units: NDArray[np.intp], member: int) -> NDArray[np.float64]:
    """(units, genes) counts that a member expects."""
    overlap = csr_array(data.overlap[units])
    used, columns = np.unique(overlap.indices, return_inverse=True)
    with torch.inference_mode():
        rate = model.network.rates(torch.from_numpy(data.features[used]), slice(member, member + 1))[0].numpy()
    shares = csr_array((overlap.data, columns, overlap.indptr), (len(units), len(used)))
    return data.depth[units, None].astype(np.float64) * (shares @ rate)


def aggregated(sdata: SpatialData, model: p2g.Model) -> NDArray[np.float64]:
    """(units, genes) of the lazy prediction, some genes at a time."""
    shapes = sdata["counts"].obs["region"].iloc[0]
    parts = []
    for first in range(0, len(model.genes), BATCH):
        some = model.genes[first : first + BATCH]
        p2g.tl.aggregate(sdata, "predicted", shapes, genes=some, key_added="at_units", overwrite=True, progress=False)
        parts.append(np.asarray(sdata["at_units"].to_df()[some], np.float64))
    return np.concatenate(parts, axis=1)


def explained(mean: NDArray[np.floating], counts: NDArray[np.integer], data: Any) -> float:
    """Poisson deviance explained, against one rate per gene."""
    exposure = data.area * data.depth
    null = counts.sum(axis=0) / exposure.sum() * exposure[:, None]
    each = [
        2 * (np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / m), 0) - counts + m).sum()
        for m in (np.maximum(np.float64(mean), 1e-8), np.maximum(null, 1e-8))
    ]
    return float(1 - each[0] / each[1])


def spread(name: str, values: NDArray[np.floating]) -> dict[str, float]:
    """Least and most."""
    return {f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}


def finish(rows: list[dict[str, Any]], out: Path | None) -> None:
    """The worst of all seeds, and JSON."""
    worst = {
        name: (min if name.endswith(("_min", "_explained")) else max)(row[name] for row in rows)
        for name, value in rows[0].items()
        if isinstance(value, float)
    }
    print(f"worst of {len(rows)} seeds:")
    for name, value in worst.items():
        print(f"  {name:24} {value:.4g}")
    print(f"  all finite: {all(row['finite'] for row in rows)}; told: {[row['told'] for row in rows if row['told']]}")
    if out is not None:
        out.write_text(json.dumps({"rows": rows, "worst": worst}, indent=1))


if __name__ == "__main__":
    app()
