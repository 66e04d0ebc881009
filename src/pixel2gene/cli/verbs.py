"""One command per verb, over stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixel2gene.cli import options
from pixel2gene.cli.report import progress, say, show, user_errors
from pixel2gene.cli.stores import added, open_store, prepare, prepare_for

if TYPE_CHECKING:
    from spatialdata import SpatialData


def fit(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores with H&E and counts.")],
    out: Annotated[Path, typer.Option(help="Model to write.")],
    table_key: options.Tables = None,
    image_key: options.Image = "he",
    layer: options.Layer = None,
    genes: options.Genes = None,
    embedding_key: options.Embedding = None,
    min_counts: Annotated[int, typer.Option(help="Fewest counts of a gene that is modelled unasked.")] = 20,
    join: Annotated[str, typer.Option(help="Genes of all slides (inner) or of any (outer).")] = "inner",
    reference: Annotated[Path | None, typer.Option(help="Model of other slides to start from.")] = None,
    recipe: Annotated[str, typer.Option(help="default or paper.")] = "default",
    folds: Annotated[int | None, typer.Option(help="Number of folds; that of the recipe.")] = None,
    library_size: Annotated[bool | None, typer.Option(help="Take each unit's total as given.")] = None,
    tissue_key: options.Tissue = None,
    mpp: options.Mpp = None,
    force: options.Force = False,
    encoder: options.Encoder = None,
    scales: options.Scales = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Learn to read expression off the H&E of one store or several; tissue and embedding are added where they lack."""
    import pixel2gene as p2g

    with user_errors():
        # Before hours of training.
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists: pass --overwrite to replace it.")
        start = None if reference is None else p2g.Model.load(reference)
        slides = _by_stem(stores)
        for sdata in slides.values():
            prepare(
                sdata,
                image_key,
                embedding_key=embedding_key,
                encoder=encoder,
                scales=scales,
                tissue_key=tissue_key,
                mpp=mpp,
                force=force,
                device=device,
            )
        say("Fit")
        model = p2g.tl.fit(
            slides,
            table_key or ["counts"],
            image_key=image_key,
            layer=layer,
            genes=genes,
            min_counts=min_counts,
            embedding_key=embedding_key,
            join=join,  # type: ignore[arg-type]
            reference=start,
            recipe=recipe,
            folds=folds,
            library_size=library_size,
            device=device,
            seed=seed,
            progress=progress(),
        )
        model.save(out, overwrite=overwrite)
    mean = model.scores.mean()
    show({"model": out, "slides": list(slides), "genes": len(model.genes), "mean": mean}, as_json)


def predict(
    store: options.Store,
    model: options.ModelFolder,
    out: options.Out = None,
    genes: options.Genes = None,
    min_score: options.MinScore = None,
    lazy: Annotated[bool, typer.Option("--lazy", help="Keep what the raster of a gene is computed from.")] = False,
    image_key: options.ModelImage = None,
    embedding_key: options.Embedding = None,
    key_added: options.KeyAdded = "predicted",
    tissue_key: options.Tissue = None,
    mpp: options.Mpp = None,
    force: options.Force = False,
    encoder: options.ModelEncoder = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Predict expression wherever the H&E shows tissue; counts are not needed."""
    import pixel2gene as p2g

    with user_errors():
        loaded = p2g.Model.load(model)
        sdata = open_store(store, out)
        prepare_for(
            sdata,
            loaded,
            image_key,
            embedding_key,
            encoder,
            tissue_key=tissue_key,
            mpp=mpp,
            force=force,
            device=device,
        )
        say("Predict")
        p2g.tl.predict(
            sdata,
            loaded,
            genes=genes,
            min_score=min_score,
            lazy=lazy,
            image_key=image_key,
            embedding_key=embedding_key,
            key_added=key_added,
            overwrite=overwrite,
            device=device,
            progress=progress(),
        )
        summary = added(sdata, out or store, key_added)
    show(summary, as_json)


def denoise(
    store: options.Store,
    model: options.ModelFolder,
    out: options.Out = None,
    genes: options.Genes = None,
    min_score: options.MinScore = None,
    table_key: options.ModelTable = None,
    image_key: options.ModelImage = None,
    layer: options.Layer = None,
    embedding_key: options.Embedding = None,
    key_added: options.KeyAdded = "denoised",
    tissue_key: options.Tissue = None,
    mpp: options.Mpp = None,
    force: options.Force = False,
    encoder: options.ModelEncoder = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Denoise what was measured, by H&E, neighbours and own counts."""
    import pixel2gene as p2g

    with user_errors():
        loaded = p2g.Model.load(model)
        sdata = open_store(store, out)
        prepare_for(
            sdata,
            loaded,
            image_key,
            embedding_key,
            encoder,
            tissue_key=tissue_key,
            mpp=mpp,
            force=force,
            device=device,
        )
        say("Denoise")
        p2g.tl.denoise(
            sdata,
            loaded,
            genes=genes,
            min_score=min_score,
            table_key=table_key,
            image_key=image_key,
            layer=layer,
            embedding_key=embedding_key,
            key_added=key_added,
            overwrite=overwrite,
            device=device,
            seed=seed,
            progress=progress(),
        )
        summary = added(sdata, out or store, key_added)
    show(summary, as_json)


def aggregate(
    store: options.Store,
    key: Annotated[str, typer.Argument(help="Result of predict or denoise.", show_default=False)],
    elements_key: Annotated[str, typer.Argument(metavar="ELEMENT", help="Shapes or labels.", show_default=False)],
    out: options.Out = None,
    genes: options.Genes = None,
    key_added: Annotated[str | None, typer.Option(help="Name of the result; KEY_ELEMENT.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Sum predicted or denoised expression over cells, nuclei, spots or regions."""
    import pixel2gene as p2g

    with user_errors():
        sdata = open_store(store, out)
        p2g.tl.aggregate(
            sdata, key, elements_key, genes=genes, key_added=key_added, overwrite=overwrite, progress=progress()
        )
        summary = added(sdata, out or store, key_added or f"{key}_{elements_key}")
    show(summary, as_json)


def _by_stem(stores: list[Path]) -> dict[str, SpatialData]:
    """Slides, named by their stores."""
    names = [store.stem for store in stores]
    if len(set(names)) < len(names):
        raise ValueError(f"Slides are named by their stores, but of {names} some are the same: rename one.")
    return {name: open_store(store) for name, store in zip(names, stores, strict=True)}
