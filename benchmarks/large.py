"""Slides of any size for the benchmarks of speed and memory: a small simulated slide, mirrored over and over."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from scipy.sparse import csr_matrix, vstack
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import pixel2gene as p2g
from pixel2gene.core.ensemble import Architecture, Ensemble
from pixel2gene.core.regression import History, Recipe
from pixel2gene.core.trust import fit_familiarity
from pixel2gene.spatial.elements import RECORDS, image_element, labels_element
from pixel2gene.spatial.geometry import raster_levels
from pixel2gene.spatial.grid import superpixel_grid
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import TILE, fingerprint

MPP = 0.5
SEED_SIDE = 1024  # px
_COMPONENTS = 12
_ROWS = 2_000


def large_image(side: int, chunk: int = SEED_SIDE) -> SpatialData:
    """Lazy H&E of `side` x `side` px at 0.5 µm/px, all tissue, painted once and mirrored."""
    seed = raster_levels(p2g.datasets.simulate("visium_hd", size=(chunk, chunk), n_genes=2)["he"])[0].data.compute()

    def tile(block_info: dict | None = None) -> np.ndarray:
        assert block_info is not None
        _, row, column = block_info[None]["chunk-location"]
        mirrored = seed[:, :: -1 if row % 2 else 1, :: -1 if column % 2 else 1]
        _, height, width = block_info[None]["chunk-shape"]
        return mirrored[:, :height, :width]

    chunks = tuple((chunk,) * (side // chunk) + ((side % chunk,) if side % chunk else ()) for _ in range(2))
    lazy = da.map_blocks(tile, chunks=((3,), *chunks), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    transformations = {"global": Identity(), "micrometers": Scale([MPP, MPP], axes=("x", "y"))}
    return SpatialData(images={"he": Image2DModel.parse(lazy, dims=("c", "y", "x"), transformations=transformations)})


@dataclass(frozen=True)
class Truth:
    """True rate of every gene at the places of the seed, and the place of every superpixel."""

    rate: np.ndarray
    place: np.ndarray

    def correlation(self, predicted: xr.DataArray, names: pd.Index) -> float:
        """Mean over the genes of Pearson's r of the logarithms."""
        columns = [int(name.removeprefix("GENE")) for name in names]
        some = np.random.default_rng(0).permutation(len(self.place))[:5000]
        found = np.log(predicted.to_numpy().reshape(len(names), -1)[:, some].astype(np.float64))
        true = np.log(self.rate[self.place[some]][:, columns]).T
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, true, strict=True)]))


def whole_tissue(sdata: SpatialData) -> None:
    """Labels "whole" of all superpixels."""
    grid = superpixel_grid(sdata, "he", MPP)
    sdata["whole"] = labels_element(np.ones(grid.shape, np.uint8), grid)


def random_model(sdata: SpatialData, n_genes: int) -> p2g.Model:
    """A model of the default architecture that has learnt nothing."""
    recipe = Recipe()
    record = sdata.attrs[RECORDS]["he_embedding"]
    channels, genes = record["encoder"]["channels"], [f"GENE{i}" for i in range(n_genes)]
    features = np.random.default_rng(0).normal(size=(2000, channels)).astype(np.float32)
    return p2g.Model(
        genes=genes,
        encoder=record["encoder"],
        inputs={"image_key": "he", "embedding_key": None, "table_key": "counts", "layer": None},
        recipe=recipe,
        network=Ensemble(Architecture(recipe.folds, channels, n_genes, recipe.hidden, 0, 0)).eval(),
        slides=[],
        scores=pd.DataFrame({"pearson": 1.0, "misfit": 0.1}, index=pd.Index(genes, name="gene")),
        history=History(),
        version="",
        familiarity=fit_familiarity(features, np.arange(2000) % 2),
    )


def embedded_slide(
    side: int, n_genes: int = 0, counts_per_bin: float = 200.0, grain: float = 0.0
) -> tuple[SpatialData, Truth | None]:
    """Slide of `side` x `side` superpixels with an embedding, mirrored, and bins on every superpixel.

    Genes have log-normal levels, as sparse as those of a whole transcriptome, and rates that a random function of the
    embedding's principal components tells. With grain, superpixels that mirror one another differ by about that share,
    so that what is predicted compresses no better than that of a real slide.
    """
    seed = p2g.datasets.simulate("visium_hd", size=(SEED_SIDE, SEED_SIDE), n_genes=2)
    whole = np.ones((SEED_SIDE // 16, SEED_SIDE // 16), np.uint8)
    pixels = round(8 / MPP) * side
    sdata = large_image(pixels, SEED_SIDE)
    grid = superpixel_grid(sdata, "he", MPP)
    seed["he_tissue"] = labels_element(whole, superpixel_grid(seed, "he", MPP))
    p2g.tl.embed(seed, "he", tissue_key="he_tissue", mpp=MPP, progress=False)
    values = np.asarray(seed["he_embedding"].data)
    index = np.pad(np.arange(values.shape[1]), (0, side - values.shape[1]), mode="symmetric")
    mirrored = da.from_array(values, chunks=(-1, TILE, TILE))[:, index][:, :, index]
    if grain:
        factor = 1 + grain * np.random.default_rng(0).standard_normal((side, side), np.float32)
        mirrored = mirrored * da.from_array(factor.astype(np.float16), chunks=mirrored.chunks[1:])
    channels = [str(name) for name in seed["he_embedding"].c.values]
    sdata["he_embedding"] = image_element(mirrored, grid, channels, chunks=(len(channels), TILE, TILE))
    record = seed.attrs[RECORDS]["he_embedding"] | {"fingerprint": fingerprint(open_image(sdata, "he"))}
    sdata.attrs[RECORDS] = {"he_embedding": record}
    return sdata, _add_bins(sdata, values, index, n_genes, counts_per_bin) if n_genes else None


def rare_slide(side: int, n_genes: int, *, spots: bool = False, seed: int = 0) -> SpatialData:
    """Slide of `side` x `side` superpixels that all differ, of a few common and many rare morphologies.

    Regions have morphologies whose shares fall as 1 / rank. Each lies elsewhere in the space of the embedding, the rare
    ones farther off and with heavier tails, and has programmes of its own; each tenth gene is a marker of one of the
    rare ones, some hundred times as high there.
    """
    rng = np.random.default_rng(seed)
    kinds, width, channels = 200, 24, 549
    sdata = large_image(round(8 / MPP) * side)
    grid = superpixel_grid(sdata, "he", MPP)
    row, column = np.indices((side, side)).reshape(2, -1)
    centres = rng.random((6 * kinds, 2)) * side
    region = cKDTree(centres).query(np.stack([row, column], axis=1) + rng.normal(0, 2, (side**2, 2)))[1]
    share = 1 / np.arange(1, kinds + 1)
    kind = rng.choice(kinds, len(centres), p=share / share.sum())[region]
    place = rng.standard_t(3, (kinds, width)) * np.linspace(0.5, 4, kinds)[:, None]
    factors = (place[kind] + rng.standard_t(4, (side**2, width)) * 0.5).astype(np.float32)
    mixing = rng.normal(0, 1 / np.sqrt(width), (width, channels)).astype(np.float32)
    values = np.empty((channels, side, side), np.float16)
    for start in range(0, side, 64):
        rows = slice(start * side, min(start + 64, side) * side)
        some = factors[rows] @ mixing
        some += rng.standard_normal(some.shape, np.float32) * 0.3
        values[:, start : start + 64] = some.T.reshape(channels, -1, side)
    names = [f"channel{i}" for i in range(channels)]
    sdata["he_embedding"] = image_element(da.from_array(values, chunks=(-1, TILE, TILE)), grid, names)
    sdata.attrs[RECORDS] = {
        "he_embedding": {
            "verb": "embed",
            "image_key": "he",
            "mpp": MPP,
            "fingerprint": fingerprint(open_image(sdata, "he")),
            "encoder": {"name": "made up", "channels": channels, "mpp": MPP, "superpixel_um": 8.0},
        }
    }

    loadings = rng.normal(0, 0.12, (width, n_genes)).astype(np.float32)
    rate = np.exp((6 * np.tanh(factors / 6) @ loadings).clip(-6, 6)) * np.exp(rng.normal(-2, 1.5, n_genes))
    for gene in range(0, n_genes, 10):
        rate[:, gene] *= np.where(kind == rng.integers(20, kinds), 100, 0.3)
    if spots:
        _add_spots(sdata, rate, side, rng)
    else:
        _add_table(sdata, csr_matrix(rng.poisson(rate).astype(np.float32)), side)
    return sdata


def _add_spots(sdata: SpatialData, rate: np.ndarray, side: int, rng: np.random.Generator) -> None:
    """Of 55 µm, 100 µm apart."""
    pitch, radius = 12.5, 55 / 16
    y, x = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(pitch, side - pitch, pitch)], indexing="ij"))
    row, column = np.indices((side, side)).reshape(2, -1)
    near = cKDTree(np.stack([row, column], axis=1) + 0.5).query_ball_point(np.stack([y, x], axis=1), radius)
    counts = rng.poisson(np.stack([rate[some].sum(axis=0) for some in near]))
    shapes = gpd.GeoDataFrame({"radius": np.full(len(x), radius * 8 / MPP)}, geometry=shapely.points(x * 16, y * 16))
    sdata["spots"] = ShapesModel.parse(shapes, transformations={"global": Identity()})
    table = ad.AnnData(csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=_names(rate.shape[1])))
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["spots"] * len(x)), np.arange(len(x))
    sdata["counts"] = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")


def _add_bins(sdata: SpatialData, values: np.ndarray, index: np.ndarray, n_genes: int, counts_per_bin: float) -> Truth:
    rng = np.random.default_rng(0)
    flat = values.reshape(len(values), -1).T.astype(np.float32)
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0).clip(1e-3)
    u, s, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    scores = (u * s)[:, :_COMPONENTS]
    scores /= scores.std(axis=0)
    loadings = rng.normal(0, 0.25, (_COMPONENTS, n_genes)).astype(np.float32)
    level = np.exp(rng.normal(0, 2, n_genes))
    rate = np.exp(np.tanh(scores / 2) @ loadings) * (level / level.sum() * counts_per_bin)
    place = (index[:, None] * values.shape[2] + index).ravel()
    parts = [csr_matrix(_poisson(rate[place[start : start + _ROWS]], rng)) for start in range(0, len(place), _ROWS)]
    _add_table(sdata, vstack(parts, format="csr"), len(index))
    return Truth(rate, place)


def _add_table(sdata: SpatialData, counts: csr_matrix, side: int) -> None:
    """Bins on all superpixels, with their counts."""
    step = 8 / MPP
    row, column = np.indices((side, side)).reshape(2, -1)
    boxes = shapely.box(column * step, row * step, (column + 1) * step, (row + 1) * step)
    transformations = {"global": Identity(), "micrometers": Scale([MPP, MPP], axes=("x", "y"))}
    sdata["bins"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=boxes), transformations=transformations)
    table = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"array_row": row, "array_col": column, "region": pd.Categorical(["bins"] * len(row))},
            index=np.arange(len(row)).astype(str),
        ),
        var=pd.DataFrame(index=_names(counts.shape[1])),
    )
    table.obs["instance_id"] = np.arange(len(row))
    sdata["counts"] = TableModel.parse(table, region="bins", region_key="region", instance_key="instance_id")


def _names(n_genes: int) -> list[str]:
    return [f"GENE{i}" for i in range(n_genes)]


def _poisson(rate: np.ndarray, rng: np.random.Generator) -> csr_matrix:
    """Draw the few counts there are: their number first, then where they fall."""
    number = rng.poisson(rate.sum(axis=1))
    edges = np.cumsum(rate, axis=1, dtype=np.float64)
    row = np.repeat(np.arange(len(rate)), number)
    aim = rng.random(len(row)) * edges[row, -1]
    offset = np.arange(len(rate)) * (edges.max() + 1)
    column = np.searchsorted((edges + offset[:, None]).ravel(), aim + offset[row]) - row * rate.shape[1]
    column = column.clip(0, rate.shape[1] - 1)
    ones = np.ones(len(row), np.float32)
    counts = csr_matrix((ones, (row, column.astype(np.int32))), shape=rate.shape)
    counts.sum_duplicates()
    return counts
