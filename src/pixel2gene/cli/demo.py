from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixel2gene.cli.report import say, user_errors
from pixel2gene.cli.run import analyse, figure, report

if TYPE_CHECKING:
    from spatialdata import SpatialData


def demo(
    folder: Annotated[Path, typer.Option(help="Where to write pixel2gene-demo.zarr, .p2g, .png and .html.")] = Path(),
    side: Annotated[int, typer.Option(help="Height and width of the simulated H&E in pixels of 0.5 µm.")] = 1536,
    genes: Annotated[int, typer.Option(help="Genes of the panel.")] = 150,
    seed: int = 0,
) -> None:
    """Show it on a simulated Visium HD slide, half of it measured, whose true expression is known."""
    import pixel2gene as p2g

    store = folder / "pixel2gene-demo.zarr"
    with user_errors():
        say(f"Simulate a slide of {side} x {side} px and {genes} genes")
        sdata = p2g.datasets.simulate(size=(side, side), n_genes=genes, measured=1.0, seed=seed)
        _hold_back_right_half(sdata)
        shutil.rmtree(store, ignore_errors=True)
        sdata.write(store)
        model = analyse(sdata, "he", "counts", seed=seed)
        model.save(store.with_suffix(".p2g"), overwrite=True)
        figure(sdata, model, "he", "counts", store.with_suffix(".png"))
        report(sdata, model, "he", "counts", store.with_suffix(".html"))
        filled = p2g.tl.evaluate(sdata, model, table_key="held_back")
    typer.echo(
        f"\nMean Pearson of {len(model.genes)} genes      with counts   with the true rate\n"
        f"measured half     raw counts                -        {_agreement(sdata, 'counts'):.3f}\n"
        f"                  denoised                  -        {_agreement(sdata, 'denoised'):.3f}\n"
        f"                  out-of-fold           {model.scores['pearson_counts'].mean():.3f}            -\n"
        f"unmeasured half   predicted             {filled['pearson_counts'].mean():.3f}        "
        f"{_agreement(sdata, 'predicted', unmeasured=True):.3f}\n"
    )
    say(f"Wrote {store}, {', '.join(store.with_suffix(kind).name for kind in ('.p2g', '.png', '.html'))}")


def _hold_back_right_half(sdata: SpatialData) -> None:
    table = sdata.tables["counts"]
    x = table.obsm["spatial"][:, 0]
    left = x < (x.min() + x.max()) / 2
    del sdata["counts"]
    sdata["counts"], sdata["held_back"] = table[left].copy(), table[~left].copy()


def _agreement(sdata: SpatialData, table_key: str, *, unmeasured: bool = False) -> float:
    """Mean Pearson of a table's genes with the truth, on its units that were measured or on the others."""
    import numpy as np

    import pixel2gene as p2g
    from pixel2gene.core.metrics import Correlation

    table = sdata.tables[table_key]
    truth = p2g.datasets.true_counts(sdata, table_key).to_numpy()
    values = table.X.toarray() if hasattr(table.X, "toarray") else table.X
    if unmeasured:
        rows = table.obsm["spatial"][:, 0] > sdata.tables["counts"].obsm["spatial"][:, 0].max()
        truth, values = truth[rows], values[rows]
    correlation = Correlation(table.n_vars)
    correlation.add(truth, values)
    return float(np.nanmean(correlation.pearson))
