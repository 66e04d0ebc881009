"""What is on the page, and the page."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from spatialdata import SpatialData

from pixel2gene import pl, tl
from pixel2gene.core.model import Model
from pixel2gene.pl._panels import GeneMaps
from pixel2gene.pl._raster import known_mpp, window_of
from pixel2gene.report.pictures import BUDGET, GRADIENT, LONGEST, GenePictures, SlidePictures, figure
from pixel2gene.spatial.elements import RECORDS
from pixel2gene.spatial.geometry import raster_levels
from pixel2gene.spatial.grid import SUPERPIXEL_UM
from pixel2gene.spatial.pixel_size import evidence
from pixel2gene.spatial.provenance import versions

_TRUSTED = 0.3  # out-of-fold Pearson from which on a gene is listed
_LISTED = 30
_COLUMNS = {
    "pearson": "Pearson",
    "pearson_ceiling": "noise ceiling",
    "deviance_explained": "deviance explained",
    "mean_count": "counts per unit",
}

type Facts = dict[str, str]


def write_report(
    sdata: SpatialData,
    model: Model,
    path: str | os.PathLike[str],
    *,
    name: str,
    image_key: str = "he",
    table_key: str = "counts",
    layer: str | None = None,
    genes: Sequence[str] = (),
    budget: int = BUDGET,
) -> None:
    """Write one HTML page of a slide, its model and its results, that needs neither network nor other files.

    Parameters
    ----------
    sdata
        With ``"predicted"`` and ``"denoised"``.
    model
        Fitted to it.
    path
        File to write; one that is there is replaced.
    name
        Of the slide.
    image_key, table_key, layer
        H&E, counts or transcripts, and the layer of the table that has the counts, X by default.
    genes
        To show in the gene browser first; then those that are read best follow.
    budget
        Bytes that the maps of the genes may take, but for those asked for.

    Raises
    ------
    KeyError
        If there is no such image.
    """
    window = window_of(sdata, image_key)
    order, unknown = _in_order(model, genes)
    maps = GeneMaps(sdata, image_key, window, table_key, "denoised", "predicted", 2 * LONGEST, layer)
    pictures = SlidePictures(maps, order[0])
    shown = _within(budget, order, len(genes) - len(unknown), pictures.gene)
    read, alignment = _read(sdata, image_key, table_key, layer)
    environment = Environment(
        loader=PackageLoader("pixel2gene.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["json"] = _json
    page = environment.get_template("page.html").render(
        name=name,
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        read=read,
        alignment=alignment,
        tissue=_tissue(sdata, image_key),
        tissue_figure=figure(pl.tissue(sdata, image_key)) if f"{image_key}_tissue" in sdata.labels else None,
        trust_figure=figure(pl.trust(sdata, image_key=image_key)),
        accuracy=_accuracy(model.scores),
        accuracy_figure=figure(pl.accuracy(model.scores)) if model.scores["pearson"].notna().any() else None,
        training_figure=figure(pl.training(model)),
        columns=[label for column, label in _COLUMNS.items() if column in model.scores],
        trusted=_trusted(model.scores),
        least=_TRUSTED,
        image=pictures.image(),
        shown=shown,
        index=[_indexed(gene, found, model.scores) for gene, found in shown.items()],
        modelled=len(model.genes),
        asked=[gene for gene in genes if gene in shown],
        unknown=unknown,
        gradient=GRADIENT,
        card=Markup(model.card().html),
        versions=versions(),
    )
    # Whole or not at all.
    aside = Path(path).with_name(f".{Path(path).name}.partial")
    aside.write_text(page, encoding="utf-8")
    aside.replace(path)


def _in_order(model: Model, asked: Iterable[str]) -> tuple[list[str], list[str]]:
    """Genes that are asked for, then all others from the one that is read best; and those that the model lacks."""
    asked = list(dict.fromkeys(asked))
    known = set(model.genes)
    ranked = model.scores["pearson"].fillna(-np.inf).sort_values(ascending=False, kind="stable").index
    order = [gene for gene in asked if gene in known]
    return [*order, *(gene for gene in ranked if gene not in order)], [gene for gene in asked if gene not in known]


def _within(budget: int, order: list[str], least: int, draw: Any) -> dict[str, GenePictures]:
    """Pictures of genes in order, of the first `least` and of others as long as they fit."""
    shown: dict[str, GenePictures] = {}
    for gene in order:
        found = draw(gene)
        budget -= found.size
        if budget < 0 and len(shown) >= max(least, 1):
            break
        shown[gene] = found
    return shown


def _indexed(gene: str, found: GenePictures, scores: pd.DataFrame) -> dict[str, Any]:
    """What the browser tells of a gene."""
    row = scores.loc[gene].reindex(["pearson", "pearson_ceiling", "mean_count"]).to_numpy(float)
    pearson, ceiling, count = (float(value) if np.isfinite(value) else None for value in row)
    return {"name": gene, "top": found.top, "pearson": pearson, "ceiling": ceiling, "count": count}


def _read(sdata: SpatialData, image_key: str, table_key: str, layer: str | None) -> tuple[Facts, dict[str, str | None]]:
    """What was read, and how it is aligned."""
    full = raster_levels(sdata.images[image_key])[0]
    height, width = full.sizes["y"], full.sizes["x"]
    mpp = known_mpp(sdata, image_key)
    facts = {"H&E": f"{image_key}, {width} x {height} px"}
    if mpp is not None:
        facts["H&E"] += f" ({width * mpp / 1000:.2f} x {height * mpp / 1000:.2f} mm)"
        sources = "; ".join(f"{source}: {value:.4g}" for source, value in evidence(sdata, image_key))
        facts["pixel size"] = f"{mpp:.4g} µm, by " + (sources or "what was given")
    if table_key in sdata.tables:
        table = sdata.tables[table_key]
        region = table.uns["spatialdata_attrs"]["region"]
        counts = table.X if layer is None else table.layers[layer]
        totals = np.asarray(counts.sum(axis=1)).ravel()
        facts["counts"] = f"{table_key}: {table.n_obs} units x {table.n_vars} genes"
        facts["measured in"] = region if isinstance(region, str) else ", ".join(region)
        facts["counts per unit"] = f"{np.median(totals):g} (median of all genes together)"
    else:
        facts["transcripts"] = table_key
    return facts, _alignment(sdata, image_key, table_key, layer, mpp)


def _alignment(
    sdata: SpatialData, image_key: str, table_key: str, layer: str | None, mpp: float | None
) -> dict[str, str | None]:
    try:
        with warnings.catch_warnings():
            # The page says it.
            warnings.simplefilter("ignore")
            found = tl.check_alignment(sdata, image_key, table_key, layer=layer, mpp=mpp, force=True, progress=False)
    except ValueError as error:
        return {"verdict": f"Not checked: {error}", "figure": None}
    (dx, dy), (sd_x, sd_y) = found.shift, found.sd
    where = f"{dx:+.1f} ± {sd_x:.1f} µm in x and {dy:+.1f} ± {sd_y:.1f} µm in y"
    if not found.known:
        verdict = "How the counts are aligned to the H&E cannot be told: no shift stands out. Look at both."
    elif found.off:
        verdict = f"The counts seem to lie {where} from where the H&E says: correct the alignment, then run again."
    else:
        verdict = f"The counts lie where the H&E says: {where}, with bins or spots of {found.bin_um:.3g} µm."
    return {"verdict": verdict, "figure": figure(pl.alignment(found))}


def _tissue(sdata: SpatialData, image_key: str) -> str:
    record = sdata.attrs[RECORDS]["predicted"]
    units = sdata.tables["predicted"].n_obs
    area = units * (SUPERPIXEL_UM / 1000) ** 2
    trust = sdata.tables["predicted"].obs["trust"]
    own = "this slide" if record["trained_on_this_slide"] else "other slides"
    return (
        f"{units} superpixels of {SUPERPIXEL_UM:g} µm hold tissue, {area:.2f} mm². The model was trained on {own}; "
        f"{(trust < 0.05).mean():.1%} of the tissue is unlike all that it has seen (trust below 0.05)."
    )


def _accuracy(scores: pd.DataFrame) -> str:
    pearson = scores["pearson"]
    reached = f"{int((pearson > _TRUSTED).sum())} of {len(scores)} genes have a Pearson correlation above {_TRUSTED:g}"
    if not pearson.notna().any():
        return f"{reached}: none could be scored."
    return f"{reached}, the median gene has {pearson.median():.2f}."


def _trusted(scores: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Genes that are read well, best first, and their scores."""
    columns = [name for name in _COLUMNS if name in scores]
    best = scores.loc[scores["pearson"] > _TRUSTED, columns].sort_values("pearson", ascending=False).head(_LISTED)
    return [
        (str(gene), ["–" if pd.isna(value) else f"{value:.2f}" for value in row]) for gene, *row in best.itertuples()
    ]


def _json(value: Any) -> Markup:
    """As a script holds it: no tag ends within."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026"))
