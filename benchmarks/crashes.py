"""What is left when a verb is stopped: killed, interrupted, by a full disk; or meets another one, or a read-only store.

Every moment is a process of its own, at work on a copy of a small store. Half are stopped by the clock, half at one of
their changes to the file system. Then the store must open, with every element as it was, absent or whole; and the same
verb, run again, must end as if nothing had happened.

uv run python benchmarks/crashes.py --moments 50
"""

from __future__ import annotations

import os

# Only a process without threads can be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import hashlib
import json
import logging
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP
from typing import Annotated, Any

import typer
from spatialdata import read_zarr

import pixel2gene as p2g
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial import raster
from pixel2gene.spatial.store import KINDS, OWN

FORK = multiprocessing.get_context("fork")
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
COLUMNS = ("moments", "in time", "as it was", "resumable", "whole", "wrong")
MEGABYTE = 2**20
# Several tiles, though the slide is small.
raster.ENCODED = 24


def main(
    moments: Annotated[int, typer.Option(help="Of each verb and way.")] = 50,
    ways: Annotated[str, typer.Option(help="To be stopped.")] = "killed,interrupted,full disk",
    verbs: Annotated[str, typer.Option(help="To be stopped.")] = "embed,fit,predict,replace,denoise,aggregate",
    side: Annotated[int, typer.Option(help="Of the slide in pixels of 0.5 µm.")] = 256,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print one row per verb and way, and what went wrong."""
    warnings.simplefilter("ignore")
    logging.disable()
    # Once, and not in every child.
    for module in ("tl", "datasets", "core.encoders.lite0"):
        import_module(f"pixel2gene.{module}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        jobs = prepare(Path(temporary), side, set(verbs.split(",")))
        print(f"{'verb':<10}{'way':<14}" + "".join(f"{column:>11}" for column in COLUMNS))
        for name in verbs.split(","):
            for way in ways.split(","):
                found = stopped(jobs[name], way, moments, random.Random(f"{seed}{name}{way}"), Path(temporary))
                rows.append({"verb": name, "way": way, **found})
                print(f"{name:<10}{way:<14}" + "".join(f"{found[column]:>11}" for column in COLUMNS), flush=True)
                print("\n".join(f"    {line}" for line in found["errors"]), end="\n" if found["errors"] else "")
        for name in verbs.split(","):
            for what, check in (("beside another", beside_another), ("read-only", read_only)):
                said = check(jobs[name], Path(temporary))
                rows.append({"verb": name, "way": what, "said": said})
                print(f"{name:<10}{what:<16}{said}", flush=True)
    if out is not None:
        out.write_text(json.dumps({"seed": seed, "side": side, "rows": rows}, indent=1))
    if any(row.get("wrong") for row in rows):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Job:
    """A verb on a folder, and what the folder holds before and after it."""

    verb: Callable[[Path], None]
    template: Path
    before: dict[str, str]
    after: dict[str, str]
    seconds: float
    changes: int
    tiles: int


def embed(folder: Path) -> None:
    """An embedding."""
    p2g.tl.embed(read_zarr(folder / "slide.zarr"), "he", progress=False)


def fit(folder: Path) -> None:
    """A model over another."""
    model = p2g.tl.fit(read_zarr(folder / "slide.zarr"), "counts", image_key="he", recipe=recipe(2), progress=False)
    model.save(folder / "model.p2g", overwrite=True)


def predict(folder: Path) -> None:
    """New elements."""
    p2g.tl.predict(read_zarr(folder / "slide.zarr"), p2g.Model.load(folder / "model.p2g"), progress=False)


def replace(folder: Path) -> None:
    """Other elements for those."""
    model = p2g.Model.load(folder / "model.p2g")
    sdata = read_zarr(folder / "slide.zarr")
    p2g.tl.predict(sdata, model, genes=model.genes[:3], overwrite=True, progress=False)


def denoise(folder: Path) -> None:
    """New elements, one of them linked to the bins."""
    p2g.tl.denoise(read_zarr(folder / "slide.zarr"), p2g.Model.load(folder / "model.p2g"), progress=False)


def aggregate(folder: Path) -> None:
    """A table."""
    p2g.tl.aggregate(read_zarr(folder / "slide.zarr"), "predicted", "square_008um", progress=False)


def recipe(checks: int) -> Recipe:
    """A short one."""
    return Recipe(folds=2, hidden=(16, 8), max_checks=checks)


def prepare(folder: Path, side: int, wanted: set[str]) -> dict[str, Job]:
    """Folders for each verb, from those that come before it."""

    def start(new: Path) -> None:
        sdata = p2g.datasets.simulate(size=(side, side), n_genes=8, counts_per_superpixel=60, measured=1.0)
        p2g.tl.tissue(sdata, "he", progress=False)
        sdata.write(new / "slide.zarr")

    def first_model(new: Path) -> None:
        sdata = read_zarr(new / "slide.zarr")
        p2g.tl.fit(sdata, "counts", image_key="he", recipe=recipe(1), progress=False).save(new / "model.p2g")

    bare = folder / "bare"
    bare.mkdir()
    require(child(lambda: start(bare)))
    jobs = {"embed": job(embed, bare)}
    embedded = jobs["embed"].template.with_name("after-embed")
    require(child(lambda: first_model(embedded)))
    jobs["predict"] = job(predict, embedded)
    jobs |= {verb.__name__: job(verb, embedded) for verb in (fit, denoise) if verb.__name__ in wanted}
    predicted = folder / "after-predict"
    return jobs | {verb.__name__: job(verb, predicted) for verb in (replace, aggregate) if verb.__name__ in wanted}


def job(verb: Callable[[Path], None], template: Path) -> Job:
    """What a verb does when nothing stops it."""
    after = template.with_name(f"after-{verb.__name__}")
    shutil.copytree(template, after)
    start = time.perf_counter()
    result = child(lambda: verb(after), count=True)
    require(result)
    seconds = time.perf_counter() - start
    return Job(verb, template, content(template), content(after), seconds, result["changes"], result["tiles"])


def stopped(task: Job, way: str, moments: int, chance: random.Random, folder: Path) -> dict[str, Any]:
    """Count how it was left, and list what went wrong."""
    counts: Counter[str] = Counter(dict.fromkeys(COLUMNS, 0))
    errors = []
    for moment in range(moments):
        by_clock = moment % 2 == 0
        after = chance.uniform(0, task.seconds) if by_clock else chance.randrange(task.changes)
        with workplace(task, folder, way == "full disk") as work:
            if work is None:
                return dict.fromkeys(COLUMNS, 0) | {"errors": ["no file system can be mounted here: left out"]}
            counts["moments"] += 1
            try:
                counts[one_moment(task, way, after, by_clock, work, chance)] += 1
            except AssertionError as error:
                counts["wrong"] += 1
                errors.append(f"{'after ' if by_clock else 'at change '}{after:.3g}: {error}")
    return dict(counts) | {"errors": errors}


def one_moment(task: Job, way: str, after: float, by_clock: bool, work: Path, chance: random.Random) -> str:
    """Stop the verb, look at what is left, and run it again."""
    if way == "full disk":
        used = sum(file.stat().st_blocks * 512 for file in work.rglob("*"))
        resize(work.parent, used + chance.randrange(room(task)))
        result = child(lambda: task.verb(work))
        resize(work.parent, 64 * MEGABYTE)
        assert result["error"] is None or "make room" in result["error"], result["error"]
    else:
        signal = SIGKILL if way == "killed" else SIGINT
        result = child(lambda: task.verb(work), signal=signal, **{"seconds" if by_clock else "change": after})
        assert result["error"] is None, result["error"]
    left = outcome(task, work)
    kept = len(list((work / "slide.zarr" / OWN).glob("*/*.tile")))
    again = child(lambda: task.verb(work), count=True)
    refused = "exist already" in (again["error"] or "")
    assert again["error"] is None or refused, f"run again: {again['error']}"
    assert refused or again["tiles"] == task.tiles - kept, f"{again['tiles']} tiles made again, {kept} were kept"
    assert outcome(task, work) == "whole", f"run again it was {outcome(task, work)}"
    assert "consolidated_metadata" in root_of(work), "there is no consolidated metadata"
    return "in time" if result["ended"] and left == "whole" else left


def outcome(task: Job, work: Path) -> str:
    """How the folder was left, if that is one of the ways there may be."""
    opened = child(
        lambda: read_zarr(work / "slide.zarr") and (work / "model.p2g").exists() and p2g.Model.load(work / "model.p2g")
    )
    assert opened["error"] is None, f"it cannot be opened: {opened['error']}"
    found, before, after = content(work), task.before, task.after
    unfinished = (work / "slide.zarr" / OWN).exists() and any((work / "slide.zarr" / OWN).iterdir())
    moving = (work / "slide.zarr" / OWN / "ready").exists() or (work / ".model.p2g.replaced").exists()
    for name in before | after:
        allowed = {before.get(name), after.get(name), *([None] if moving else [])}
        assert found.get(name) in allowed, f"{name} is neither as it was nor whole"
    assert found.keys() <= before.keys() | after.keys(), (
        f"{sorted(found.keys() - before.keys() - after.keys())} came in"
    )
    listed = root_of(work).get("consolidated_metadata")
    if listed is not None:
        names = {name for name in listed["metadata"] if name.count("/") == 1}
        assert names == {name for name in found if "/" in name}, "the consolidated metadata is of another state"
    if unfinished or moving:
        return "resumable"
    assert found in (before, after), "half of the elements are new"
    return "whole" if found == after else "as it was"


def beside_another(task: Job, folder: Path) -> str:
    """What the second of two processes on one store is told."""
    if task.verb is fit:
        return "reads the store only"
    with workplace(task, folder, False) as work:
        lock = work / "slide.zarr" / ".pixel2gene.lock"
        first = FORK.Process(target=task.verb, args=(work,))
        first.start()
        while not lock.exists() or not lock.read_text():
            assert first.is_alive(), "the first ended too early"
            time.sleep(0.001)
        os.kill(first.pid, SIGSTOP)
        told = child(lambda: task.verb(work))["error"]
        os.kill(first.pid, SIGCONT)
        first.join()
        assert outcome(task, work) == "whole" and not lock.exists()
        return str(told).replace(str(work), "").replace(str(first.pid), "PID")


def read_only(task: Job, folder: Path) -> str:
    """What is told of a store that cannot be written."""
    with workplace(task, folder, True) as work:
        if work is None:
            return "no file system can be mounted here: left out"
        mount("-o", "remount,ro", str(work.parent))
        told = child(lambda: task.verb(work))["error"]
        assert content(work) == task.before
        return str(told).replace(str(work), "")


def child(
    work: Callable[[], Any],
    *,
    signal: int | None = None,
    seconds: float | None = None,
    change: float | None = None,
    count: bool = False,
) -> dict[str, Any]:
    """Work in a process of its own, sent a signal after some seconds or at some change to the file system."""
    inbox, outbox = FORK.Pipe(False)
    process = FORK.Process(target=_work, args=(work, outbox, signal, change))
    process.start()
    if seconds is not None:
        process.join(seconds)
        if process.is_alive():
            os.kill(process.pid, signal)
    outbox.close()
    try:
        result = inbox.recv()
    except EOFError:
        result = {"error": None, "ended": False}
    process.join()
    # It leads a group of its own.
    try:
        os.killpg(process.pid, 0)
        result["error"] = "there are processes left"
    except ProcessLookupError:
        pass
    return result


def _work(work: Callable[[], Any], outbox: Any, signal: int | None, change: float | None) -> None:
    os.setpgrp()
    begun, tiles, embed_tile = 0, 0, raster.embed_tile

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal begun
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            if begun == change:
                os.kill(os.getpid(), signal)
            begun += 1

    def counted(*arguments: Any) -> Any:
        nonlocal tiles
        tiles += 1
        return embed_tile(*arguments)

    raster.embed_tile = counted
    sys.addaudithook(hook)
    error, ended = None, True
    try:
        work()
    except KeyboardInterrupt:
        ended = False
    except Exception as raised:  # noqa: BLE001
        error = str(raised) if type(raised) is not KeyError else raised.args[0]
    outbox.send({"error": error, "ended": ended, "changes": begun, "tiles": tiles})


def require(result: dict[str, Any]) -> None:
    """Without anything that stops it, a verb must end."""
    if result["error"] is not None or not result["ended"]:
        raise RuntimeError(result["error"])


def content(folder: Path) -> dict[str, str]:
    """Hash of all files of each element, and of the model."""
    store = folder / "slide.zarr"
    places = {f"{kind}/{path.name}": path for kind in KINDS for path in (store / kind).glob("*") if path.is_dir()}
    if (folder / "model.p2g").exists():
        places["model"] = folder / "model.p2g"
    return {name: _hash(path) for name, path in places.items()}


def _hash(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return whole.hexdigest()


def root_of(work: Path) -> dict[str, Any]:
    """What the store says of itself."""
    return json.loads((work / "slide.zarr" / "zarr.json").read_text())


@contextmanager
def workplace(task: Job, folder: Path, mounted: bool) -> Iterator[Path | None]:
    """A copy of the template, on a file system of its own if that is asked for; None if there can be none."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        if mounted and not mount("-t", "tmpfs", "-o", f"size={64 * MEGABYTE}", "tmpfs", str(place)):
            yield None
            return
        yield Path(shutil.copytree(task.template, place / "work"))
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=False, capture_output=True)
        shutil.rmtree(place)


def mount(*arguments: str) -> bool:
    """Whether it could be done."""
    return (
        shutil.which("mount") is not None and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    )


def resize(place: Path, size: int) -> None:
    """Change the size of a mounted file system."""
    mount("-o", f"remount,size={size}", str(place))


def room(task: Job) -> int:
    """Bytes that the verb needs, about."""
    folders = (task.template, task.template.with_name(f"after-{task.verb.__name__}"))
    before, after = (sum(file.stat().st_blocks * 512 for file in folder.rglob("*")) for folder in folders)
    return max(int(1.2 * (after - before)), MEGABYTE // 4)


if __name__ == "__main__":
    typer.run(main)
