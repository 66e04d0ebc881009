"""What encoders and models make of a picture that is turned or mirrored, as sections come to lie on slides.

uv run python benchmarks/turned.py --side 768
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import pixel2gene as p2g

MPP = 0.5
Raster = NDArray[np.floating]
# And back.
WAYS: dict[str, tuple[Callable[[Raster], Raster], Callable[[Raster], Raster]]] = {
    "as it is": (lambda x: x, lambda x: x),
    "turned by 90°": (lambda x: np.rot90(x, 1, (1, 2)), lambda x: np.rot90(x, -1, (1, 2))),
    "turned by 180°": (lambda x: np.rot90(x, 2, (1, 2)), lambda x: np.rot90(x, 2, (1, 2))),
    "mirrored": (lambda x: x[..., ::-1], lambda x: x[..., ::-1]),
}


def main(
    side: Annotated[int, typer.Option(help="Of both slides in pixels of 0.5 µm, a multiple of 16.")] = 768,
    genes: Annotated[int, typer.Option(help="Of their panel.")] = 30,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print, for the slide of the training and a new one, mean correlations over the genes."""
    warnings.simplefilter("ignore")
    logging.disable()
    first, second = (_slide(side, genes, seed) for seed in (3, 8))
    _embed(first)
    model = p2g.tl.fit(first, "counts", image_key="he", progress=False)
    print(f"{'slide':<10}{'picture':<18}{'with the truth':>16}{'with as it is':>16}")
    rows = []
    for name, sdata in (("training", first), ("new", second)):
        truth = sdata["truth"].sel(c=model.genes).values
        plain = _predicted(sdata, model, "as it is")
        for way in WAYS:
            found = _predicted(sdata, model, way)
            row = {"slide": name, "picture": way, "truth": _agreement(found, truth), "plain": _agreement(found, plain)}
            print(f"{name:<10}{way:<18}{row['truth']:>16.3f}{row['plain']:>16.3f}", flush=True)
            rows.append(row)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def _slide(side: int, genes: int, seed: int) -> SpatialData:
    return p2g.datasets.simulate(size=(side, side), n_genes=genes, counts_per_superpixel=60, measured=1.0, seed=seed)


def _embed(sdata: SpatialData) -> None:
    p2g.tl.tissue(sdata, "he", mpp=MPP, progress=False)
    p2g.tl.embed(sdata, "he", progress=False)


def _predicted(sdata: SpatialData, model: p2g.Model, way: str) -> Raster:
    """(genes, rows, columns) read off the picture in that way, and laid back."""
    there, back = WAYS[way]
    pixels = np.ascontiguousarray(there(sdata["he"].values))
    turned = SpatialData(images={"he": Image2DModel.parse(pixels, dims=("c", "y", "x"))})
    _embed(turned)
    p2g.tl.predict(turned, model, progress=False)
    return back(turned["predicted_map"].values.astype(float))


def _agreement(found: Raster, expected: Raster) -> float:
    there = np.isfinite(found[0]) & np.isfinite(expected[0])
    return float(np.mean([np.corrcoef(a[there], b[there])[0, 1] for a, b in zip(found, expected, strict=True)]))


if __name__ == "__main__":
    typer.run(main)
