"""How far results differ that are made again: in another process, on other threads, on the workers of a dask client.

Each way is a process of its own, which repeats what a store records. Differences are the largest between two values, as
a share of the standard deviation of the result; those of the scores as they are.

uv run python benchmarks/repeatability.py --side 768
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from distributed import Client, LocalCluster
from spatialdata import SpatialData, read_zarr

import pixel2gene as p2g
from pixel2gene.cli.rerun import repeat
from pixel2gene.cli.stores import write_store
from pixel2gene.spatial.repetition import differences, recorded_steps, without_results

# Sums in another order, as on another CPU.
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
# Threads, worker processes, instructions, and whether the model is fitted anew.
WAYS: dict[str, tuple[int, int, dict[str, str], bool]] = {
    "1 thread": (1, 0, {}, True),
    "2 threads": (2, 0, {}, True),
    "2 processes": (1, 2, {}, True),
    "other CPU, same model": (1, 0, PLAIN, False),
    "other CPU": (1, 0, PLAIN, True),
}
RESULTS = {"embedding": "he_embedding", "trust": "predicted_trust", "predicted": "predicted", "denoised": "denoised"}

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    side: Annotated[int, typer.Option(help="Of the slide in pixels of 0.5 µm.")] = 768,
    genes: Annotated[int, typer.Option(help="Of its panel.")] = 40,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print one row per way."""
    columns = [*RESULTS, "pearson"]
    print(f"{'way':<24}" + "".join(f"{column:>11}" for column in columns))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_store(p2g.datasets.simulate(size=(side, side), n_genes=genes, seed=3), folder / "slide.zarr")
        _apart(1, {}, "first", folder)
        for way, (threads, processes, instructions, anew) in WAYS.items():
            found = _apart(
                threads, instructions, "again", folder, f"--processes={processes}", "--anew" if anew else "--no-anew"
            )
            rows.append({"way": way, **found})
            print(f"{way:<24}" + "".join(f"{found[column]:>11.2g}" for column in columns), flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def _apart(threads: int, instructions: dict[str, str], *arguments: object) -> dict[str, float]:
    """Run a command of this script with so many threads; what it prints last."""
    settings = instructions | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@app.command()
def first(folder: Path) -> None:
    """Make what the others repeat."""
    _quiet()
    sdata = read_zarr(folder / "slide.zarr")
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    model = p2g.tl.fit(sdata, "counts", image_key="he", progress=False)
    _read_off(sdata, model)
    model.save(folder / "first.p2g")
    print("{}")


@app.command()
def again(folder: Path, processes: int = 0, anew: bool = True) -> None:
    """Repeat it, and compare."""
    _quiet()
    recorded = read_zarr(folder / "slide.zarr")
    old = p2g.Model.load(folder / "first.p2g")
    scores: Any = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        write_store(without_results(recorded), Path(temporary) / "again.zarr")
        sdata = read_zarr(Path(temporary) / "again.zarr")
        with _client(processes):
            if anew:
                (model,) = repeat(sdata, recorded_steps(recorded), None)
                scores = (model.scores["pearson"] - old.scores["pearson"]).abs().max()
            else:
                p2g.tl.tissue(sdata, "he", progress=False)
                p2g.tl.embed(sdata, "he", progress=False)
                _read_off(sdata, old)
        found = differences(recorded, sdata)
    print(json.dumps({name: found[key] for name, key in RESULTS.items()} | {"pearson": float(scores)}))


def _read_off(sdata: SpatialData, model: p2g.Model) -> None:
    p2g.tl.predict(sdata, model, progress=False)
    p2g.tl.denoise(sdata, model, progress=False)


def _client(processes: int) -> Any:
    if not processes:
        return nullcontext()
    return Client(LocalCluster(n_workers=processes, threads_per_worker=1, dashboard_address=None))


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable()


if __name__ == "__main__":
    # Without a name of a command, the table.
    named = {"first", "again", "main"} & set(sys.argv[1:2])
    app(sys.argv[1:] if named else ["main", *sys.argv[1:]])
