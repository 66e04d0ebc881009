from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixel2gene.cli import options
from pixel2gene.cli.report import show, user_errors
from pixel2gene.cli.stores import open_store

if TYPE_CHECKING:
    from pixel2gene import Model


def info(
    path: Annotated[Path, typer.Argument(metavar="STORE|MODEL", help="SpatialData zarr store, or model.")],
    as_json: options.Json = False,
) -> None:
    """Tell what a store or a model holds, and what pixel2gene recorded of its results."""
    import pixel2gene as p2g
    from pixel2gene.spatial.contents import contents

    with user_errors():
        model = p2g.Model.load(path) if (path / "model.json").is_file() else None
        summary = contents(open_store(path)) if model is None else _described(model)
    if model is not None and not as_json:
        typer.echo(model.card())
        return
    show({"path": path, **summary}, as_json)


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


def _described(model: Model) -> dict[str, Any]:
    return {
        "version": model.version,
        "inputs": model.inputs,
        "encoder": model.encoder,
        "slides": [slide.name for slide in model.slides],
        "reference": model.reference,
        "fitted": model.fitted,
        "genes": model.genes,
        "mean": model.scores.mean(),
        "pearson": model.scores["pearson"],
    }
