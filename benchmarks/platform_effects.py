"""What the platform did to the counts: planted in simulated Visium HD, and found again.

    uv run python benchmarks/platform_effects.py

Stripes and diffusion are found from the totals of the bins and the tissue that `pixel2gene.tl.tissue` sees; the rows
`model` have stripes and capture on slides that a model was fitted to, which tells what to expect out-of-fold. Of an
effect that was not planted, `kept` counts how often it was found all the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.platform import Lines, capture_field, diffusion_width, stripes
from pixel2gene.core.regression import predict_units
from pixel2gene.spatial.grid import SUPERPIXEL_UM, superpixel_grid
from pixel2gene.spatial.measured import TISSUE_SHARE
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement
from pixel2gene.spatial.units import Units, measured_units

MPP = 0.5
# Genes matter to no total; a panel is needed to fit a model.
FEW, PANEL, GROUPS = 10, 40, 8
# Lines with fewer bins than this are at the corners of the slide.
FULL = 40
STRIPES, DRIFTS = "0,0.05,0.1,0.2", "0,4,8,16"
# Stripes and capture, planted together.
MODELLED = ((0.0, 0.0), (0.1, 0.25))

Floats = NDArray[np.float64]


def main(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    planted_stripes: Annotated[str, typer.Option(help="Standard deviations of the log factors.")] = STRIPES,
    drifts: Annotated[str, typer.Option(help="Standard deviations in µm.")] = DRIFTS,
    seeds: int = 3,
    model_seeds: Annotated[int, typer.Option(help="Seeds for which models are fitted, which takes longest.")] = 1,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 2048,
    counts: Annotated[float, typer.Option(help="Per superpixel of tissue.")] = 40.0,
) -> None:
    """Print one table."""
    settings: dict[str, Any] = {"size": (side, side), "counts_per_superpixel": counts, "measured": 1.0}
    rows: list[dict[str, Any]] = []

    def report(*new: dict[str, Any]) -> None:
        rows.extend(new)
        print(*new, sep="\n", file=sys.stderr, flush=True)
        if out is not None:
            out.write_text(json.dumps({"side": side, "counts": counts, "rows": rows}))

    for seed in range(seeds):
        for sd in map(float, planted_stripes.split(",")):
            slide = _simulate(settings, seed=seed, n_genes=FEW, stripes=sd)
            report(*striped(slide, sd, seed))
        for um in map(float, drifts.split(",")):
            slide = _simulate(settings, seed=seed, n_genes=FEW, diffusion_um=um)
            report(drifted(slide, um, seed))
    for seed in range(model_seeds):
        for sd, capture in MODELLED:
            report(*modelled(settings, sd, capture, seed))
    table = pd.DataFrame(rows).groupby(["effect", "expected", "planted"])
    summary = table.agg(
        realised=("realised", "mean"), found=("found", "mean"), correlation=("correlation", "mean"), z=("z", "mean")
    ).join(table["kept"].agg(kept="sum", of="size"))
    print(f"\n{side} px, {counts:g} counts per superpixel; means over {seeds} seeds ({model_seeds} with a model)\n")
    print(summary.round(3).to_string(na_rep="-"))


def striped(sdata: SpatialData, planted: float, seed: int) -> list[dict[str, Any]]:
    """Rows and columns, each compared with its surroundings."""
    _, _, on_tissue, _ = _units(sdata)
    table = sdata["counts"][on_tissue]
    totals = np.asarray(table.X.sum(axis=1)).ravel()
    return _stripes_found(table.obs, totals, None, "surroundings", planted, seed)


def drifted(sdata: SpatialData, planted: float, seed: int) -> dict[str, Any]:
    """Width in µm."""
    units, tissue, _, totals = _units(sdata)
    found = diffusion_width(totals, units.overlap, tissue)
    return {
        "effect": "diffusion",
        "expected": "border",
        "seed": seed,
        "planted": planted,
        "realised": planted,
        "found": found.width * SUPERPIXEL_UM,
        "correlation": np.nan,
        "z": found.z,
        "kept": found.kept,
    }


def modelled(settings: dict[str, Any], planted: float, capture: float, seed: int) -> list[dict[str, Any]]:
    """Stripes and capture, both against what a model expects of the units that it did not see."""
    options = {"seed": seed, "n_genes": PANEL, "stripes": planted}
    sdata = _simulate(settings, **options, capture=capture)
    p2g.tl.embed(sdata, "he", progress=False)
    model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
    embedded = open_for_model(sdata, model, None, None)
    model, _, measured = measure_for_model(sdata, model, embedded, None, None)
    device = choose_device("cpu")
    data, _ = slide_measurement(model, embedded, measured, device)
    group = np.random.default_rng(seed).permutation(len(model.genes)) % GROUPS
    dealt = np.eye(GROUPS)[group]
    totals, expected = data.counts @ dealt, np.empty((len(data.fold), GROUPS))
    for units, mean in predict_units(model.network, data, device, held_out=True):
        expected[units] = mean @ dealt
    obs = sdata["counts"].obs.iloc[measured.rows]
    rows = _stripes_found(obs, totals.sum(axis=1), expected.sum(axis=1), "model", planted, seed)

    factor = (
        np.ones(len(obs))
        if planted == 0
        else stripes(
            totals.sum(axis=1), obs["array_row"].to_numpy(), obs["array_col"].to_numpy(), expected.sum(axis=1)
        ).factor
    )
    found = capture_field(totals, expected * factor[:, None], measured.centres)
    truth, flat = (_simulate(settings, **options, capture=c)["truth"].to_numpy().sum(axis=0) for c in (capture, 0.0))
    column, row = np.floor(measured.centres.T).astype(int)
    inside = flat[row, column] > 0
    log_field = np.log(truth[row, column][inside] / flat[row, column][inside])
    seen = np.log(found.factor[inside])
    rows.append(
        {
            "effect": "capture",
            "expected": "model",
            "seed": seed,
            "planted": capture,
            "realised": float(log_field.std()),
            "found": found.sd,
            "correlation": _correlation(log_field, seen),
            "z": found.z,
            "kept": found.kept,
        }
    )
    return rows


def _simulate(settings: dict[str, Any], **options: Any) -> SpatialData:
    sdata = p2g.datasets.simulate(**settings, **options)
    p2g.tl.tissue(sdata, "he", progress=False)
    return sdata


def _units(sdata: SpatialData) -> tuple[Units, NDArray[np.bool_], NDArray[np.bool_], Floats]:
    """Units, tissue on the superpixel grid, which units lie on it, and their total counts."""
    grid = superpixel_grid(sdata, "he", MPP)
    units = measured_units(sdata, "counts", "he", grid)
    tissue = sdata["he_tissue"].to_numpy() > 0
    share = units.overlap @ tissue.ravel() / units.overlap.sum(axis=1)
    return units, tissue, share >= TISSUE_SHARE, np.asarray(units.counts.sum(axis=1), float)


def _stripes_found(
    obs: pd.DataFrame, totals: Floats, expected: Floats | None, name: str, planted: float, seed: int
) -> list[dict[str, Any]]:
    found = stripes(totals, obs["array_row"].to_numpy(), obs["array_col"].to_numpy(), expected)
    return [
        {
            "effect": effect,
            "expected": name,
            "seed": seed,
            "planted": planted,
            **_against_truth(lines, obs[line], obs[factor] if planted else None),
            "found": lines.sd,
            "z": lines.z,
            "kept": lines.kept,
        }
        for effect, lines, line, factor in (
            ("rows", found.rows, "array_row", "row_factor"),
            ("columns", found.columns, "array_col", "column_factor"),
        )
    ]


def _against_truth(lines: Lines, line: pd.Series[int], factor: pd.Series[float] | None) -> dict[str, float]:
    if factor is None:
        return {"realised": 0.0, "correlation": np.nan}
    truth = factor.groupby(line - line.min()).agg(["first", "size"])
    truth = truth[truth["size"] >= FULL]
    log_truth, log_found = np.log(truth["first"].to_numpy()), np.log(lines.factor[truth.index])
    return {"realised": float(log_truth.std()), "correlation": _correlation(log_truth, log_found)}


def _correlation(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 1e-9 else np.nan


if __name__ == "__main__":
    typer.run(main)
