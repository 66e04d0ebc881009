"""Whether unfamiliar tissue is told from familiar: artefacts planted in an H&E, another section, another tissue.

    uv run python benchmarks/trust.py

What is familiar is learnt from one slide, painted or a section of her2st, or from two sections, as `pixel2gene.tl.fit`
does where all of their tissue is measured; no expression is needed. Artefacts are planted in another slide, painted or
section C3, and superpixels that are spoilt by at least half are told by their trust from those not spoilt at all
(stain: from those of the same slide as it was), but for a margin at the edge of the picture, which cuts through tissue
where slides do not. The least AUROC over seeds is printed, and the mean trust of spoilt
superpixels; then the mean trust of whole slides. A bulb of mouse brain is compared at its own resolution, 4.6 µm/px,
with what was learnt from a section that is blurred to the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage as ndi
from scipy.stats import rankdata
from skimage.data import immunohistochemistry
from slides import PAINTED_MPP, PICTURE_MPP, crop
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe
from pixel2gene.core.trust import Familiarity, fit_familiarity, sample
from pixel2gene.datasets._artefacts import ARTEFACTS, plant_artefact
from pixel2gene.datasets._paint import paint
from pixel2gene.spatial.embedded import open_embedding
from pixel2gene.spatial.folds import fold_of, region_folds
from pixel2gene.spatial.grid import Grid

FOLDS = Recipe().folds
# A superpixel is spoilt where this share of it is.
SPOILT = 0.5
# Superpixels at the edge of a picture that are not scored.
MARGIN = 4
BULB_MPP = 4.56
NEW_SLIDE_SEED = 100


@dataclass(frozen=True)
class Tissue:
    """The tissue of an H&E: flat indices on its grid, and (superpixels, channels) embedding as written."""

    grid: Grid
    superpixels: NDArray[np.int64]
    features: NDArray[np.float16]


def main(
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    seeds: Annotated[int, typer.Option(help="Of artefacts, and painted slides.")] = 3,
    side: Annotated[int, typer.Option(help="Height and width in pixels of 0.5 µm.")] = 1536,
    sections: Annotated[bool, typer.Option(help="Also on her2st.")] = True,
    bulb: Annotated[Path | None, typer.Option(help="H&E of mouse olfactory bulb, MOB1 of STUtility.")] = None,
) -> None:
    """Print two tables."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        seen, new = (paint((side, side), PAINTED_MPP, seed + shift).image for shift in (0, NEW_SLIDE_SEED))
        rows += _compare("painted", [tissue(seen, PAINTED_MPP)], new, PAINTED_MPP, [seed])
    if sections:
        pixels = round(side * PAINTED_MPP / PICTURE_MPP)
        # A part as small as the one shown would have seen too little of what sections of one tumour differ in.
        c2, c4 = (tissue(crop(name, 3 * pixels // 2), PICTURE_MPP) for name in ("C2", "C4"))
        c3 = crop("C3", pixels)
        rows += _compare("C2", [c2], c3, PICTURE_MPP, range(seeds))
        rows += _compare("C2 and C4", [c2, c4], c3, PICTURE_MPP, [])
        immuno = np.ascontiguousarray(immunohistochemistry().transpose(2, 0, 1))
        rows.append(_whole("C2", "colon, haematoxylin and DAB", learn([c2]), tissue(immuno, PAINTED_MPP)))
        if bulb is not None:
            other = np.asarray(Image.open(bulb).convert("RGB")).transpose(2, 0, 1)
            middle = [slice(n // 2 - pixels // 12, n // 2 + pixels // 12) for n in other.shape[1:]]
            brain = tissue(np.ascontiguousarray(other[:, *middle]), BULB_MPP)
            coarse, same = (tissue(coarsened(crop(name, pixels)), BULB_MPP) for name in ("C2", "C3"))
            rows.append(_whole("C2", "mouse bulb", learn([c2]), brain))
            rows.append(_whole("C2 at 4.6 µm/px", "C3 at 4.6 µm/px", learn([coarse]), same))
            rows.append(_whole("C2 at 4.6 µm/px", "mouse bulb", learn([coarse]), brain))
    if out is not None:
        out.write_text(json.dumps({"options": {"seeds": seeds, "side": side}, "rows": rows}))
    table = pd.DataFrame(rows)
    spoilt = table[table["auroc"].notna()].groupby(["seen", "shown"], sort=False)
    print(f"\nArtefacts, {side} px, {seeds} seeds\n")
    print(spoilt.agg(least_auroc=("auroc", "min"), highest_mean_trust=("trust", "max")).round(3).to_string())
    print("\nMean trust of whole slides\n")
    whole = table[table["auroc"].isna()].groupby(["seen", "shown"], sort=False)
    print(whole.agg(trust=("trust", "mean")).round(3).to_string())


def tissue(image: NDArray[np.uint8], mpp: float) -> Tissue:
    """Find and embed the tissue of a (3, y, x) H&E."""
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    p2g.tl.tissue(sdata, "he", mpp=mpp, force=mpp > 1, progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    embedded = open_embedding(sdata, "he")
    superpixels, raw, _ = (np.concatenate(column) for column in zip(*embedded.blocks(), strict=True))
    return Tissue(embedded.grid, superpixels, raw)


def learn(slides: list[Tissue]) -> Familiarity:
    """What is familiar to a model of these slides, measured everywhere."""
    features, folds = [], []
    for slide in slides:
        chosen = sample(len(slide.superpixels), len(slides))
        centres = slide.grid.centres[slide.superpixels[chosen]]
        features.append(slide.features[chosen])
        folds.append(fold_of(centres, *region_folds(centres, slide.grid.shape, FOLDS)))
    return fit_familiarity(np.concatenate(features), np.concatenate(folds))


def coarsened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A section at the resolution of the bulb."""
    sigma = BULB_MPP / PICTURE_MPP / 3
    blurred = ndi.gaussian_filter(image.astype(np.float32), (0, sigma, sigma))
    small = ndi.zoom(blurred, (1, PICTURE_MPP / BULB_MPP, PICTURE_MPP / BULB_MPP), order=1)
    return small.clip(0, 255).astype(np.uint8)


def auroc(familiar: NDArray[np.floating], spoilt: NDArray[np.floating]) -> float:
    """Chance that a spoilt superpixel is trusted less than a familiar one; ties count half."""
    rank = rankdata(np.concatenate([spoilt, familiar]))[len(spoilt) :].sum()
    return float((rank / len(familiar) - (len(familiar) + 1) / 2) / len(spoilt))


def within(slide: Tissue) -> NDArray[np.bool_]:
    """(superpixels,) whether a superpixel of the tissue lies off the edge of the picture."""
    x, y = slide.grid.centres[slide.superpixels].T
    rows, columns = slide.grid.shape
    inside: NDArray[np.bool_] = (np.minimum(x, columns - x) > MARGIN) & (np.minimum(y, rows - y) > MARGIN)
    return inside


def share_of(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """(superpixels,) share of the pixels of each superpixel that are in the mask."""
    row, column = (((np.arange(n) + 0.5) / grid.factor).astype(np.int64) for n in mask.shape)
    superpixel = (row[:, None] * grid.shape[1] + column).ravel()
    inside, all_pixels = (np.bincount(superpixel, weights, grid.size) for weights in (mask.ravel(), None))
    share: NDArray[np.float64] = inside / np.maximum(all_pixels, 1)
    return share


def _compare(seen: str, slides: list[Tissue], image: NDArray[np.uint8], mpp: float, seeds: Any) -> list[dict[str, Any]]:
    familiarity, clean = learn(slides), tissue(image, mpp)
    rows = [_whole(seen, "another section" if seen != "painted" else "another painted", familiarity, clean)]
    as_it_was = familiarity.trust(clean.features)[within(clean)]
    for seed in seeds:
        for kind in ARTEFACTS:
            image_now, mask = plant_artefact(image, kind, mpp=mpp, seed=seed)
            now = tissue(image_now, mpp)
            share, trust = share_of(mask, now.grid)[now.superpixels], familiarity.trust(now.features)
            inside = within(now)
            spoilt = trust[inside & (share >= SPOILT)]
            familiar = as_it_was if mask.all() else trust[inside & (share == 0)]
            rows.append(
                {
                    "seen": seen,
                    "shown": kind,
                    "seed": seed,
                    "auroc": auroc(familiar, spoilt),
                    "trust": float(spoilt.mean()),
                    "familiar": float(familiar.mean()),
                    "superpixels": len(spoilt),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _whole(seen: str, shown: str, familiarity: Familiarity, slide: Tissue) -> dict[str, Any]:
    trust = float(familiarity.trust(slide.features).mean())
    return {"seen": seen, "shown": shown, "trust": trust, "auroc": None, "superpixels": len(slide.superpixels)}


if __name__ == "__main__":
    typer.run(main)
