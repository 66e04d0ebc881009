"""What the platform did to the counts: planted in simulated Visium HD, and found again.

    uv run python benchmarks/platform_effects.py

Stripes and diffusion are found from the totals of the bins and the tissue that `pixel2gene.tl.tissue` sees. Of what
was not planted, `kept` counts how often it was found all the same. Capture is sought in Visium spots, of which the
package does not look for it: what it would find there is the reason. The second table is of slides that a model was
fitted to: what it found (0: nothing), and Pearson with the true rates of what it predicts and denoises, against a model
that does not know of such effects.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import typer
from methods import mean_pearson, pearson
from numpy.typing import NDArray
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.platform import Lines, diffusion_width, stripes
from pixel2gene.spatial import modelled
from pixel2gene.spatial import training as fitting
from pixel2gene.spatial.grid import SUPERPIXEL_UM, superpixel_grid
from pixel2gene.spatial.measured import TISSUE_SHARE
from pixel2gene.spatial.modelled import measure_for_model, open_for_model, slide_measurement
from pixel2gene.spatial.platform import find_capture
from pixel2gene.spatial.units import Units, measured_units

MPP = 0.5
# Genes matter to no total; a panel is needed to fit a model.
FEW, PANEL = 10, 40
# Lines with fewer bins than this are at the corners of the slide.
FULL = 40
STRIPES, DRIFTS = "0,0.05,0.1,0.2", "0,4,8,16"
# Planted where a model is fitted.
UNDONE: tuple[dict[str, float], ...] = ({}, {"stripes": 0.2}, {"diffusion_um": 8.0}, {"capture": 0.3})
CAPTURES = (0.0, 0.12, 0.3)

Floats = NDArray[np.float64]


def main(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    planted_stripes: Annotated[str, typer.Option(help="Standard deviations of the log factors.")] = STRIPES,
    drifts: Annotated[str, typer.Option(help="Standard deviations in µm.")] = DRIFTS,
    seeds: int = 3,
    model_seeds: Annotated[int, typer.Option(help="Seeds for which models are fitted, which takes longest.")] = 1,
    spot_seeds: Annotated[int, typer.Option(help="Seeds for which models are fitted to spots.")] = 1,
    spot_side: Annotated[int, typer.Option(help="Height and width of their slides.")] = 3200,
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
    for seed in range(spot_seeds):
        for capture in CAPTURES:
            report(captured({**settings, "size": (spot_side, spot_side)}, capture, seed))
    fitted: list[dict[str, Any]] = []
    for seed in range(model_seeds):
        for planted in UNDONE:
            fitted += undone(settings, planted, seed)
            print(*fitted[-2:], sep="\n", file=sys.stderr, flush=True)
            if out is not None:
                out.write_text(json.dumps({"side": side, "counts": counts, "rows": rows, "fitted": fitted}))
    if rows:
        table = pd.DataFrame(rows).groupby(["effect", "planted"])
        summary = table.agg(
            realised=("realised", "mean"), found=("found", "mean"), correlation=("correlation", "mean"), z=("z", "mean")
        ).join(table["kept"].agg(kept="sum", of="size"))
        print(f"\n{side} px (spots {spot_side}), {counts:g} counts per superpixel; means over seeds\n")
        print(summary.round(3).to_string(na_rep="-"))
    if fitted:
        print(f"\nFitted models, {PANEL} genes; means over {model_seeds} seeds\n")
        means = pd.DataFrame(fitted).drop(columns="seed").groupby(["planted", "known"], sort=False).mean()
        print(means.round(3).to_string())


def striped(sdata: SpatialData, planted: float, seed: int) -> list[dict[str, Any]]:
    """Rows and columns, each compared with its surroundings."""
    _, _, on_tissue, _ = _units(sdata)
    table = sdata["counts"][on_tissue]
    totals = np.asarray(table.X.sum(axis=1)).ravel()
    found = stripes(totals, table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy())
    return [
        {
            "effect": effect,
            "seed": seed,
            "planted": planted,
            **_against_truth(lines, table.obs[line], table.obs[factor] if planted else None),
            "found": lines.sd,
            "z": lines.z,
            "kept": lines.kept,
        }
        for effect, lines, line, factor in (
            ("rows", found.rows, "array_row", "row_factor"),
            ("columns", found.columns, "array_col", "column_factor"),
        )
    ]


def drifted(sdata: SpatialData, planted: float, seed: int) -> dict[str, Any]:
    """Width in µm."""
    units, tissue, _, totals = _units(sdata)
    found = diffusion_width(totals, units.overlap, tissue)
    return {
        "effect": "diffusion",
        "seed": seed,
        "planted": planted,
        "realised": planted,
        "found": found.width * SUPERPIXEL_UM,
        "correlation": np.nan,
        "z": found.z,
        "kept": found.kept,
    }


def captured(settings: dict[str, Any], planted: float, seed: int) -> dict[str, Any]:
    """Capture that varies over spots, by what a model expects of those that it did not see."""
    options = {"seed": seed, "n_genes": PANEL, "platform": "visium"}
    sdata = _simulate(settings, **options, capture=planted)
    p2g.tl.embed(sdata, "he", progress=False)
    model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
    embedded, device = open_for_model(sdata, model, None, None), choose_device("cpu")
    model, _, measured = measure_for_model(sdata, model, embedded, None, None)
    data, _ = slide_measurement(model, embedded, measured, None, device)
    found = find_capture(model.network, data, measured.centres, device)
    flat = _simulate(settings, **options, capture=0.0)
    total, without = (one["truth"].to_numpy().sum(axis=0).ravel()[measured.superpixels] for one in (sdata, flat))
    some = without > 0
    field = np.zeros(len(some))
    field[some] = np.log(total[some] / without[some])
    log_field = (measured.overlap @ field) / measured.area
    return {
        "effect": "capture of spots",
        "seed": seed,
        "planted": planted,
        "realised": float(log_field.std()),
        "found": found.sd,
        "correlation": _correlation(log_field, np.log(found.factor)),
        "z": found.z,
        "kept": found.kept,
    }


def undone(settings: dict[str, Any], planted: dict[str, float], seed: int) -> list[dict[str, Any]]:
    """What `fit` finds, and how near `predict` and `denoise` come to the truth, knowing of effects and not."""
    # The simulator has some capture unless told otherwise.
    options = {"seed": seed, "n_genes": PANEL, "capture": 0.0}
    sdata, truth = _simulate(settings, **options | planted), _simulate(settings, **options)["truth"]
    p2g.tl.embed(sdata, "he", progress=False)
    rows = []
    for known in (True, False) if planted else (True,):
        with ExitStack() as patches:
            if not known:
                for module in (fitting, modelled):
                    patches.enter_context(patch.object(module, "with_effects", lambda units, measured, *_: measured))
                    patches.enter_context(patch.object(module, "seeks_capture", lambda *_: False))
            model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
            p2g.tl.predict(sdata, model, overwrite=True, progress=False)
            p2g.tl.denoise(sdata, model, overwrite=True, progress=False)
            _, _, measured = measure_for_model(sdata, model, open_for_model(sdata, model, None, None), None, None)
        rates = truth.sel(c=model.genes).to_numpy().reshape(len(model.genes), -1).T[measured.superpixels]
        counts, denoised = measured.overlap @ rates, sdata["denoised"]
        rows.append(
            {
                "planted": " ".join(f"{name}={value:g}" for name, value in planted.items()) or "nothing",
                "seed": seed,
                "known": known,
                **asdict(model.slides[0].platform),
                "predicted": mean_pearson(pearson(sdata["predicted"].X, rates)),
                "expected": mean_pearson(pearson(denoised.layers["expected"], counts)),
                "denoised": mean_pearson(pearson(denoised.X, counts)),
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
