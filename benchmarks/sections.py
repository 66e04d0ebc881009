"""Real sections of her2st: one predicted from the two others, half of one from its other half.

Log-normalised counts still tell how deep a spot was counted: the logarithm of few counts is lower on average. The
H&E tells the depth, too, so that a method which learns log-normalised counts is rewarded for predicting how much was
caught. All are therefore also scored where this cannot be: on the deeper spots, thinned to one depth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from methods import (
    FOLDS,
    Array,
    PaperOptions,
    fit_knn,
    hest_penalty,
    mean_pearson,
    paper_recipe,
    pearson,
    ridge_pipeline,
)
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV
from slides import Options, embed
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.metrics import log_normalise
from pixel2gene.spatial.embedded import open_embedding
from pixel2gene.spatial.folds import fold_of, region_folds
from pixel2gene.spatial.units import Units, measured_units

SECTIONS = ("C2", "C3", "C4")
NAME = "her2st"
TASKS = ("new slide", "fill half")
METHODS = ("gene mean", "kNN", "ridge HEST", "ridge CV", "paper", "default")
VARIABLE_GENES = 300
TARGET = 1e4
PENALTIES = np.geomspace(1, 1e6, 13)
# Share of the spots that are too shallow to be thinned to the depth of the others, and how often these are.
SHALLOW, THINNINGS = 0.2, 5

Use = dict[str, NDArray[np.bool_]]


class Spots:
    """Counts, tissue area and mean embedding of the spots of a section."""

    def __init__(self, sdata: SpatialData) -> None:
        self.sdata = sdata
        embedded = open_embedding(sdata, "he")
        self.shape = embedded.grid.shape
        self.units: Units = measured_units(sdata, "counts", "he", embedded.grid)
        self.centres = self.units.centres(embedded.grid)
        superpixels, features = embedded.tissue()
        overlap = self.units.overlap[:, superpixels]
        self.area = overlap.sum(axis=1)
        self.features = np.asarray(overlap @ features.astype(np.float32)) / self.area[:, None]
        self.counts = self.units.counts.toarray()

    def log(self, genes: list[str]) -> Array:
        return log_normalise(self.counts, TARGET)[:, self.units.genes.get_indexer(genes)]

    @property
    def depth(self) -> float:
        """To which the deeper spots are thinned."""
        return float(np.quantile(self.counts.sum(axis=1), SHALLOW))

    @property
    def deep(self) -> NDArray[np.bool_]:
        return self.counts.sum(axis=1) >= self.depth

    def thinned_log(self, genes: list[str], rng: np.random.Generator) -> Array:
        """As `log`, of counts thinned to about one total; of shallow spots as they are."""
        share = np.minimum(self.depth / np.maximum(self.counts.sum(axis=1, keepdims=True), 1), 1)
        counts = self.counts[:, self.units.genes.get_indexer(genes)].astype(np.int64)
        return np.log1p(rng.binomial(counts, share) / self.depth * TARGET)

    def part(self, rows: NDArray[np.bool_]) -> SpatialData:
        """Only some of the spots."""
        images = {key: self.sdata.images[key] for key in ("he", "he_embedding")}
        part = SpatialData(images=images, shapes=dict(self.sdata.shapes), attrs=dict(self.sdata.attrs))
        part["counts"] = self.sdata["counts"][rows].copy()
        return part

    @property
    def left(self) -> NDArray[np.bool_]:
        x = self.sdata["counts"].obsm["spatial"][:, 0]
        return x < np.median(x)


def load(embedding: Options) -> dict[str, Spots]:
    return {section: Spots(embed(p2g.datasets.her2st(section), **embedding)) for section in SECTIONS}


def score(
    spots: dict[str, Spots], task: str, methods: list[str], paper: PaperOptions, seed: int
) -> Iterator[dict[str, object]]:
    """Mean Pearson over the 300 most variable genes of the training spots, log-normalised counts.

    "equal_depth" is the same on counts thinned to one depth.
    """
    for section, one in spots.items():
        if task == "new slide":
            use = {name: np.ones(len(other.area), bool) for name, other in spots.items() if name != section}
            rows = np.ones(len(one.area), bool)
        else:
            use, rows = {section: one.left}, ~one.left
        genes = _variable_genes(spots, use, section)
        truth = one.log(genes)[rows]
        deep, rng = one.deep[rows], np.random.default_rng(0)
        thinned = [one.thinned_log(genes, rng)[rows][deep] for _ in range(THINNINGS)]
        for method in methods:
            start = time.perf_counter()
            prediction = _predict(method, spots, use, section, genes, paper, seed)[rows]
            yield {
                "data": NAME,
                "task": task,
                "section": section,
                "seed": seed,
                "method": method,
                "score": mean_pearson(pearson(prediction, truth)),
                "equal_depth": float(np.mean([mean_pearson(pearson(prediction[deep], some)) for some in thinned])),
                "seconds": time.perf_counter() - start,
                "genes": len(genes),
                "units": int(sum(used.sum() for used in use.values())),
            }


def _variable_genes(spots: dict[str, Spots], use: Use, section: str) -> list[str]:
    shared = set.intersection(*(set(spots[name].units.genes) for name in {*use, section}))
    genes = [gene for gene in spots[section].units.genes if gene in shared]
    logs = np.concatenate([spots[name].log(genes)[used] for name, used in use.items()])
    return [genes[i] for i in np.argsort(-logs.var(axis=0))[:VARIABLE_GENES]]


def _predict(
    method: str, spots: dict[str, Spots], use: Use, section: str, genes: list[str], paper: PaperOptions, seed: int
) -> Array:
    """(spots, genes) of the section on a log scale; the network's include the time to predict, which is short."""
    test = spots[section]
    x = np.concatenate([spots[name].features[used] for name, used in use.items()])
    y = np.concatenate([spots[name].log(genes)[used] for name, used in use.items()])
    match method:
        case "gene mean":
            return np.tile(y.mean(axis=0), (len(test.area), 1))
        case "kNN":
            return fit_knn(x, y, np.ones(len(x)), _folds(spots, use), seed)(test.features)
        case "ridge HEST":
            return ridge_pipeline(Ridge(hest_penalty(y.shape)), len(x), seed).fit(x, y).predict(test.features)
        case "ridge CV":
            return ridge_pipeline(RidgeCV(PENALTIES), len(x), seed).fit(x, y).predict(test.features)
        case "default":
            return _network(spots, use, section, genes, seed, library_size=True)
        case "paper":
            return _network(spots, use, section, genes, seed, recipe=paper_recipe(paper))
    raise ValueError(f"{method!r} is not for spots")


def _folds(spots: dict[str, Spots], use: Use) -> NDArray[np.integer]:
    """Sections are held out whole where there are several, else blocks."""
    if len(use) > 1:
        return np.repeat(np.arange(len(use)), [used.sum() for used in use.values()])
    ((name, used),) = use.items()
    centres = spots[name].centres[used]
    fold, side = region_folds(centres, spots[name].shape, FOLDS)
    return fold_of(centres, fold, side)


def _network(spots: dict[str, Spots], use: Use, section: str, genes: list[str], seed: int, **options: object) -> Array:
    training = {name: spots[name].part(used) for name, used in use.items()}
    model = p2g.tl.fit(training, "counts", image_key="he", genes=genes, seed=seed, progress=False, **options)
    test = spots[section]
    target = test.part(np.ones(len(test.area), bool))
    p2g.tl.predict(target, model, progress=False)
    rates = target["predicted_map"].sel(c=genes).values.reshape(len(genes), -1).T.astype(np.float32)
    # Per tissue area: spots at the border have as many counts as the others, only on less tissue.
    density = test.units.overlap @ np.nan_to_num(rates) / test.area[:, None]
    typical = np.mean([spots[name].counts[used].sum() / spots[name].area[used].sum() for name, used in use.items()])
    return np.log1p(density / typical * TARGET)
