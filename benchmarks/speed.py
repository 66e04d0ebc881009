"""Speed as ratios in one run: embedding against the bare encoder, fitting against the published recipe.

uv run python benchmarks/speed.py embed --side 6144
uv run python benchmarks/speed.py fit --side 316 --genes 300
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from large import MPP, embedded_slide, large_image, whole_tissue
from memory import stored

import pixel2gene as p2g
from pixel2gene.core.encoders import lite0, shared_encoder
from pixel2gene.core.paper import PaperRecipe

app = typer.Typer(add_completion=False, help=__doc__)
Out = Annotated[Path | None, typer.Option(help="JSON to write.")]
_TILES, _TURNS = (512, 1024, 2048), 3


@app.command()
def embed(side: int = 6144, out: Out = None) -> None:
    """Mpx/s of the default encoder alone, at the tile at which it is fastest, and of tl.embed on tissue, to a store."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = shared_encoder("lite0", device)
    tiles = {size: torch.rand(1, 3, size, size) * 255 for size in _TILES}
    rows = {
        "encoder alone": max(_rate(lambda x=x: encoder.encode_dense(x), x) for x in tiles.values()),
        "eager torch": max(_rate(_eager(device, x), x) for x in tiles.values()),
    }
    with tempfile.TemporaryDirectory() as folder:
        sdata = large_image(side)
        whole_tissue(sdata)
        sdata = stored(sdata, folder)
        start = time.perf_counter()
        p2g.tl.embed(sdata, "he", tissue_key="whole", mpp=MPP, progress=False)
        rows["tl.embed"] = side**2 / 1e6 / (time.perf_counter() - start)
    _print(
        [
            {"what": name, "mpx_per_s": rate, "to_encoder": rate / rows["encoder alone"], "device": str(device)}
            for name, rate in rows.items()
        ],
        out,
    )


@app.command()
def fit(side: int = 316, genes: int = 300, counts_per_bin: float = 40, epochs: int = 2, out: Out = None) -> None:
    """tl.fit to its end; the published recipe, 10 folds x 600 epochs, from the time of some epochs."""
    sdata, _ = embedded_slide(side, genes, counts_per_bin)

    def seconds(recipe: Any) -> float:
        start = time.perf_counter()
        p2g.tl.fit(sdata, "counts", image_key="he", recipe=recipe, progress=False)
        return time.perf_counter() - start

    paper = PaperRecipe()
    ours = seconds("default")
    first, more = (seconds(replace(paper, epochs=number)) for number in (1, 1 + epochs))
    whole = first + (paper.epochs - 1) * (more - first) / epochs
    _print(
        [
            {"recipe": "default", "bins": side**2, "genes": genes, "seconds": ours, "times_as_long": 1.0},
            {
                "recipe": f"paper, of {1 + epochs} epochs extrapolated to {paper.epochs}",
                "bins": side**2,
                "genes": genes,
                "seconds": whole,
                "times_as_long": whole / ours,
            },
        ],
        out,
    )


def _eager(device: torch.device, x: torch.Tensor) -> Callable[[], Any]:
    blocks = [
        (
            block,
            [
                (torch.from_numpy(conv.weight).to(device), torch.from_numpy(conv.bias).to(device))
                for conv in block.convs
            ],
        )
        for block in lite0.load_blocks()
    ]

    def run() -> Any:
        with torch.inference_mode():
            return lite0._torch_stages(blocks, x.to(device) / 127.5 - 1)

    return run


def _rate(run: Callable[[], Any], x: torch.Tensor) -> float:
    """Median Mpx/s of some runs after a first one."""
    run()
    times = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return x[0, 0].numel() / 1e6 / statistics.median(times)


def _print(rows: list[dict[str, Any]], out: Path | None) -> None:
    print(*(f"{name:>44}" if i == 0 else f"{name:>14}" for i, name in enumerate(rows[0])))
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        print(*(f"{cell:>44}" if i == 0 else f"{cell:>14}" for i, cell in enumerate(cells)), flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app()
