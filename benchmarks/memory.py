"""Peak memory and time by size: embedding, fitting, predicting, denoising. Each row is a process of its own.

uv run python benchmarks/memory.py embed --sides 5000,10000,20000
uv run python benchmarks/memory.py embed --sides 40000,60000 --minutes 3
uv run python benchmarks/memory.py fit --side 812 --genes 300,3000,18000
uv run python benchmarks/memory.py predict --sides 625,1250,2500 --genes 500
uv run python benchmarks/memory.py denoise --side 316 --genes 100,300,1000
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, help=__doc__)
Row = dict[str, Any]
# Share by which superpixels differ that mirror one another: what is predicted then compresses as that of a real slide.
GRAIN = 0.1
Out = Annotated[Path | None, typer.Option(help="JSON to write.")]
Threads = Annotated[int, typer.Option(help="Of the processor; all there are by default.")]


def peak_gb() -> float:
    """Most memory that this process held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2)


@app.command()
def embed(
    sides: str = "5000,10000,20000",
    minutes: Annotated[float, typer.Option(help="After which each row ends, with what is finished until then.")] = 600,
    out: Out = None,
) -> None:
    """H&E of so many pixels at 0.5 µm/px, all tissue, read lazily and written to a store."""
    _table("embed-row", [[side, str(minutes)] for side in sides.split(",")], out)


@app.command()
def fit(side: int = 316, genes: str = "300,3000,18000", counts_per_bin: float = 200, out: Out = None) -> None:
    """Bins of 8 µm on a square of so many superpixels, 200 counts each."""
    _table("fit-row", [[str(side), number, str(counts_per_bin)] for number in genes.split(",")], out)


@app.command()
def predict(sides: str = "625,1250,2500", genes: int = 500, out: Out = None) -> None:
    """Lazy prediction of a square of so many superpixels; one gene looked at; the whole cube written."""
    _table("predict-row", [[side, str(genes)] for side in sides.split(",")], out)


@app.command()
def denoise(side: int = 316, genes: str = "100,300,1000", counts_per_bin: float = 200, out: Out = None) -> None:
    """Bins of 8 µm on a square of so many superpixels, 200 counts each, by a model that has learnt nothing."""
    _table("denoise-row", [[str(side), number, str(counts_per_bin)] for number in genes.split(",")], out)


@app.command(hidden=True)
def embed_row(side: int, minutes: float) -> None:
    """One row."""
    from large import MPP, large_image, whole_tissue

    import pixel2gene as p2g

    with tempfile.TemporaryDirectory() as folder:
        sdata = large_image(side)
        whole_tissue(sdata)
        sdata = stored(sdata, folder)
        before, start, cpu = peak_gb(), time.perf_counter(), time.process_time()
        tiles = Tiles(folder, start)

        def report(share: float) -> None:
            seconds = time.perf_counter() - start
            _print(
                {
                    "pixels": side,
                    "share": share,
                    "first_tile_s": tiles.first,
                    "seconds": seconds,
                    "mpx_per_s": share * side**2 / 1e6 / seconds,
                    "mpx_per_cpu_s": share * side**2 / 1e6 / (time.process_time() - cpu),
                    "gb_before": before,
                    "peak_gb": peak_gb(),
                }
            )

        def end_early() -> None:
            report(tiles.share(side))
            sys.stdout.flush()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)

        timer = threading.Timer(60 * minutes, end_early)
        timer.start()
        p2g.tl.embed(sdata, "he", tissue_key="whole", mpp=MPP, progress=False)
        timer.cancel()
        report(1.0)


@app.command(hidden=True)
def fit_row(side: int, genes: int, counts_per_bin: float) -> None:
    """One row."""
    import numpy as np
    from large import embedded_slide

    import pixel2gene as p2g

    sdata, truth = embedded_slide(side, genes, counts_per_bin)
    before, start = peak_gb(), time.perf_counter()
    model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
    seconds, peak = time.perf_counter() - start, peak_gb()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.p2g")
    p2g.tl.predict(sdata, model, lazy=True, progress=False)
    row = {
        "bins": side**2,
        "genes": genes,
        "modelled": len(model.genes),
        "counts": float(sdata.tables["counts"].X.sum()),
        "minutes": seconds / 60,
        "steps": model.history.step[-1],
        "gb_before": before,
        "peak_gb": peak,
    }
    totals = model.scores["mean_count"] * side**2
    for low, high in ((20, 100), (100, 1000), (1000, np.inf)):
        names = totals.index[(totals >= low) & (totals < high)][:100]
        row[f"r_{low}+"] = (
            truth.correlation(sdata["predicted_map"].sel(c=names.tolist()), names) if len(names) else None
        )
    _print(row)


@app.command(hidden=True)
def predict_row(side: int, genes: int) -> None:
    """One row."""
    import dask.array as da
    import numpy as np
    import zarr
    from large import embedded_slide, random_model

    import pixel2gene as p2g

    with tempfile.TemporaryDirectory() as folder:
        sdata, _ = embedded_slide(side, grain=GRAIN)
        sdata = stored(sdata, folder)
        model = random_model(sdata, genes)
        before = peak_gb()
        latent, _ = timed(lambda: p2g.tl.predict(sdata, model, lazy=True, progress=False))
        predicted = peak_gb()
        one, _ = timed(lambda: sdata["predicted_map"].sel(c=model.genes[genes // 2]).compute())
        cube, cube_cpu = timed(lambda: sdata.write_element("predicted_map"))
        peak = peak_gb()
        kept = zarr.open_array(Path(folder) / "slide.zarr" / "images" / "predicted_map" / "s0", mode="r")
        some = kept[:, : kept.chunks[1], : kept.chunks[2]]

        def bare_write(value: Any) -> tuple[float, float]:
            """Of an array like the map, in which each chunk is cut out of what `value` gives for its genes."""
            array = zarr.create_array(
                Path(folder) / "bare.zarr", shape=kept.shape, chunks=kept.chunks, dtype="f2", overwrite=True
            )

            def block(block_info: Any) -> Any:
                genes, *place = (slice(*ends) for ends in block_info[None]["array-location"])
                return value(genes)[:, *(slice(ends.stop - ends.start) for ends in place)]

            chunks = da.core.normalize_chunks(kept.chunks, kept.shape)
            lazy = da.map_blocks(block, chunks=chunks, dtype=np.float16, meta=np.empty((0, 0, 0), np.float16))
            return timed(lambda: da.store(lazy, array, lock=False))

        same, same_cpu = bare_write(lambda genes: some[genes])
        random = np.random.default_rng(0).lognormal(size=kept.chunks).astype(np.float16)
        noise, _ = bare_write(lambda genes: random[: genes.stop - genes.start])
        _print(
            {
                "superpixels": side**2,
                "genes": genes,
                "latent_s": latent,
                "one_gene_s": one,
                "cube_s": cube,
                # Of its own values, which take longer to compress than random ones.
                "bare_write_s": same,
                "random_write_s": noise,
                "to_bare": cube / same,
                "cpu_to_bare": cube_cpu / same_cpu,
                "gb_before": before,
                "gb_latent": predicted,
                "peak_gb": peak,
            }
        )


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of the processor, which other processes do not lengthen."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu


@app.command(hidden=True)
def denoise_row(side: int, genes: int, counts_per_bin: float) -> None:
    """One row."""
    from large import embedded_slide, random_model

    import pixel2gene as p2g

    sdata, _ = embedded_slide(side, genes, counts_per_bin)
    model = random_model(sdata, genes)
    before = peak_gb()
    seconds, _ = timed(lambda: p2g.tl.denoise(sdata, model, progress=False))
    _print(
        {
            "bins": side**2,
            "genes": genes,
            "seconds": seconds,
            "gb_before": before,
            "peak_gb": peak_gb(),
            "bytes_each": (peak_gb() - before) * 1024**3 / (side**2 * genes),
        }
    )


class Tiles:
    """Tiles of an embedding that are finished, while it goes on.

    Attributes
    ----------
    first
        Seconds after the start when the first was there; None if none was seen.
    """

    def __init__(self, folder: str, start: float) -> None:
        self._folder = Path(folder)
        self.first: float | None = None

        def wait() -> None:
            while not self._paths():
                time.sleep(0.05)
            self.first = time.perf_counter() - start

        threading.Thread(target=wait, daemon=True).start()

    def share(self, side: int) -> float:
        """Of a slide of so many pixels; those at its end are smaller."""
        from pixel2gene.spatial.raster import ENCODED

        rows = -(-side // 16)
        corners = (map(int, path.stem.split("-")) for path in self._paths())
        return sum((min(y + ENCODED, rows) - y) * (min(x + ENCODED, rows) - x) for y, x in corners) / rows**2

    def _paths(self) -> list[Path]:
        return list(self._folder.glob("slide.zarr/.pixel2gene/tiles-*/*.tile"))


def stored(sdata: Any, folder: str) -> Any:
    """In a store, but for the H&E, which stays lazy."""
    from spatialdata import SpatialData, read_zarr

    image = sdata["he"]
    rest = {name: element for _, name, element in sdata.gen_elements() if name != "he"}
    SpatialData.init_from_elements(rest, attrs=sdata.attrs).write(Path(folder) / "slide.zarr")
    kept = read_zarr(Path(folder) / "slide.zarr")
    kept["he"] = image
    return kept


def _table(command: str, rows: list[list[str]], out: Path | None) -> None:
    found: list[Row] = []
    for arguments in rows:
        text = subprocess.run(
            [sys.executable, __file__, command, *arguments], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        row = json.loads(text.splitlines()[-1])
        if not found:
            print(*(f"{name:>14}" for name in row), flush=True)
        found.append(row)
        print(*(f"{_shown(value):>14}" for value in row.values()), flush=True)
        if out is not None:
            out.write_text(json.dumps(found, indent=1))


def _shown(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:g}" if value is not None else "-"
    )


def _print(row: Row) -> None:
    print(json.dumps(row))


if __name__ == "__main__":
    app()
