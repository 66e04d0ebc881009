from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixel2gene.cli import options
from pixel2gene.cli.report import progress, say, show, user_errors
from pixel2gene.cli.stores import open_store, prepare
from pixel2gene.spatial.memory import genes_that_fit, memory_limit

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from pixel2gene import Model


def run(
    store: Annotated[Path, typer.Argument(help="SpatialData zarr store with an H&E and counts; it is only read.")],
    out: Annotated[Path, typer.Option(help="Store to write: all of the input and the results.")],
    image_key: options.Image = "he",
    table_key: options.Table = "counts",
    layer: options.Layer = None,
    genes: options.Genes = None,
    tissue_key: options.Tissue = None,
    mpp: options.Mpp = None,
    force: options.Force = False,
    encoder: options.Encoder = None,
    scales: options.Scales = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    max_memory: Annotated[
        float | None, typer.Option(help="GB that the results may take the process to; all that is free by default.")
    ] = None,
    report_genes: Annotated[
        list[str] | None,
        typer.Option("--report-genes", "--report-gene", help="Gene that the report shows besides the best."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fit, fill and denoise a slide, and report on it in one HTML page.

    What an interrupted run has finished in OUT is not done again.
    """
    with user_errors():
        sdata = open_store(store, out)
        written = {kind: out.with_suffix(f".{kind}") for kind in ("p2g", "scores.csv", "png", "html")}
        embedding: dict[str, Any] = {
            "encoder": encoder,
            "scales": scales,
            "tissue_key": tissue_key,
            "mpp": mpp,
            "force": force,
        }
        with memory_limit(max_memory):
            model = analyse(
                sdata, image_key, table_key, layer=layer, genes=genes, device=device, seed=seed, embedding=embedding
            )
        model.save(written["p2g"], overwrite=True)
        model.scores.to_csv(written["scores.csv"])
        figure(sdata, model, image_key, table_key, written["png"], layer)
        report(sdata, model, image_key, table_key, written["html"], layer, report_genes or [])
    say(f"{model}\nWrote {out}, {', '.join(path.name for path in written.values())}")
    if as_json:
        files = zip(("model", "scores", "figure", "report"), written.values(), strict=True)
        show({"store": out, **dict(files), "genes": len(model.genes), "mean": model.scores.mean()}, as_json)
    else:
        typer.echo(model.scores.sort_values("pearson", ascending=False).head(10).round(3).to_string())


def analyse(
    sdata: SpatialData,
    image_key: str,
    table_key: str,
    *,
    layer: str | None = None,
    genes: list[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    embedding: dict[str, Any] | None = None,
) -> Model:
    """Tissue, embedding, model, prediction and denoised counts of a slide."""
    import pixel2gene as p2g
    from pixel2gene.tl._denoise import VALUE_BYTES as DENOISED_BYTES

    bars = progress()
    prepare(sdata, image_key, device=device, overwrite=True, **embedding or {})
    say("Fit")
    model = p2g.tl.fit(
        sdata, table_key, image_key=image_key, layer=layer, genes=genes, device=device, seed=seed, progress=bars
    )
    say("Predict the whole slide")
    try:
        p2g.tl.predict(sdata, model, device=device, overwrite=True, progress=bars)
    except MemoryError:
        say("Without a table, which does not fit into memory")
        p2g.tl.predict(sdata, model, lazy=True, device=device, overwrite=True, progress=bars)
    # Transcripts are counted per superpixel.
    units = sdata.tables[table_key if table_key in sdata.tables else "predicted"].n_obs
    # If none fits, denoise says so.
    fitting = max(genes_that_fit(units, DENOISED_BYTES), 1)
    all_fit = fitting >= len(model.genes)
    say("Denoise what was measured" + ("" if all_fit else f", of the {fitting} genes that are read best: no more fit"))
    best = model.scores["pearson"].fillna(-1).nlargest(fitting).index
    kept = None if all_fit else [gene for gene in model.genes if gene in best]
    p2g.tl.denoise(sdata, model, genes=kept, device=device, overwrite=True, progress=bars)
    return model


def figure(sdata: SpatialData, model: Model, image: str, table: str, path: Path, layer: str | None = None) -> None:
    """Draw the gene that is read best: H&E, measured, denoised, predicted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import pixel2gene as p2g

    best = str(model.scores["deviance_explained"].idxmax())
    axes = p2g.pl.expression(sdata, best, image_key=image, measured=table, layer=layer, save=path)
    plt.close(axes[0].figure)


def report(
    sdata: SpatialData,
    model: Model,
    image: str,
    table: str,
    path: Path,
    layer: str | None = None,
    genes: Sequence[str] = (),
) -> None:
    """Write the page on a slide."""
    from pixel2gene.report import write_report

    say("Report")
    write_report(sdata, model, path, name=path.stem, image_key=image, table_key=table, layer=layer, genes=genes)
