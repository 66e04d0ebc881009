"""The command line: each command is one chain of tl and pl calls."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from pixel2gene import Model

app = typer.Typer(help="Read gene expression off the H&E.", no_args_is_help=True, pretty_exceptions_enable=False)

USER_ERRORS = (ImportError, KeyError, ValueError, OSError)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to write pixel2gene-demo.zarr, .p2g and .png.")] = Path(),
    side: Annotated[int, typer.Option(help="Height and width of the simulated H&E in pixels of 0.5 µm.")] = 1536,
    genes: Annotated[int, typer.Option(help="Genes of the panel.")] = 150,
    seed: int = 0,
) -> None:
    """Show it on a simulated Visium HD slide, half of it measured, whose true expression is known."""
    import pixel2gene as p2g

    store = folder / "pixel2gene-demo.zarr"
    _say(f"Simulate a slide of {side} x {side} px and {genes} genes")
    sdata = p2g.datasets.simulate(size=(side, side), n_genes=genes, measured=1.0, seed=seed)
    _hold_back_right_half(sdata)
    shutil.rmtree(store, ignore_errors=True)
    sdata.write(store)
    model = _analyse(sdata, "he", "counts", seed=seed)
    model.save(store.with_suffix(".p2g"), overwrite=True)
    _figure(sdata, model, "he", "counts", store.with_suffix(".png"))

    filled = p2g.tl.evaluate(sdata, model, table_key="held_back")
    typer.echo(
        f"\nMean Pearson of {len(model.genes)} genes      with counts   with the true rate\n"
        f"measured half     raw counts                -        {_agreement(sdata, 'counts'):.3f}\n"
        f"                  denoised                  -        {_agreement(sdata, 'denoised'):.3f}\n"
        f"                  out-of-fold           {model.scores['pearson_counts'].mean():.3f}            -\n"
        f"unmeasured half   predicted             {filled['pearson_counts'].mean():.3f}        "
        f"{_agreement(sdata, 'predicted', unmeasured=True):.3f}\n"
    )
    _say(f"Wrote {store}, {store.with_suffix('.p2g').name} and {store.with_suffix('.png').name}")


@app.command()
def run(
    store: Annotated[Path, typer.Argument(help="SpatialData zarr store with an H&E and counts; it is only read.")],
    out: Annotated[Path, typer.Option(help="Store to write: all of the input and the results.")],
    image: Annotated[str, typer.Option(help="Key of the H&E.")] = "he",
    table: Annotated[str, typer.Option(help="Key of the table of raw counts, or of the transcripts.")] = "counts",
    layer: Annotated[str | None, typer.Option(help="Layer with the counts.")] = None,
    gene: Annotated[list[str] | None, typer.Option(help="Gene to model, once for each; all by default.")] = None,
    tissue: Annotated[str | None, typer.Option(help="Key of a tissue mask of your own.")] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per full-resolution pixel.")] = None,
    force: Annotated[bool, typer.Option(help="Accept an implausible pixel size.")] = False,
    encoder: Annotated[
        str | None, typer.Option(help="One of `pixel2gene encoders`, or a folder of weights; lite0 by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda ...; the best there is by default.")] = None,
    seed: int = 0,
) -> None:
    """Fit, fill and denoise a slide. What an interrupted run has finished in OUT is not done again."""
    from spatialdata import read_zarr

    try:
        if not store.exists():
            raise FileNotFoundError(f"There is no store at {store}.")
        if out.resolve() == store.resolve():
            raise ValueError("--out is the input itself: name another store.")
        if not out.exists():
            _say(f"Copy {store} to {out}")
            aside = out.with_name(f".{out.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)
            read_zarr(store).write(aside)
            aside.rename(out)
        sdata = read_zarr(out)
        model = _analyse(
            sdata,
            image,
            table,
            layer=layer,
            genes=gene,
            tissue=tissue,
            mpp=mpp,
            force=force,
            encoder=encoder,
            device=device,
            seed=seed,
        )
        model.save(out.with_suffix(".p2g"), overwrite=True)
        scores = out.with_suffix(".scores.csv")
        model.scores.to_csv(scores)
        _figure(sdata, model, image, table, out.with_suffix(".png"))
    except USER_ERRORS as error:
        # A KeyError prints its message in quotes.
        typer.echo(f"pixel2gene: {error.args[0] if isinstance(error, KeyError) else error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(model.scores.sort_values("pearson", ascending=False).head(10).round(3).to_string())
    _say(f"{model}\nWrote {out}, {out.with_suffix('.p2g').name}, {scores.name} and {out.with_suffix('.png').name}")


@app.command()
def encoders(as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all that is known.")] = False) -> None:
    """List the encoders that --encoder takes by name."""
    import pixel2gene as p2g

    table = p2g.encoders()
    if as_json:
        typer.echo(table.reset_index().to_json(orient="records", indent=1))
        return
    shown = (
        table.drop(columns=["mean", "std", "citation"]).reset_index().replace({True: "yes", False: "no"}).astype(str)
    )
    columns = [[name, *shown[name]] for name in shown]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    typer.echo("\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True)))


def _analyse(
    sdata: SpatialData,
    image: str,
    table: str,
    *,
    layer: str | None = None,
    genes: list[str] | None = None,
    tissue: str | None = None,
    mpp: float | None = None,
    force: bool = False,
    encoder: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> Model:
    import pixel2gene as p2g

    if tissue is None and f"{image}_tissue" not in sdata:
        _say("Find the tissue")
        p2g.tl.tissue(sdata, image, mpp=mpp, force=force)
    if f"{image}_embedding" not in sdata or encoder not in (None, _encoder_of(sdata, f"{image}_embedding")):
        _say("Embed the H&E")
        p2g.tl.embed(
            sdata,
            image,
            encoder=encoder or "lite0",
            tissue_key=tissue,
            mpp=mpp,
            force=force,
            device=device,
            overwrite=True,
        )
    _say("Fit")
    model = p2g.tl.fit(sdata, table, image_key=image, layer=layer, genes=genes, device=device, seed=seed)
    _say("Predict the whole slide")
    p2g.tl.predict(sdata, model, device=device, overwrite=True)
    _say("Denoise what was measured")
    p2g.tl.denoise(sdata, model, device=device, overwrite=True)
    return model


def _encoder_of(sdata: SpatialData, embedding: str) -> str | None:
    name: str | None = sdata.attrs.get("pixel2gene", {}).get(embedding, {}).get("encoder", {}).get("name")
    return name


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


def _figure(sdata: SpatialData, model: Model, image: str, table: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import pixel2gene as p2g

    best = str(model.scores["deviance_explained"].idxmax())
    axes = p2g.pl.expression(sdata, best, image_key=image, measured=table)
    axes[0].figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(axes[0].figure)


def _say(text: str) -> None:
    typer.secho(text, bold=True)
