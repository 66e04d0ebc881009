"""How much of a slide needs to be measured, with a model of another slide to start from and without.

    uv run python benchmarks/transfer.py

A square in the middle of the tissue of a simulated slide is measured, and the rest is predicted: Pearson's correlation
with the true rate, mean over the genes with any count in the square, median over seeds. The reference is fitted on all
of another slide of the same biology; the row of 0 % is what it predicts by itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from methods import Fitted, mean_pearson, pearson, pixel2gene
from numpy.typing import NDArray
from slides import SOURCES, Sizes, Slide, nothing, training

WITHOUT, WITH = "without reference", "with reference"
SHARES = "1,2,5,10,25"


def main(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    data: Annotated[str, typer.Option(help=f"One of {', '.join(SOURCES)}.")] = "hd",
    shares: Annotated[str, typer.Option(help="Per cent of the tissue that are measured.")] = SHARES,
    seeds: int = 3,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 1280,
    genes: int = 120,
) -> None:
    """Print the curve."""
    sizes = Sizes(side=side, genes=genes)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        old, new = SOURCES[data].slide(sizes, seed), SOURCES[data].new_slide(sizes, seed)
        known = training(old, nothing(old), seed)
        reference = pixel2gene(known)
        everywhere = np.ones(len(new.superpixels), bool)
        rows.append(_row(seed, 0.0, WITH, reference, known.genes, new, everywhere))
        for share in map(float, shares.split(",")):
            window = training(new, around_window(new, share / 100), seed, min_counts=1)
            for column, options in ((WITHOUT, {}), (WITH, {"reference": reference.model})):
                fitted = pixel2gene(window, **options)
                rows.append(_row(seed, share, column, fitted, window.genes, new, window.held))
                print(rows[-1], file=sys.stderr, flush=True)
        if out is not None:
            out.write_text(json.dumps({"options": {**asdict(sizes), "data": data, "seeds": seeds}, "rows": rows}))
    curve = pd.DataFrame(rows).groupby(["share", "column"])["score"].median().unstack()[[WITHOUT, WITH]]
    print(f"\nMean Pearson with the true rate of what was not measured, median over {seeds} seeds; {data}, {side} px\n")
    print(curve.rename_axis(index="% measured", columns=None).round(3).to_string(na_rep="-"))


def around_window(slide: Slide, share: float) -> NDArray[np.bool_]:
    """(rows, columns) all but the square in the middle of the tissue that holds this share of it."""
    centres = slide.embedded.grid.centres
    tissue = centres[slide.superpixels]
    distance = np.abs(centres - np.median(tissue, axis=0)).max(axis=1)
    held: NDArray[np.bool_] = distance > np.quantile(distance[slide.superpixels], share)
    return held.reshape(slide.embedded.grid.shape)


def _row(
    seed: int, share: float, column: str, fitted: Fitted, genes: list[str], slide: Slide, unmeasured: NDArray[np.bool_]
) -> dict[str, Any]:
    truth = slide.truth(genes)[slide.superpixels][unmeasured]
    return {
        "seed": seed,
        "share": share,
        "column": column,
        "genes": len(genes),
        "superpixels": len(slide.superpixels) - int(unmeasured.sum()),
        "score": mean_pearson(pearson(fitted.predict(slide)[unmeasured], truth)),
        "out_of_fold": min(fitted.model.history.deviance),
    }


if __name__ == "__main__":
    typer.run(main)
