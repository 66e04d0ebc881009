"""Memory and open files of a process that fits and predicts again and again.

uv run python benchmarks/soak.py --cycles 500
"""

from __future__ import annotations

import gc
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import psutil
import typer
from spatialdata import read_zarr

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe

GROWTH = 0.05


def main(
    cycles: int = 500,
    side: Annotated[int, typer.Option(help="Of the slide in pixels.")] = 256,
    warm: Annotated[int, typer.Option(help="Cycles after which it is compared with, because caches fill first.")] = 20,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print ten rows; fail where memory or files grow by over 5 %."""
    warnings.simplefilter("ignore")
    logging.disable()
    process, rows = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "slide.zarr"
        sdata = p2g.datasets.simulate(size=(side, side), n_genes=6, counts_per_superpixel=60, measured=1.0)
        p2g.tl.tissue(sdata, "he", progress=False)
        p2g.tl.embed(sdata, "he", progress=False)
        sdata.write(store)
        short = Recipe(folds=2, hidden=(8,), max_checks=1)
        print(f"{'cycle':>6}{'MB':>8}{'files':>7}{'threads':>9}")
        for cycle in range(1, cycles + 1):
            sdata = read_zarr(store)
            model = p2g.tl.fit(sdata, "counts", image_key="he", recipe=short, progress=False)
            p2g.tl.predict(sdata, model, overwrite=True, progress=False)
            model.save(Path(folder) / "model.p2g", overwrite=True)
            if cycle == warm or cycle % max(cycles // 10, 1) == 0:
                gc.collect()
                row = {
                    "cycle": cycle,
                    "mb": process.memory_info().rss / 2**20,
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                }
                rows.append(row)
                print(f"{cycle:>6}{row['mb']:>8.0f}{row['files']:>7}{row['threads']:>9}", flush=True)
    start, end = next(row for row in rows if row["cycle"] >= warm), rows[-1]
    growth = {name: end[name] / start[name] - 1 for name in ("mb", "files", "threads")}
    print(", ".join(f"{name} {share:+.1%}" for name, share in growth.items()))
    if out is not None:
        out.write_text(json.dumps({"rows": rows, "growth": growth}, indent=1))
    if max(growth.values()) > GROWTH:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
