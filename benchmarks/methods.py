"""The methods that are compared: each learns from a `Training` and then predicts slides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from slides import Slide, Training

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.metrics import Correlation, poisson_deviance
from pixel2gene.core.regression import Measurement, Recipe, fit_ensemble, predict_rates
from pixel2gene.spatial.folds import fold_of, region_folds

Array = NDArray[np.floating]

RIDGE_COMPONENTS, KNN_COMPONENTS = 256, 50
PENALTIES = np.geomspace(1, 1e6, 13)
NEIGHBOURS = (10, 30, 100, 300)
SIGMAS = np.geomspace(0.5, 12, 10)
# Smoothed counts far from any unit tend to the gene's mean: as if this area of it had been measured everywhere.
LITTLE_AREA = 1e-2
FOLDS = 5
# True rates have no noise to stop for: training would go on to learn what the H&E does not show, and fill worse.
ORACLE_LOOKS = 30


@dataclass(frozen=True)
class Fitted:
    """What a method has learnt.

    Attributes
    ----------
    predict
        (superpixels of the tissue, genes) rate on a slide.
    denoise
        (units on tissue, genes) expected counts of the training units; by default the prediction summed over them.
    expect
        The same without the noise of single units, which true rates do not have either.
    fills
        Whether it says anything about what was not measured.
    model
        Of pixel2gene.
    """

    predict: Callable[[Slide], Array]
    denoise: Callable[[], Array] | None = None
    expect: Callable[[], Array] | None = None
    fills: bool = True
    model: p2g.Model | None = None


Method = Callable[[Training], Fitted]


@dataclass(frozen=True)
class PaperOptions:
    """Of the published recipe; its own are 10 folds and 600 epochs."""

    folds: int = 10
    epochs: int = 600


def methods(paper: PaperOptions) -> dict[str, Method]:
    """All of them, in the order of the table."""
    return {
        "gene mean": gene_mean,
        "raw counts": raw_counts,
        "smoothing": smoothing,
        "kNN": knn,
        "ridge HEST": lambda training: ridge(training, Ridge(hest_penalty(training.measured.counts.shape))),
        "ridge CV": lambda training: ridge(training, RidgeCV(PENALTIES)),
        "paper": lambda training: pixel2gene(training, recipe=paper_recipe(paper)),
        "default": pixel2gene,
        "oracle": oracle,
    }


def paper_recipe(options: PaperOptions) -> object:
    from pixel2gene.core.paper import PaperRecipe

    return PaperRecipe(folds=options.folds, epochs=options.epochs)


def gene_mean(training: Training) -> Fitted:
    """The same everywhere, for which correlation is not defined: its score is 0."""
    mean = np.asarray(training.measured.counts.sum(axis=0)).ravel() / training.measured.area.sum()
    return Fitted(lambda slide: np.tile(mean, (len(slide.superpixels), 1)))


def raw_counts(training: Training) -> Fitted:
    """What was measured; at a superpixel, by the nearest unit."""
    measured, counts = training.measured, training.measured.counts.toarray()

    def predict(slide: Slide) -> Array:
        nearest = cKDTree(measured.centres).query(slide.embedded.grid.centres[slide.superpixels])[1]
        return (counts / measured.area[:, None])[nearest]

    return Fitted(predict, lambda: counts, fills=False)


def smoothing(training: Training) -> Fitted:
    """A Gaussian over the measured area; each gene's width predicts one half of its counts best from the other."""
    measured, grid = training.measured, training.slide.embedded.grid
    superpixels, overlap = training.slide.superpixels, training.overlap
    share = np.zeros(grid.size, np.float32)
    share[superpixels] = np.asarray(overlap.sum(axis=0)).ravel()

    def smooth(counts: Array, sigma: float) -> Array:
        laid = np.zeros((counts.shape[1], grid.size), np.float32)
        # Each unit's counts are spread over its area.
        laid[:, superpixels] = ((overlap.T @ (counts / measured.area[:, None])).T).astype(np.float32)
        mean = counts.sum(axis=0) / measured.area.sum()
        width = (0, sigma, sigma)
        total = ndimage.gaussian_filter(laid.reshape(-1, *grid.shape), width, mode="constant")
        area = ndimage.gaussian_filter(share.reshape(1, *grid.shape), width, mode="constant")
        rate = (total + LITTLE_AREA * mean[:, None, None]) / (area + LITTLE_AREA)
        return rate.reshape(-1, grid.size)[:, superpixels].T

    counts = measured.counts.toarray()
    first = np.random.default_rng(training.seed).binomial(counts.astype(np.int64), 0.5).astype(np.float32)
    deviance = [poisson_deviance(csr_array(counts - first), overlap @ smooth(first, sigma)) for sigma in SIGMAS]
    best = np.argmin(deviance, axis=0)
    rate = np.empty((len(superpixels), counts.shape[1]), np.float32)
    for i in np.unique(best):
        rate[:, best == i] = smooth(counts[:, best == i], SIGMAS[i])
    return Fitted(lambda slide: rate, fills=False)


def knn(training: Training) -> Fitted:
    """Counts per area of the units that look alike."""
    measured = training.measured
    fold, side = region_folds(measured.centres, training.slide.embedded.grid.shape, FOLDS)
    predict = fit_knn(
        unit_features(training),
        measured.counts.toarray(),
        measured.area,
        fold_of(measured.centres, fold, side),
        training.seed,
    )
    return Fitted(lambda slide: predict(slide.features.astype(np.float32)))


def fit_knn(x: Array, y: Array, weight: Array, fold: NDArray[np.integer], seed: int) -> Callable[[Array], Array]:
    """Sum of `y` over that of `weight` of the nearest neighbours, as many as predict held-out folds best."""
    pipeline = make_pipeline(StandardScaler(), PCA(min(KNN_COMPONENTS, *x.shape), random_state=seed)).fit(x)
    z = pipeline.transform(x)
    smallest = min((fold != one).sum() for one in np.unique(fold))
    candidates = [k for k in NEIGHBOURS if k <= smallest] or [int(smallest)]
    scores = {k: Correlation(y.shape[1]) for k in candidates}
    for one in np.unique(fold):
        seen, unseen = fold != one, fold == one
        nearest = _nearest(z[seen], z[unseen], max(candidates))
        for k in candidates:
            scores[k].add(_neighbour_mean(nearest[:, :k], y[seen], weight[seen]), y[unseen] / weight[unseen, None])
    best = max(candidates, key=lambda k: mean_pearson(scores[k].pearson))
    return lambda features: _neighbour_mean(_nearest(z, pipeline.transform(features), best), y, weight)


def ridge(training: Training, regression: BaseEstimator) -> Fitted:
    """Counts per area from 256 principal components."""
    measured = training.measured
    density = measured.counts.toarray() / measured.area[:, None]
    fitted = ridge_pipeline(regression, len(density), training.seed).fit(unit_features(training), density)
    return Fitted(lambda slide: fitted.predict(slide.features.astype(np.float32)))


def ridge_pipeline(regression: BaseEstimator, units: int, seed: int) -> BaseEstimator:
    return make_pipeline(StandardScaler(), PCA(min(RIDGE_COMPONENTS, units), random_state=seed), regression)


def hest_penalty(shape: tuple[int, int]) -> float:
    """That of the HEST benchmark (Jaume et al., 2024)."""
    units, genes = shape
    return 100 / (min(RIDGE_COMPONENTS, units) * genes)


def pixel2gene(training: Training, **options: object) -> Fitted:
    """The package, by its verbs."""
    slide = training.slide
    model = p2g.tl.fit(
        training.sdata,
        slide.key,
        image_key="he",
        genes=training.genes,
        seed=training.seed,
        progress=False,
        **options,
    )

    def predict(other: Slide) -> Array:
        sdata = other.without_results()
        p2g.tl.predict(sdata, model, progress=False)
        return sdata["predicted"].X

    @functools.cache
    def denoised() -> AnnData:
        p2g.tl.denoise(training.sdata, model, overwrite=True, progress=False)
        return training.sdata["denoised"]

    if options:
        # The publication denoises by its prediction.
        return Fitted(predict, model=model)
    return Fitted(predict, lambda: denoised().X, lambda: denoised().layers["expected"], model=model)


def oracle(training: Training) -> Fitted:
    """The network and training of the default recipe on true rates: about what noiseless counts would give."""
    data = measurement(training)
    rate = training.slide.truth(training.genes)[training.measured.superpixels]
    truth = csr_array(data.depth[:, None] * (data.overlap @ rate))
    device = choose_device(None)
    network, _ = fit_ensemble(
        replace(data, counts=truth), Recipe(max_checks=ORACLE_LOOKS), device, training.seed, progress=False
    )
    genes = np.arange(len(training.genes))
    return Fitted(lambda slide: predict_rates(network, slide.features, genes, device)[0])


def measurement(training: Training) -> Measurement:
    """As `pixel2gene.tl.fit` makes it of one slide."""
    measured = training.measured
    fold, side = region_folds(measured.centres, training.slide.embedded.grid.shape, Recipe().folds)
    return measured.measurement(fold_of(measured.centres, fold, side), 1.0, Recipe())


def unit_features(training: Training) -> Array:
    """(units, channels) mean embedding of the tissue under each unit."""
    measured = training.measured
    return np.asarray(measured.overlap @ measured.features.astype(np.float32)) / measured.area[:, None]


def pearson(prediction: Array, truth: Array) -> Array:
    """(genes,) correlation; 0 where only the truth varies, NaN where it does not vary either."""
    both, alone = Correlation(truth.shape[1]), Correlation(truth.shape[1])
    both.add(prediction, truth)
    alone.add(truth, truth)
    return np.where(np.isnan(both.pearson), 0 * alone.pearson, both.pearson)


def mean_pearson(per_gene: Array) -> float:
    """Mean over the genes that vary."""
    return float(np.nanmean(per_gene)) if np.isfinite(per_gene).any() else float("nan")


def _nearest(known: Array, wanted: Array, k: int) -> NDArray[np.intp]:
    found: NDArray[np.intp] = NearestNeighbors(n_neighbors=k).fit(known).kneighbors(wanted, return_distance=False)
    return found


def _neighbour_mean(nearest: NDArray[np.intp], y: Array, weight: Array) -> Array:
    rows, k = nearest.shape
    chosen = csr_array(
        (np.ones(nearest.size, np.float32), nearest.ravel(), np.arange(0, nearest.size + 1, k)), shape=(rows, len(y))
    )
    return (chosen @ y) / (chosen @ weight)[:, None]
