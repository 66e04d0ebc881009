"""Opening stores, and bringing slides as far as models need them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixel2gene.cli.report import progress, say
from pixel2gene.core.lock import locked

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from pixel2gene import Model
    from pixel2gene.core.stain import StainMethod


def open_store(store: Path, out: Path | None = None) -> SpatialData:
    """Open a store, or its copy at `out`, which is made unless it is there.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If it is none, or `out` is no name or the store itself.
    """
    from spatialdata import read_zarr

    from pixel2gene.spatial.provenance import SOURCE

    if not store.exists():
        raise FileNotFoundError(f"There is no store at {store}.")
    if not (store / "zarr.json").exists() and not (store / ".zgroup").exists():
        raise ValueError(f"{store} is no SpatialData zarr store: write one with sdata.write({store.stem + '.zarr'!r}).")
    if out is None:
        return read_zarr(store)
    if not out.name:
        raise ValueError(f"--out is {str(out)!r}, which is no name of a store: results.zarr is one.")
    if out.resolve() == store.resolve():
        raise ValueError("--out is the input itself: name another store.")
    if not out.exists():
        say(f"Copy {store} to {out}")
        copy = read_zarr(store)
        copy.attrs = {**copy.attrs, SOURCE: str(store.resolve())}
        write_store(copy, out)
    return read_zarr(out)


def write_store(sdata: SpatialData, out: Path) -> None:
    """Write a new store, complete or not at all."""
    aside = out.with_name(f".{out.name}.partial")
    with locked(out.with_name(f".{out.name}.lock"), f"the store {out}"):
        shutil.rmtree(aside, ignore_errors=True)
        sdata.write(aside)
        aside.rename(out)


def prepare(
    sdata: SpatialData,
    image_key: str,
    *,
    embedding_key: str | None = None,
    encoder: str | None = None,
    overlap: float | None = None,
    stain: StainMethod | None = None,
    scales: list[int] | None = None,
    tissue_key: str | None = None,
    mpp: float | None = None,
    force: bool = False,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Find the tissue and embed the H&E, unless that was done.

    Raises
    ------
    ValueError
        If there is an embedding by another encoder, or at other scales, which may not be overwritten.
    """
    import pixel2gene as p2g

    key = embedding_key or f"{image_key}_embedding"
    made = sdata.attrs.get("pixel2gene", {}).get(key, {}).get("encoder", {})
    made_by, made_at = made.get("name"), made.get("scales") or [1]
    # A folder of weights gives its name to the encoder.
    other_encoder = key in sdata and encoder is not None and Path(encoder).name != made_by
    other = other_encoder or (key in sdata and scales is not None and scales != made_at)
    if other and not overwrite:
        asked = f"by {made_by!r}, not {encoder!r}" if other_encoder else f"at scales {made_at}, not {scales}"
        raise ValueError(f"{key!r} was made {asked}: name another with --embedding-key.")
    if key in sdata and not other:
        return
    if tissue_key is None and f"{image_key}_tissue" not in sdata:
        say("Find the tissue")
        p2g.tl.tissue(sdata, image_key, mpp=mpp, force=force, progress=progress())
    say("Embed the H&E")
    p2g.tl.embed(
        sdata,
        image_key,
        encoder=encoder or "lite0",
        overlap=overlap,
        stain=stain,
        scales=scales or (1,),
        tissue_key=tissue_key,
        mpp=mpp,
        force=force,
        device=device,
        key_added=key,
        overwrite=overwrite,
        progress=progress(),
    )


def prepare_for(
    sdata: SpatialData,
    model: Model,
    image_key: str | None,
    embedding_key: str | None,
    encoder: str | None = None,
    **options: Any,
) -> None:
    """Embed the H&E as a model expects it, unless there is an embedding."""
    if embedding_key is None and image_key is None:
        embedding_key = model.inputs["embedding_key"]
    image_key = image_key or str(model.inputs["image_key"])
    if (embedding_key or f"{image_key}_embedding") not in sdata:
        own = model.encoder
        options |= {name: own.get(name) for name in ("overlap", "stain", "scales")}
        options["encoder"] = encoder or own["name"]
        prepare(sdata, image_key, embedding_key=embedding_key, **options)


def added(sdata: SpatialData, store: Path, key: str) -> dict[str, Any]:
    """What a verb wrote under a name, and what it recorded of it."""
    records = sdata.attrs["pixel2gene"]
    table = sdata.tables[key]
    written = {path.split("/")[-1] for path in sdata.elements_paths_on_disk()}
    return {
        "store": str(store),
        "added": sorted(
            name
            for name in written & records.keys()
            if records[name] == records[key] and (name == key or name.startswith(f"{key}_"))
        ),
        "units": table.n_obs,
        "genes": table.n_vars,
        "record": records[key],
    }
