"""What an encoder's windows, and the stain, do to an embedding, and which embedding is read best.

    uv run python benchmarks/encoders.py seams
    uv run python benchmarks/encoders.py stain
    uv run python benchmarks/encoders.py accuracy

`seams` tells how much borders of tiles and windows show, and what it costs to hide them: `seam` is the jump across
borders relative to the jump at the same places where they are inside (the same tissue, cut otherwise), 1 where no
border shows. A painted slide is embedded by lite0 as it is, by lite0 without its halo, and by lite0 as if it saw
windows of 224 px as vision transformers do, blended with more and more overlap. `--encoder` adds others, by name or
folder of weights.

`stain` fits a model to one simulated slide and scores it on another, as it is and in other stains, with and without
their normalisation: mean Pearson with the counts. The last shifts are stronger than what laboratories and scanners
differ by. "jitter" learns from the slide and two restained copies of it.

`accuracy` compares embeddings on rows of accuracy.py: other scales, stains, and any `--encoder`. Sizes are small, so
that it ends in minutes; single slides differ by 0.01 or so from seed to seed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import sections
import torch
import typer
from accuracy import TASKS, Row, Rows, available, matching, per_seed, score_sections, score_slide
from methods import PaperOptions, pixel2gene
from numpy.typing import NDArray
from slides import PICTURE_MPP, SOURCES, Options, Sizes, crop
from spatialdata import SpatialData, deepcopy
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.embedding import seam, window_step
from pixel2gene.core.encoders import Encoder, get_encoder
from pixel2gene.core.encoders.registry import SUPERPIXEL_UM
from pixel2gene.core.stain import METHODS, Stain, StainMethod, fit_stain
from pixel2gene.datasets._artefacts import plant_artefact
from pixel2gene.datasets._paint import paint
from pixel2gene.spatial import raster
from pixel2gene.spatial.image import open_image
from pixel2gene.spatial.raster import LocalTile, lazy_embedding

MPP = 0.5
EDGE = 14
# Superpixels of a tile, fewer than usual so that a small picture has some borders.
ENCODED = 48
OVERLAPS = (0.0, 0.25, 0.5, 0.75)
# Light below which a pixel is tissue; every so many pixels tell the colour of glass. What is too little to win back.
TISSUE, STRIDE, WORTH_WINNING = 215, 101, 0.01

EMBEDDINGS: dict[str, Options] = {
    "default": {},
    "scales 1-2": {"scales": (1, 2)},
    "scales 1-2-4": {"scales": (1, 2, 4)},
} | {method: {"stain": method} for method in METHODS}

type Shift = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

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
    raster.ENCODED = ENCODED
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
    pictures: Annotated[bool, typer.Option("--pictures", help="Over real H&Es, of her2st.")] = False,
    seeds: int = 1,
) -> None:
    """Print one table."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        seen, new = stained_slides(side, genes, pictures, seed)
        shown = {"as it is": new} | {name: in_another_stain(new, shift) for name, shift in SHIFTS.items()}
        jittered = [in_another_stain(seen, shift) for shift in JITTER]
        for name, method, slides in (
            *((str(method), method, [seen]) for method in (None, *METHODS)),
            ("jitter", None, [seen, *jittered]),
        ):
            training = {str(i): prepared(slide, method) for i, slide in enumerate(slides)}
            model = p2g.tl.fit(training, "counts", image_key="he", folds=4, seed=seed, progress=False)
            scores = {
                shift: float(p2g.tl.evaluate(prepared(slide, method), model)["pearson_counts"].mean())
                for shift, slide in shown.items()
            }
            rows.append({"stain": name, "seed": seed} | scores)
            print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).drop(columns="seed").groupby("stain", sort=False).mean().T
    print(table.round(3).to_string())
    lost = table.loc["as it is", "None"] - table["None"]
    print("\nLost without normalisation, and the share of it that is won back, where over 0.01 is lost\n")
    back = table.drop(columns="None").sub(table["None"], axis=0).div(lost.where(lost > WORTH_WINNING), axis=0)
    print(back.assign(lost=lost).round(2).to_string(na_rep="-"))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


@app.command()
def accuracy(
    out: Annotated[Path | None, typer.Option(help="JSON to write, row by row as they come.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Name or folder of weights to add, once for each.")] = None,
    embeddings: Annotated[str, typer.Option(help=f"Patterns, of {', '.join(EMBEDDINGS)}, and the encoders.")] = "*",
    data: Annotated[str, typer.Option(help="Rows of accuracy.py.")] = "her2st,hd,hd/C2,visium,xenium",
    tasks: Annotated[str, typer.Option(help="Of accuracy.py.")] = "fill half,denoise,new slide",
    seeds: int = 1,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 640,
    visium_side: int = 2048,
    genes: int = 40,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are in the JSON.")] = False,
) -> None:
    """Print how much better than the default embedding others are, by the default recipe."""
    known: dict[str, Options] = EMBEDDINGS | {Path(name).name: {"encoder": name} for name in encoder or []}
    chosen = {name: known[name] for name in known if name in ("default", *matching(known, embeddings, "--embeddings"))}
    wanted = matching(TASKS, tasks, "--tasks")
    sizes = Sizes(side, visium_side, genes)
    rows = Rows(out, asdict(sizes), resume=resume)
    for name in available(matching([*SOURCES, sections.NAME], data, "--data")):
        for seed in range(seeds):
            for label, embedding in chosen.items():
                # Rows are known by their method, which is the same here: its place takes what differs.
                if any((row["data"], row["seed"], row["method"]) == (name, seed, label) for row in rows.rows):
                    continue
                found = scored(name, embedding, sizes, wanted, seed)
                for row in found:
                    rows.add(row | {"method": label})
                told = ", ".join(f"{row['task']} {row['score']:.3f}" for row in found)
                print(f"{name}, seed {seed}, {label}: {told}", file=sys.stderr, flush=True)
    frame = pd.DataFrame(rows.rows)
    print(f"Mean Pearson by the default embedding, over {seeds} seeds, and how much better others are\n")
    print(gains(frame).to_string(na_rep="-"))
    if "equal_depth" in frame:
        print("\nThe same on the deeper spots of sections, thinned to one depth\n")
        print(gains(frame.dropna(subset="equal_depth"), "equal_depth").to_string(na_rep="-"))


def scored(name: str, embedding: Options, sizes: Sizes, tasks: list[str], seed: int) -> list[Row]:
    """Rows of accuracy.py for one embedding."""
    if name == sections.NAME:
        return list(score_sections(tasks, ["default"], PaperOptions(), seed, Rows(None, {}), embedding))
    source = replace(SOURCES[name], embedding=embedding)
    return list(score_slide(source, sizes, tasks, {"default": pixel2gene}, seed, Rows(None, {})))


def gains(frame: pd.DataFrame, column: str = "score") -> pd.DataFrame:
    """The default, and differences from it."""
    score = per_seed(frame, column).groupby(["data", "task", "method"], sort=False).mean().unstack("method", sort=False)
    return score.sub(score["default"], axis=0).assign(default=score["default"]).round(3)


def stained_slides(side: int, genes: int, pictures: bool, seed: int) -> tuple[SpatialData, SpatialData]:
    """Two slides of one biology, painted or over two real H&Es, with their tissue, which all stains share."""

    def simulate(number: int) -> SpatialData:
        image = crop(("C2", "C3")[number], round(side * MPP / PICTURE_MPP)) if pictures else None
        sdata = p2g.datasets.simulate(
            size=(side, side),
            mpp=PICTURE_MPP if pictures else MPP,
            image=image,
            n_genes=genes,
            measured=1.0,
            counts_per_superpixel=60,
            biology=seed,
            seed=10 * seed + number,
        )
        p2g.tl.tissue(sdata, "he", progress=False)
        return sdata

    return simulate(0), simulate(1)


def in_another_stain(sdata: SpatialData, shift: Shift) -> SpatialData:
    """The same slide, stained and scanned otherwise."""
    changed = deepcopy(sdata)
    pixels = shift(sdata["he"].data.compute())
    del changed["he"]
    transformations = get_transformation(sdata["he"], get_all=True)
    changed["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=transformations)
    return changed


def planted(seed: int) -> Shift:
    """As the artefact of the package."""
    return lambda pixels: plant_artefact(pixels, "stain", seed=seed)[0]


def restained(turn: float = 0, strength: float = 1, gamma: float = 1) -> Shift:
    """Dyes whose red and blue are turned apart, their strength, and the gamma of a scanner."""

    def change(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        flat = pixels.reshape(3, -1).astype(np.float32)
        own = fit_stain(flat[:, flat.mean(axis=0) < TISSUE], flat[:, ::STRIDE])
        assert isinstance(own, Stain)
        density = -np.log((flat + 1) / (own.glass[:, None] + 1))
        turned = np.abs(own.dyes + turn * np.array([[1, -1], [0, 0], [-1, 1]]))
        dyes = turned / np.linalg.norm(turned, axis=0) * strength
        # What the dyes leave unexplained stays.
        density += (dyes - own.dyes) @ (np.linalg.pinv(own.dyes) @ density).clip(0)
        light = ((own.glass[:, None] + 1) * np.exp(-density) - 1).clip(0, 255)
        return (255 * (light / 255) ** gamma).round().astype(np.uint8).reshape(pixels.shape)

    return change


SHIFTS: dict[str, Shift] = {f"stain {seed}": planted(seed) for seed in (0, 1, 3, 6)} | {
    "dyes turned": restained(turn=0.25),
    "dyes turned back": restained(turn=-0.25),
    "twice as strong": restained(strength=2),
    "half as strong": restained(strength=0.5),
    "gamma 2": restained(gamma=2),
    "gamma 1/2": restained(gamma=0.5),
    "turned, twice, gamma 2": restained(0.25, 2, 2),
    "turned back, half, gamma 1/2": restained(-0.25, 0.5, 0.5),
}
JITTER: list[Shift] = [restained(0.15, 1.4, 1.3), restained(-0.15, 0.7, 0.75)]


def prepared(sdata: SpatialData, normalisation: StainMethod | None) -> SpatialData:
    """A copy with its embedding."""
    copy = deepcopy(sdata)
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
