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
    tiles = {size: torch.randint(256, (1, 3, size, size), dtype=torch.uint8) for size in _TILES}
    rows: dict[str, tuple[float, float]] = {
        "encoder alone": max(_rate(lambda x=x: encoder.encode_dense(x), x) for x in tiles.values()),
        "eager torch": max(_rate(_eager(device, x), x) for x in tiles.values()),
    }
    with tempfile.TemporaryDirectory() as folder:
        sdata = large_image(side)
        whole_tissue(sdata)
        sdata = stored(sdata, folder)
        start, cpu = time.perf_counter(), time.process_time()
        p2g.tl.embed(sdata, "he", tissue_key="whole", mpp=MPP, progress=False)
        rows["tl.embed"] = _per_second(side**2, start, cpu)
    alone, alone_by_cpu = rows["encoder alone"]
    _print(
        [
            {
                "what": name,
                "mpx_per_s": rate,
                "to_encoder": rate / alone,
                "mpx_per_cpu_s": by_cpu,
                "to_encoder_cpu": by_cpu / alone_by_cpu,
                "device": str(device),
            }
            for name, (rate, by_cpu) in rows.items()
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
    blocks = lite0.in_torch(lite0.load_blocks(), device)

    def run() -> Any:
        with torch.inference_mode():
            return lite0._torch_stages(blocks, x.to(device) / 127.5 - 1)

    return run


def _rate(run: Callable[[], Any], x: torch.Tensor) -> tuple[float, float]:
    """Median Mpx by second, and by second of the processor, of some runs after a first one."""
    run()
    rates = []
    for _ in range(_TURNS):
        start, cpu = time.perf_counter(), time.process_time()
        run()
        rates.append(_per_second(x[0, 0].numel(), start, cpu))
    return statistics.median_low(rates)


def _per_second(pixels: int, start: float, cpu: float) -> tuple[float, float]:
    return pixels / 1e6 / (time.perf_counter() - start), pixels / 1e6 / (time.process_time() - cpu)


def _print(rows: list[dict[str, Any]], out: Path | None) -> None:
    print(*(f"{name:>44}" if i == 0 else f"{name:>14}" for i, name in enumerate(rows[0])))
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        print(*(f"{cell:>44}" if i == 0 else f"{cell:>14}" for i, cell in enumerate(cells)), flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app()
