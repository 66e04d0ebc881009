"""Accuracy of prediction and denoising, next to the baselines that a reader would ask for.

uv run python benchmarks/accuracy.py her2st      real sections: one left out of three; half of one filled
uv run python benchmarks/accuracy.py simulated   Visium HD with known truth, half of the slide measured
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from spatialdata import SpatialData
from torch import nn

import pixel2gene as p2g
from pixel2gene.core.metrics import Correlation, log_normalise
from pixel2gene.spatial.embedded import Embedded, open_embedding
from pixel2gene.spatial.units import Units, measured_units

SECTIONS = ("C2", "C3", "C4")
VARIABLE_GENES = 300
TARGET = 1e4
COMPONENTS = 256

app = typer.Typer(help=__doc__, no_args_is_help=True)
Out = Annotated[Path | None, typer.Option(help="Write the table as JSON, too.")]


@app.command()
def her2st(out: Out = None, seed: int = 0) -> None:
    """Mean Pearson over the 300 most variable genes of the training spots, log-normalised counts."""
    slides = {section: _embedded(p2g.datasets.her2st(section)) for section in SECTIONS}
    spots = {section: _Spots(sdata) for section, sdata in slides.items()}
    rows = []
    for section in SECTIONS:
        others = {name: sdata for name, sdata in slides.items() if name != section}
        rows.append(_score_spots(f"{section} from the others", others, section, slides, spots, seed))
    for section in SECTIONS:
        sdata = slides[section]
        left = sdata["counts"].obsm["spatial"][:, 0] < np.median(sdata["counts"].obsm["spatial"][:, 0])
        half = _with_rows(sdata, left)
        rows.append(
            _score_spots(f"right half of {section} from the left", {section: half}, section, slides, spots, seed, ~left)
        )
    table = pd.DataFrame(rows).set_index("task")
    table.loc["mean, section left out"] = table.iloc[: len(SECTIONS)].mean()
    table.loc["mean, half filled"] = table.iloc[len(SECTIONS) : 2 * len(SECTIONS)].mean()
    _report(table, out)


@app.command()
def simulated(
    out: Out = None,
    side: int = 2048,
    genes: int = 120,
    counts: float = 40.0,
    epochs: Annotated[int, typer.Option(help="Of the network trained as published.")] = 600,
    seeds: int = 1,
) -> None:
    """Mean Pearson with the true rate on the unmeasured half (fill) and on the measured one."""
    rows = [row for seed in range(seeds) for row in _score_simulated(side, genes, counts, epochs, seed)]
    table = pd.DataFrame(rows).groupby("method", sort=False).mean()
    _report(table, out)


class _Spots:
    """Counts, tissue area and mean embedding of the spots of a section."""

    def __init__(self, sdata: SpatialData) -> None:
        embedded = open_embedding(sdata, "he")
        self.units: Units = measured_units(sdata, "counts", "he", embedded.grid)
        superpixels, features = embedded.tissue()
        overlap = self.units.overlap[:, superpixels]
        self.area = overlap.sum(axis=1)
        self.features = np.asarray(overlap @ features.astype(np.float32)) / self.area[:, None]
        self.counts = self.units.counts.toarray()

    def log(self, genes: list[str]) -> NDArray[np.float64]:
        return log_normalise(self.counts, TARGET)[:, self.units.genes.get_indexer(genes)]


def _score_spots(
    task: str,
    training: dict[str, SpatialData],
    section: str,
    slides: dict[str, SpatialData],
    spots: dict[str, _Spots],
    seed: int,
    rows: NDArray[np.bool_] | None = None,
) -> dict[str, object]:
    """Fit on some spots, predict those of `section` (or the `rows` of them)."""
    test = spots[section]
    rows = np.ones(len(test.counts), bool) if rows is None else rows
    use = {name: ~rows if name == section else np.ones(len(spots[name].counts), bool) for name in training}
    shared = set.intersection(*(set(spots[name].units.genes) for name in {*training, section}))
    shared_genes = [gene for gene in test.units.genes if gene in shared]
    logs = np.concatenate([spots[name].log(shared_genes)[used] for name, used in use.items()])
    order = np.argsort(-logs.var(axis=0))[:VARIABLE_GENES]
    genes = [shared_genes[i] for i in order]

    start = time.perf_counter()
    model = p2g.tl.fit(training, "counts", image_key="he", genes=genes, library_size=True, seed=seed, progress=False)
    seconds = time.perf_counter() - start
    target = slides[section]
    p2g.tl.predict(target, model, key_added="benchmark", overwrite=True, progress=False)
    rates = target["benchmark_map"].sel(c=genes).values.reshape(len(genes), -1).T.astype(np.float32)
    # Per tissue area: spots at the border have as many counts as the others, only on less tissue.
    density = test.units.overlap @ np.nan_to_num(rates) / test.area[:, None]
    typical = np.mean([spots[name].counts[used].sum() / spots[name].area[used].sum() for name, used in use.items()])
    ours = np.log1p(density / typical * TARGET)[rows]

    x = np.concatenate([spots[name].features[used] for name, used in use.items()])
    truth = test.log(genes)[rows]
    scores = {"task": task, "pixel2gene": _pearson(ours, truth)}
    # The penalty of the HEST benchmark (Jaume et al., 2024), and the best by leave-one-out on the training spots.
    components = min(COMPONENTS, len(x))
    penalties = {
        "ridge, HEST protocol": Ridge(alpha=100 / (components * len(genes))),
        "ridge, penalty by CV": RidgeCV(alphas=np.geomspace(1, 1e6, 13)),
    }
    for name, ridge in penalties.items():
        pipeline = make_pipeline(StandardScaler(), PCA(components, random_state=seed), ridge)
        scores[name] = _pearson(pipeline.fit(x, logs[:, order]).predict(test.features[rows]), truth)
    return {**scores, "seconds to fit": seconds}


def _score_simulated(side: int, genes: int, counts: float, epochs: int, seed: int) -> list[dict[str, object]]:
    sdata = p2g.datasets.simulate(size=(side, side), n_genes=genes, counts_per_superpixel=counts, seed=seed)
    _embedded(sdata)
    start = time.perf_counter()
    model = p2g.tl.fit(sdata, "counts", image_key="he", seed=seed, progress=False)
    seconds = time.perf_counter() - start
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)

    embedded = open_embedding(sdata, "he")
    units = measured_units(sdata, "counts", "he", embedded.grid)
    positions = units.genes.get_indexer(model.genes)
    superpixels, features = embedded.tissue()
    unmeasured = np.asarray(units.overlap.sum(axis=0)).ravel()[superpixels] == 0
    truth = sdata["truth"].sel(c=model.genes).values.reshape(len(model.genes), -1).T
    rows = sdata["counts"].obs_names.get_indexer(sdata["denoised"].obs_names)
    unit_truth = units.overlap @ truth
    raw = units.counts.toarray()[:, positions]

    published_start = time.perf_counter()
    published = _published_network(embedded, units, raw, rows, superpixels, features, epochs, seed)
    published_seconds = time.perf_counter() - published_start
    fill_truth = truth[superpixels][unmeasured]
    nearest = _nearest(units, embedded, rows, superpixels)
    return [
        {"method": "raw counts", "fill": np.nan, "measured half": _pearson(raw[rows], unit_truth[rows])},
        {
            "method": f"min-max MSE network 4x256, {epochs} epochs",
            "fill": _pearson(published[unmeasured], fill_truth),
            "measured half": _pearson(published[nearest], unit_truth[rows]),
            "seconds": published_seconds,
        },
        {
            "method": "pixel2gene, predicted / denoised",
            "fill": _pearson(sdata["predicted"].X[unmeasured], fill_truth),
            "measured half": _pearson(sdata["denoised"].X, unit_truth[rows]),
            "seconds": seconds,
        },
    ]


def _published_network(
    embedded: Embedded,
    units: Units,
    raw: NDArray[np.float32],
    rows: NDArray[np.intp],
    superpixels: NDArray[np.int64],
    features: NDArray[np.float16],
    epochs: int,
    seed: int,
) -> NDArray[np.float32]:
    """Predict every superpixel of tissue by one network of the size, loss and schedule of Pixel2Gene (Li et al., 2026).

    Without its selection of training superpixels and its folds.
    """
    torch.manual_seed(seed)
    x = torch.from_numpy(features.astype(np.float32))
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    nearest = torch.from_numpy(_nearest(units, embedded, rows, superpixels))
    y = torch.from_numpy(raw[rows])
    low, high = y.min(0).values, y.max(0).values
    y = (y - low) / (high - low).clamp_min(1)
    sizes = [x.shape[1], 256, 256, 256, 256]
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.1))]
    network = nn.Sequential(*layers, nn.Linear(256, y.shape[1]), nn.ELU(0.01))
    optimiser = torch.optim.Adam(network.parameters(), 1e-4 if len(y) < 10_000 else 1e-5)
    batch = min(128, len(y) // 16)
    for _ in range(epochs):
        for chosen in torch.randperm(len(y)).split(batch):
            loss = (network(x[nearest[chosen]]) + 0.01 - y[chosen]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.inference_mode():
        return (network(x) + 0.01).numpy()


def _nearest(
    units: Units, embedded: Embedded, rows: NDArray[np.intp], superpixels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Position among the tissue superpixels of the one that covers most of each unit."""
    overlap = units.overlap[rows][:, superpixels].tocsr()
    return np.asarray(overlap.argmax(axis=1)).ravel()


def _embedded(sdata: SpatialData) -> SpatialData:
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he")
    return sdata


def _with_rows(sdata: SpatialData, rows: NDArray[np.bool_]) -> SpatialData:
    part = SpatialData(
        images=dict(sdata.images), labels=dict(sdata.labels), shapes=dict(sdata.shapes), attrs=sdata.attrs
    )
    part["counts"] = sdata["counts"][rows].copy()
    return part


def _pearson(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    correlation = Correlation(a.shape[1])
    correlation.add(a, b)
    return float(np.nanmean(correlation.pearson))


def _report(table: pd.DataFrame, out: Path | None) -> None:
    print(table.round(3).to_string(na_rep="-"))
    if out is not None:
        table.reset_index().to_json(out, orient="records", indent=1)


if __name__ == "__main__":
    app()
