"""What denoising is worth: by counts that no method saw, by depth, and for what is done with the result.

    uv run python benchmarks/denoising.py table      counts split in two: one part is denoised, the other scores
    uv run python benchmarks/denoising.py depth      fewer and fewer counts, scored against the truth
    uv run python benchmarks/denoising.py regions    clusters and neighbourhoods of denoised bins

"raw" is each count shrunk to its gene's rate per area (gamma-Poisson, a shape per gene), because an unseen zero has no
likelihood; "smoothing" a Gaussian in space; "pooling" diffusion on the graph of units of alike expression; "histology"
the model's prediction. "denoised" and "expected" are those of `pixel2gene.tl.denoise`, with and without a unit's own
count. True rates leave out the noise of single units, as "expected" does and held-out counts do not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from typing import Annotated

import numpy as np
import pandas as pd
import rivals
import sections
import typer
from accuracy import Data, Out, Row, Rows, Side, available, matching, say
from anndata import AnnData
from methods import Array, Fitted, PaperOptions, mean_pearson, paper_recipe, pearson, pixel2gene, smoothing
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score
from slides import MIN_COUNTS, SOURCES, Sizes, Slide, Training, embed, nothing, training

import pixel2gene as p2g
from pixel2gene.core.calibration import Calibration, gamma_transform
from pixel2gene.core.metrics import log_normalise, poisson_deviance
from pixel2gene.spatial.elements import labels_element, table_element
from pixel2gene.spatial.measured import measure
from pixel2gene.spatial.units import measured_units

SINGLE = ("raw", "smoothing", "histology")
RIVALS = ("raw", "smoothing", "pooling", "paper")
OURS = ("histology", "denoised", "expected")
METHODS = (*RIVALS, *OURS)
WITHOUT_PAPER = "-paper"
VARIABLE_GENES = 300
# A gene is as good by a combination as by one source if its deviance is at most this much higher.
TOLERANCE = 0.01
LEVEL = 0.9
# Of the gamma distribution of the share of a unit's counts that is kept.
THINNING_SHAPE = 10.0
TARGET = 1e4
COMPONENTS = 50
RESOLUTIONS, BISECTIONS = (0.01, 10.0), 12
LATTICE_NEIGHBOURS = 4

Chosen = Annotated[str, typer.Option("--methods", help=f"Of {', '.join(METHODS)}.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def table(
    out: Out = None,
    data: Data = "hd,hd/C2,xenium,visium,her2st",
    method: Chosen = WITHOUT_PAPER,
    seeds: int = 1,
    train: Annotated[float, typer.Option(help="Share of the counts to denoise; the rest scores.")] = 0.5,
    side: Side = 1024,
    visium_side: Side = Sizes.visium_side,
    genes: int = Sizes.genes,
    transcriptome_genes: int = Sizes.transcriptome_genes,
    paper_folds: int = PaperOptions.folds,
    paper_epochs: int = PaperOptions.epochs,
) -> None:
    """Score all methods on held-out counts, and simulated slides against the truth."""
    sizes = Sizes(side, visium_side, genes, transcriptome_genes)
    paper = PaperOptions(paper_folds, paper_epochs)
    chosen = matching(METHODS, method, "--methods")
    rows = Rows(out, {**asdict(sizes), "seeds": seeds, "train": train, "paper": asdict(paper)})
    for name in available(matching([*SOURCES, sections.NAME], data, "--data")):
        for seed in range(seeds):
            for label, whole in _measured_everywhere(name, sizes, seed):
                for row in _split_scores(whole, chosen, paper, train):
                    rows.add({"data": label, "seed": seed, **row})
                    say(f"{label}, seed {seed}, {row['method']}: {row['deviance']:.4f}, {row['seconds']:.1f} s")
    frame = pd.DataFrame(rows.rows)
    titles = {
        "deviance": "Deviance of held-out counts explained, of all genes together",
        "deviance_per_gene": f"The same, mean over genes with {MIN_COUNTS} held-out counts or more",
        "pearson": "Pearson with the true counts of the units, mean over genes",
        "not_worse": f"Share of genes whose deviance is at most {TOLERANCE:.0%} above that of the best of "
        f"{', '.join(SINGLE)}",
        "seconds": "Seconds",
    }
    print(f"\n{train:.0%} of the counts are denoised; median over {seeds} seeds; slides of {side} px, {genes} genes")
    for column, title in titles.items():
        if column in frame and frame[column].notna().any():
            print(f"\n{title}\n\n{_wide(frame, 'data', column, 1 if column == 'seconds' else 4)}")
    if "covered" in frame:
        print(f"\nShare of held-out counts (denoised) and true counts (expected) in their intervals of {LEVEL:.0%},")
        print("by decile of expression\n")
        told = frame.dropna(subset="covered").set_index(["data", "method", "seed"])["covered"].apply(pd.Series)
        print(told.groupby(level=["data", "method"], sort=False).median().round(3).to_string(na_rep="-"))


@app.command()
def depth(
    out: Out = None,
    data: Data = "hd,hd/C2",
    method: Chosen = WITHOUT_PAPER,
    seeds: int = 1,
    depths: Annotated[str, typer.Option(help="Per cent of the counts that are kept.")] = "100,50,25,10,5",
    with_replacement: Annotated[bool, typer.Option(help="Draw as often from a multinomial instead.")] = False,
    side: Side = 1024,
    visium_side: Side = Sizes.visium_side,
    genes: int = Sizes.genes,
    transcriptome_genes: int = Sizes.transcriptome_genes,
    paper_folds: int = PaperOptions.folds,
    paper_epochs: int = PaperOptions.epochs,
) -> None:
    """Thin the counts, and score what is made of them against the truth."""
    sizes = Sizes(side, visium_side, genes, transcriptome_genes)
    paper = PaperOptions(paper_folds, paper_epochs)
    chosen = matching(METHODS, method, "--methods")
    rows = Rows(
        out,
        {
            **asdict(sizes),
            "seeds": seeds,
            "depths": depths,
            "with_replacement": with_replacement,
            "paper": asdict(paper),
        },
    )
    for name in available(matching(SOURCES, data, "--data")):
        for seed in range(seeds):
            ((_, whole),) = _measured_everywhere(name, sizes, seed)
            for percent in map(float, depths.split(",")):
                for row in _thinned_scores(whole, chosen, paper, percent / 100, with_replacement):
                    rows.add({"data": name, "seed": seed, "depth": percent, **row})
                    say(f"{name}, seed {seed}, {percent:g} %, {row['method']}: {row['pearson']:.3f}")
    frame = pd.DataFrame(rows.rows)
    print(f"\nMean Pearson over genes with the truth at full depth by % of counts; median over {seeds} seeds\n")
    print(_wide(frame, ["data", "depth"], "pearson", 3))
    print("\nRatios: to the best without histology or of the published recipe, and to the model's prediction\n")
    print(_ratios(frame))


@app.command()
def regions(
    out: Out = None,
    data: Data = "hd",
    seeds: int = 1,
    side: Side = 1024,
    genes: int = Sizes.genes,
) -> None:
    """Cluster what each method makes of all counts, and compare with the true regions and their neighbourhoods."""
    sizes = Sizes(side=side, genes=genes)
    # Squidpy tells of each graph among what is printed here.
    logging.getLogger("spatialdata._logging").setLevel(logging.WARNING)
    rows = Rows(out, {"side": side, "genes": genes, "seeds": seeds})
    bins = [name for name, source in SOURCES.items() if source.platform == "visium_hd"]
    for name in available(matching(bins, data, "--data")):
        for seed in range(seeds):
            ((_, whole),) = _measured_everywhere(name, sizes, seed)
            for row in _region_scores(whole):
                rows.add({"data": name, "seed": seed, **row})
                say(f"{name}, seed {seed}, {row['method']}: adjusted Rand index {row['ari']:.3f}")
    frame = pd.DataFrame(rows.rows)
    columns = {
        "ari": "ARI with regions",
        "ari_truth": "ARI with clusters of truth",
        "clusters": "clusters",
        "regions": "regions",
        "right": "right region",
        "z_correlation": "r of z-scores",
    }
    print(
        "\nAdjusted Rand index (ARI) of Leiden clusters with the true regions and with clusters of the truth; region by"
    )
    print(
        "the nearest true mean profile, and the correlation of the z-scores of its neighbourhoods with the true ones;"
    )
    print(f"median over {seeds} seeds; {side} px, {genes} genes\n")
    found = frame.groupby(["data", "method"], sort=False)[list(columns)].median().rename(columns=columns)
    print(found.round(3).to_string())


def split(counts: Array, share: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two parts of each count, which are independent given the rate if counts are Poisson."""
    first = rng.binomial(counts.astype(np.int64), share).astype(np.float32)
    return first, counts - first


def thin(counts: Array, share: float, rng: np.random.Generator, *, with_replacement: bool = False) -> Array:
    """Keep about a share of the counts of each unit: each unit's own share is gamma distributed around it.

    Without replacement, Poisson counts remain Poisson given the rate. With it, as many counts are drawn from a
    multinomial with the unit's observed shares of the genes: what was chance in a count is then counted several times.
    """
    kept = np.minimum(share * rng.gamma(THINNING_SHAPE, 1 / THINNING_SHAPE, len(counts)), 1)
    if not with_replacement:
        return rng.binomial(counts.astype(np.int64), kept[:, None]).astype(np.float32)
    total = counts.sum(axis=1, dtype=np.float64)
    number = np.floor(kept * total + rng.random(len(total))).astype(np.int64)
    return rng.multinomial(np.where(total > 0, number, 0), counts / np.maximum(total, 1)[:, None]).astype(np.float32)


def remeasured(data: Training, counts: Array, min_counts: int) -> Training:
    """The units on tissue with other (units, genes) counts, of genes that have so many of them."""
    kept = np.flatnonzero(counts.sum(axis=0) >= min_counts)
    genes = [data.genes[i] for i in kept]
    slide, rows, sdata = data.slide, data.measured.rows, data.slide.without_results()
    grid, values = slide.embedded.grid, csr_matrix(counts[:, kept])
    if data.units.superpixels is None:
        found = data.sdata[slide.key][rows, genes].copy()
        found.X = values
        for region in found.obs[found.uns["spatialdata_attrs"]["region_key"]].unique():
            sdata[region] = data.sdata[region]
    else:
        # As a table, so that superpixels that lose all of their transcripts remain measured.
        ids = data.units.superpixels[rows] + 1
        mask = np.isin(np.arange(1, grid.size + 1), ids).reshape(grid.shape)
        sdata["superpixels"] = labels_element(grid.ids(mask), grid)
        unnamed = AnnData(values, obs=pd.DataFrame(index=ids.astype(str)), var=pd.DataFrame(index=genes))
        found = table_element(unnamed, "superpixels", ids)
    sdata[slide.key] = found
    units = measured_units(sdata, slide.key, "he", grid)
    measured = measure(slide.embedded, units, np.arange(len(genes)), slide.key)
    return Training(slide, sdata, data.held, genes, measured, units, data.seed)


def clusters(values: Array, number: int, seed: int) -> NDArray[np.integer]:
    """(units,) Leiden cluster, at a resolution that gives so many clusters or about as many."""
    import scanpy as sc

    adata = AnnData(values.astype(np.float32))
    sc.pp.normalize_total(adata, target_sum=TARGET)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(COMPONENTS, min(adata.shape) - 1), random_state=seed)
    sc.pp.neighbors(adata, random_state=seed)
    low, high = np.log(RESOLUTIONS)
    best: NDArray[np.integer] = np.zeros(len(values), np.int64)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        sc.tl.leiden(
            adata, resolution=np.exp(middle), flavor="igraph", directed=False, n_iterations=2, random_state=seed
        )
        found = adata.obs["leiden"].cat.codes.to_numpy()
        if abs(found.max() + 1 - number) < abs(best.max() + 1 - number):
            best = found
        if found.max() + 1 == number:
            break
        low, high = (middle, high) if found.max() + 1 < number else (low, middle)
    return best


def enrichment(labels: NDArray[np.integer], number: int, centres: Array, seed: int) -> NDArray[np.float64]:
    """(pairs of labels,) z-scores of how often units of both lie side by side; 0 where one is missing."""
    import squidpy as sq

    obs = pd.DataFrame({"region": pd.Categorical(labels, categories=range(number))}, index=map(str, range(len(labels))))
    adata = AnnData(obs=obs, obsm={"spatial": centres})
    sq.gr.spatial_neighbors_grid(adata, n_neighs=LATTICE_NEIGHBOURS)
    found = sq.gr.nhood_enrichment(adata, "region", seed=seed, copy=True, n_jobs=1, show_progress_bar=False)
    return np.nan_to_num(found.zscore[np.triu_indices(number)])


def _measured_everywhere(name: str, sizes: Sizes, seed: int) -> Iterator[tuple[str, Training]]:
    if name != sections.NAME:
        slide = SOURCES[name].slide(sizes, seed)
        yield name, training(slide, nothing(slide), seed)
        return
    for section in sections.SECTIONS:
        slide = Slide(embed(p2g.datasets.her2st(section)), "counts")
        data = training(slide, nothing(slide), seed)
        variance = log_normalise(data.measured.counts.toarray(), TARGET, data.measured.totals).var(axis=0)
        some = np.sort(np.argsort(-variance)[:VARIABLE_GENES])
        measured = replace(data.measured, counts=data.measured.counts[:, some])
        yield f"{name}/{section}", replace(data, genes=[data.genes[i] for i in some], measured=measured)


def _estimates(data: Training, chosen: list[str], paper: PaperOptions) -> Iterator[tuple[str, Array, float]]:
    """Expected counts (units on tissue, genes) by each method, and the seconds that they took.

    Those of `pixel2gene.tl.denoise` remain in the data.
    """
    theirs: dict[str, Callable[[Training], Array]] = {
        "raw": rivals.shrunk,
        "smoothing": lambda one: _on_units(one, smoothing(one)),
        "pooling": rivals.pooled,
        "paper": lambda one: _on_units(one, pixel2gene(one, recipe=paper_recipe(paper))),
    }
    for name, method in theirs.items():
        if name in chosen:
            start = time.perf_counter()
            try:
                estimate = method(data)
            except ValueError as error:
                # Such as too few blocks for the folds of a recipe: the others are scored all the same.
                say(f"{name} is left out: {error}")
                continue
            yield name, estimate, time.perf_counter() - start
    if not set(OURS) & set(chosen):
        return
    start = time.perf_counter()
    fitted = pixel2gene(data)
    if "histology" in chosen:
        yield "histology", _on_units(data, fitted), time.perf_counter() - start
    p2g.tl.denoise(data.sdata, fitted.model, overwrite=True, progress=False)
    result, seconds = data.sdata["denoised"], time.perf_counter() - start
    for name, estimate in {"denoised": result.X, "expected": result.layers["expected"]}.items():
        if name in chosen:
            yield name, estimate, seconds


def _on_units(data: Training, fitted: Fitted) -> Array:
    return data.overlap @ fitted.predict(data.slide)


def _split_scores(whole: Training, chosen: list[str], paper: PaperOptions, share: float) -> Iterator[Row]:
    rng = np.random.default_rng([whole.seed, 1])
    first, second = split(whole.measured.counts.toarray(), share, rng)
    data = remeasured(whole, first, MIN_COUNTS)
    test = second[:, [whole.genes.index(gene) for gene in data.genes]]
    truth = share * data.true_counts() if "truth" in whole.slide.sdata else None
    scale = (1 - share) / share
    counts, area = data.measured.counts.toarray(), data.measured.area
    constant = scale * area[:, None] / area.sum() * counts.sum(axis=0)
    null = poisson_deviance(csr_array(test), constant)
    enough = test.sum(axis=0) >= MIN_COUNTS
    single: list[Array] = []
    for name, estimate, seconds in _estimates(data, chosen, paper):
        deviance = poisson_deviance(csr_array(test), scale * estimate)
        row: Row = {
            "method": name,
            "deviance": 1 - float(deviance.sum() / null.sum()),
            "deviance_per_gene": float(np.mean(1 - deviance[enough] / null[enough])),
            "seconds": seconds,
            "units": len(area),
            "genes": len(data.genes),
        }
        if truth is not None:
            row["pearson"] = mean_pearson(pearson(estimate, truth))
        if name in SINGLE:
            single.append(deviance)
        elif name in OURS and single:
            best = np.min(single, axis=0)
            row["not_worse"] = float(np.mean(deviance[enough] <= (1 + TOLERANCE) * best[enough]))
        result = data.sdata["denoised"] if name in ("denoised", "expected") else None
        if name == "denoised":
            row["covered"] = _covered(counts, _count_transforms(test, result, counts, scale, rng))
        if name == "expected" and truth is not None:
            transforms = gamma_transform(truth, result.layers["expected"], result.layers["expected_sd"])
            row["covered"] = _covered(counts, transforms)
        yield row


def _count_transforms(
    test: Array, denoised: AnnData, counts: Array, scale: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Randomised probability integral transforms of the counts to come, negative binomial given those seen."""
    shape = denoised.var["shape"].to_numpy() + counts
    chance = shape / (shape + scale * denoised.X)
    step: NDArray[np.float64] = rng.random(test.shape) * nbinom.pmf(test, shape, chance)
    return nbinom.cdf(test - 1, shape, chance) + step


def _covered(counts: Array, transforms: Array) -> dict[str, float]:
    """Share in their intervals by decile of the genes' mean count."""
    calibration = Calibration(counts.mean(axis=0))
    calibration.add(transforms)
    found = calibration.table([LEVEL])
    return {str(decile): share for decile, share in zip(found["decile"], found["covered"], strict=True)}


def _thinned_scores(
    whole: Training, chosen: list[str], paper: PaperOptions, share: float, with_replacement: bool
) -> Iterator[Row]:
    counts = whole.measured.counts.toarray()
    if share < 1:
        rng = np.random.default_rng([whole.seed, 3])
        counts = thin(counts, share, rng, with_replacement=with_replacement)
    data = remeasured(whole, counts, min_counts=1)
    truth = data.true_counts()
    for name, estimate, seconds in _estimates(data, chosen, paper):
        # A gene that lost all counts cannot be told from a constant.
        scores = np.append(pearson(estimate, truth), np.zeros(len(whole.genes) - len(data.genes)))
        yield {"method": name, "pearson": mean_pearson(scores), "seconds": seconds, "genes": len(data.genes)}


def _ratios(frame: pd.DataFrame) -> str:
    scores = frame.groupby(["data", "depth", "method"], sort=False)["pearson"].median().unstack("method", sort=False)
    theirs, ours = ([name for name in some if name in scores] for some in (RIVALS, ("expected", "denoised")))
    if not theirs or not ours:
        return "Nothing to compare."
    found = pd.DataFrame({"best other": scores[theirs].idxmax(axis=1)})
    for name, values in {**{name: scores[name] for name in ours}, "better of both": scores[ours].max(axis=1)}.items():
        found[name] = values / scores[theirs].max(axis=1)
        if "histology" in scores:
            found[f"{name} to histology"] = values / scores["histology"]
    return found.round(3).to_string()


def _region_scores(whole: Training) -> Iterator[Row]:
    measured, genes = whole.measured, whole.genes
    truth, raster = whole.true_counts(), whole.slide.sdata["truth_regions"].values.ravel()
    kinds = np.unique(raster[whole.slide.superpixels])
    kinds = kinds[kinds > 0]
    overlap = whole.units.overlap[measured.rows]
    region = np.stack([overlap @ (raster == kind) for kind in kinds], axis=1).argmax(axis=1)
    kinds, region = np.unique(region, return_inverse=True)
    profiles = np.stack([log_normalise(truth[region == i], TARGET).mean(axis=0) for i in range(len(kinds))])
    z_scores = partial(enrichment, number=len(kinds), centres=measured.centres, seed=whole.seed)
    expected = z_scores(region)
    data = remeasured(whole, measured.counts.toarray(), min_counts=1)
    others = ["smoothing", "pooling", *OURS]
    estimates = ((name, estimate) for name, estimate, _ in _estimates(data, others, PaperOptions()))
    best = clusters(truth, len(kinds), whole.seed)
    for name, values in chain([("truth", truth), ("counts", measured.counts.toarray())], estimates):
        found = best if name == "truth" else clusters(values, len(kinds), whole.seed)
        squared = [np.square(log_normalise(values, TARGET) - profile).sum(axis=1) for profile in profiles]
        nearest = np.argmin(squared, axis=0)
        yield {
            "method": name,
            "ari": float(adjusted_rand_score(region, found)),
            "ari_truth": float(adjusted_rand_score(best, found)),
            "clusters": int(found.max()) + 1,
            "regions": len(kinds),
            "right": float(np.mean(nearest == region)),
            "z_correlation": float(np.corrcoef(z_scores(nearest), expected)[0, 1]),
            "units": len(region),
            "genes": len(genes),
        }


def _wide(frame: pd.DataFrame, index: str | list[str], column: str, digits: int) -> str:
    keys = [index] if isinstance(index, str) else index
    wide = frame.groupby([*keys, "method"], sort=False)[column].median().unstack("method", sort=False)
    kept = [name for name in METHODS if name in wide and wide[name].notna().any()]
    return wide[kept].round(digits).to_string(na_rep="-")


if __name__ == "__main__":
    app()
