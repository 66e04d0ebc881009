"""What an encoder's windows, and the stain, do to an embedding.

    uv run python benchmarks/encoders.py seams
    uv run python benchmarks/encoders.py stain

`seams` tells how much borders of tiles and windows show, and what it costs to hide them: `seam` is the jump across
borders relative to the jump at the same places where they are inside (the same tissue, cut otherwise), 1 where no
border shows. A painted slide is embedded by lite0 as it is, by lite0 without its halo, and by lite0 as if it saw
windows of 224 px as vision transformers do, blended with more and more overlap. `--encoder` adds others, by name or
folder of weights.

`stain` fits a model to one simulated slide and scores it on another, as it is and in other stains, with and without
their normalisation: mean Pearson with the counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from spatialdata import SpatialData, deepcopy
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.embedding import seam, window_step
from pixel2gene.core.encoders import Encoder, get_encoder
from pixel2gene.core.encoders.registry import SUPERPIXEL_UM
from pixel2gene.datasets._artefacts import plant_artefact
from pixel2gene.datasets._paint import paint
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import ENCODED, LocalTile, lazy_embedding

MPP = 0.5
EDGE = 14
OVERLAPS = (0.0, 0.25, 0.5, 0.75)
STAIN_SEEDS = (0, 1, 3, 6)

app = typer.Typer(add_completion=False)


@app.command()
def seams(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Encoder to add, once for each.")] = None,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 2304,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
) -> None:
    """Print one table."""
    torch.set_num_threads(threads)
    pixels = paint((side, side), MPP, 0).image
    rows = [measure(pixels, "lite0", lite0()), measure(pixels, "lite0 without halo", lite0(halo=0))]
    rows += [measure(pixels, "lite0 in windows", lite0(halo=0, window=224), overlap) for overlap in OVERLAPS]
    for name in encoder or []:
        loaded = get_encoder(name, choose_device(None))
        overlaps = OVERLAPS if loaded.window else OVERLAPS[:1]
        rows += [measure(pixels, loaded.name, loaded, overlap) for overlap in overlaps]
    print(f"{'encoder':24}{'window':>8}{'overlap':>9}{'seam':>8}{'s/Mpx':>8}")
    for row in rows:
        print("{encoder:24}{window!s:>8}{overlap:9.2f}{seam:8.3f}{seconds_per_mpx:8.2f}".format(**row))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


@app.command()
def stain(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 768,
    genes: Annotated[int, typer.Option(help="Of the panel.")] = 40,
) -> None:
    """Print one table."""
    seen, new = (
        p2g.datasets.simulate(
            size=(side, side), n_genes=genes, measured=1.0, counts_per_superpixel=60, biology=0, seed=seed
        )
        for seed in (0, 1)
    )
    slides = {"as it is": new} | {f"stain {seed}": in_another_stain(new, seed) for seed in STAIN_SEEDS}
    rows: list[dict[str, Any]] = []
    for normalisation in (None, "macenko"):
        model = p2g.tl.fit(prepared(seen, normalisation), "counts", image_key="he", folds=4, progress=False)
        scores = {
            name: float(p2g.tl.evaluate(prepared(slide, normalisation), model)["pearson_counts"].mean())
            for name, slide in slides.items()
        }
        rows.append({"stain": normalisation} | scores)
    print(f"{'stain=':12}" + "".join(f"{name:>10}" for name in slides))
    for row in rows:
        print(f"{row['stain']!s:12}" + "".join(f"{row[name]:10.3f}" for name in slides))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def in_another_stain(sdata: SpatialData, seed: int) -> SpatialData:
    """The same slide with other dyes."""
    changed = deepcopy(sdata)
    pixels = plant_artefact(sdata["he"].data.compute(), "stain", seed=seed)[0]
    del changed["he"]
    transformations = get_transformation(sdata["he"], get_all=True)
    changed["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations)
    return changed


def prepared(sdata: SpatialData, normalisation: str | None) -> SpatialData:
    """A copy with tissue and embedding."""
    copy = deepcopy(sdata)
    p2g.tl.tissue(copy, "he", progress=False)
    p2g.tl.embed(copy, "he", stain=normalisation, progress=False)
    return copy


def lite0(**attributes: Any) -> Encoder:
    """The default encoder, seen otherwise."""
    encoder = get_encoder("lite0", torch.device("cpu"))
    for name, value in attributes.items():
        setattr(encoder, name, value)
    return encoder


def measure(pixels: NDArray[np.uint8], label: str, encoder: Encoder, overlap: float = 0.0) -> dict[str, Any]:
    """Seam and time of one encoder."""
    period = window_step(encoder, overlap) if encoder.window else ENCODED
    # Half a period off, so that borders come to lie in the middle of what they bound.
    shift = period // 2
    start = time.perf_counter()
    features = embed(pixels, encoder, overlap)
    seconds = time.perf_counter() - start
    side = features.shape[1]
    offset = shift * round(SUPERPIXEL_UM / MPP)
    shifted = embed(pixels[:, offset:, offset:], encoder, overlap)
    # What lies around the picture's own border is another matter.
    features, shifted = features[:, shift + EDGE : -EDGE, shift + EDGE : -EDGE], shifted[:, EDGE:-EDGE, EDGE:-EDGE]
    borders = np.arange(0, side, period) - shift - EDGE
    return {
        "encoder": label,
        "window": encoder.window,
        "overlap": overlap,
        "seam": seam(features, shifted, borders[(borders > 0) & (borders < features.shape[1])]),
        "seconds_per_mpx": seconds / (pixels[0].size / 1e6),
    }


def embed(pixels: NDArray[np.uint8], encoder: Encoder, overlap: float) -> NDArray[np.float16]:
    """The encoder's own channels of every superpixel."""
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"))
    slide = open_image(SpatialData(images={"he": image}), "he")
    mask = np.ones([size // round(SUPERPIXEL_UM / MPP) for size in pixels.shape[1:]], bool)
    values: NDArray[np.float16] = lazy_embedding(LocalTile(slide, MPP, lambda: encoder, overlap), mask)[
        : encoder.channels
    ].compute()
    return values


if __name__ == "__main__":
    app()
