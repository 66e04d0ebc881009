"""Damaged and hostile files, read in a process that may not write, start others, or grow by over 1 GB.

Each input is a good one with something done to it: cut short, bits flipped, parts doubled, numbers made huge, names
that lead elsewhere, nested deeply, links to other places, a pickle in disguise. It must be read, or refused by an error
that says so in a sentence.

uv run python benchmarks/fuzz.py --inputs 10000
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import json
import logging
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import psutil
import torch
import typer
from PIL import Image
from spatialdata import SpatialData

import pixel2gene as p2g
from pixel2gene.core.device import choose_device
from pixel2gene.core.encoders.hipt import GLOBAL_FILE, LOCAL_FILE, hipt_from_folder
from pixel2gene.core.regression import Recipe
from pixel2gene.spatial.embedded import open_embedding
from pixel2gene.spatial.memory import memory_limit

# What may be raised; a UnicodeDecodeError and the like are no sentences, though ValueErrors.
TOLD = (ValueError, KeyError, FileNotFoundError, TypeError, MemoryError)
UNTOLD = (UnicodeError, json.JSONDecodeError)
MEGABYTE = 2**20
HUGE = [2**31, 2**63, 10**30, -1, 0, 1e308, float("inf")]
EVIL = ["../../../escaped", "/etc/passwd", "a\x00b", "", "${HOME}", "é" * 3000, "__proto__"]


class Escape(BaseException):
    """What it read made it do something."""


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(tempfile.gettempdir()) / "pixel2gene-was-unpickled"),)


def main(
    inputs: int = 10_000,
    seed: int = 0,
    memory: Annotated[int, typer.Option(help="MB that the process may grow by.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print how each kind of input was answered."""
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    chance, counts, wrong = random.Random(seed), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as folder:
        kinds = good_inputs(Path(folder) / "good")
        size = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (size + memory * MEGABYTE,) * 2)
        reading: list[bool] = []
        guard(reading)
        for number in range(inputs):
            kind = list(kinds)[number % len(kinds)]
            work = Path(folder) / "work"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(kinds[kind][0], work)
            done = spoil(work, chance)
            answer = told(kinds[kind][1], work, memory, reading)
            counts[kind, answer.split(":")[0]] += 1
            if answer.startswith("wrong"):
                wrong.append({"kind": kind, "number": number, "done": done, "answer": answer})
                print(f"{kind} {number} {done}: {answer[:300]}", flush=True)
    answers = sorted({answer for _, answer in counts})
    print(f"{'kind':<12}" + "".join(f"{answer:>20}" for answer in answers))
    for kind in kinds:
        print(f"{kind:<12}" + "".join(f"{counts[kind, answer]:>20}" for answer in answers))
    print(f"largest {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    if out is not None:
        out.write_text(json.dumps({"seed": seed, "inputs": inputs, "wrong": wrong}, indent=1))
    if wrong:
        raise typer.Exit(1)


def guard(reading: list[bool]) -> None:
    """While it reads, refuse to this process to write, to start another, or to talk to one."""
    starts = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
    changes = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not reading:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in starts + changes or (writes and arguments[0] != os.devnull):
            raise Escape(f"it wanted to {event} {arguments[0]}")

    sys.addaudithook(hook)


def told(read: Callable[[Path], Any], work: Path, memory: int, reading: list[bool]) -> str:
    """How it was answered."""
    reading.append(True)
    try:
        with memory_limit(psutil.Process().memory_info().rss / 1e9 + memory / 1000):
            read(work)
    except TOLD as error:
        said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if isinstance(error, UNTOLD) or not (said.rstrip().endswith(".") and " " in said):
            return f"wrong: {type(error).__name__} {said!r}"
        return type(error).__name__
    except BaseException as error:  # noqa: BLE001
        return f"wrong: {type(error).__name__} {error}"
    finally:
        reading.clear()
    return "read"


def good_inputs(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """A folder of each kind, and how it is read."""
    sdata = p2g.datasets.simulate(size=(256, 256), n_genes=5, counts_per_superpixel=60, measured=1.0)
    p2g.tl.tissue(sdata, "he", progress=False)
    p2g.tl.embed(sdata, "he", progress=False)
    short = Recipe(folds=2, hidden=(8,), max_checks=1)
    p2g.tl.fit(sdata, "counts", image_key="he", recipe=short, progress=False).save(folder / "model")

    records = folder / "records"
    records.mkdir()
    (records / "records.json").write_text(json.dumps(sdata.attrs["pixel2gene"]))

    section = folder / "section"
    section.mkdir()
    places = [(x, y) for x in range(4) for y in range(4)]
    counts = pd.DataFrame(np.arange(48).reshape(16, 3), [f"{x}x{y}" for x, y in places], ["A", "B", "C"])
    spots = pd.DataFrame({"x": [x for x, _ in places], "y": [y for _, y in places]})
    spots = spots.assign(pixel_x=spots["x"] * 15 + 8, pixel_y=spots["y"] * 15 + 8)
    counts.to_csv(section / "counts.tsv.gz", sep="\t")
    spots.to_csv(section / "spots.tsv", sep="\t", index=False)
    _picture(section / "he.png")

    istar = folder / "istar"
    istar.mkdir()
    counts.to_parquet(istar / "cnts.parquet")
    spots.set_index(counts.index)[["pixel_x", "pixel_y"]].set_axis(["x", "y"], axis=1).to_csv(
        istar / "locs-raw.tsv", sep="\t"
    )
    _picture(istar / "he-raw.tif")
    (istar / "pixel-size-raw.txt").write_text("0.5")
    (istar / "radius-raw.txt").write_text("7")

    hipt = folder / "hipt"
    hipt.mkdir()
    for name in (LOCAL_FILE, GLOBAL_FILE):
        torch.save({"teacher": {"module.backbone.norm.weight": torch.ones(3)}}, hipt / name)

    def read_model(work: Path) -> None:
        model = p2g.Model.load(work)
        str(model.card())
        repr(model)

    def read_records(work: Path) -> None:
        one = SpatialData.init_from_elements({name: element for _, name, element in sdata.gen_elements()})
        file = work / "records.json"
        try:
            # Of a store it is spatialdata that reads them; a device has no end.
            one.attrs = {"pixel2gene": json.loads(file.read_text() if file.is_file() else "")}
        except (ValueError, OSError, RecursionError):
            raise ValueError("JSON that spatialdata would not have read.") from None
        open_embedding(one, "he")
        p2g.tl.embed(one, "he", key_added="x", device="nope", progress=False)

    kinds = {
        "model": (folder / "model", read_model),
        "records": (records, read_records),
        "section": (
            section,
            lambda work: p2g.io.legacy_st(work / "counts.tsv.gz", work / "spots.tsv", work / "he.png"),
        ),
        "istar": (istar, lambda work: p2g.io.folder(work)["he"].data.compute()),
        "hipt": (hipt, lambda work: hipt_from_folder(work, choose_device("cpu"))),
    }
    for kind in ("model", "section", "istar"):
        kinds[kind][1](kinds[kind][0])
    return kinds


def _picture(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)


def spoil(folder: Path, chance: random.Random) -> str:
    """Do something to one of the files."""
    path = chance.choice(sorted(file for file in folder.iterdir() if file.is_file()))
    how = chance.choice([cut, flip, double, junk, pickled, linked, missing, *([values] * 5)])
    how(path, chance)
    return f"{how.__name__} {path.name}"


def cut(path: Path, chance: random.Random) -> None:
    """End too early."""
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flip(path: Path, chance: random.Random) -> None:
    """Turn some bits."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 3, 20])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def double(path: Path, chance: random.Random) -> None:
    """Have a part twice."""
    content = path.read_bytes()
    start, stop = sorted(chance.randrange(len(content)) for _ in range(2))
    path.write_bytes(content[:stop] + content[start:])


def junk(path: Path, chance: random.Random) -> None:
    """Hold something else."""
    size = chance.choice([0, 1, 100, 10_000])
    path.write_bytes(chance.choice([bytes(size), chance.randbytes(size), b"[" * size, b'{"a":' * size, b"9" * size]))


def pickled(path: Path, chance: random.Random) -> None:
    """Be a pickle."""
    path.write_bytes(pickle.dumps(Payload(), protocol=chance.randrange(5)))


def linked(path: Path, chance: random.Random) -> None:
    """Be a link to something else."""
    path.unlink()
    path.symlink_to(chance.choice(["/etc/passwd", "/dev/zero", "/dev/null", "/etc", "nothing", path.name]))


def missing(path: Path, chance: random.Random) -> None:
    """Not be there."""
    path.unlink()
    if chance.random() < 0.5:
        path.mkdir()


def values(path: Path, chance: random.Random) -> None:
    """Hold other values, where the format lets us."""
    kind = "".join(path.suffixes)
    if kind == ".json":
        path.write_text(json.dumps(_other(json.loads(path.read_text()), chance)))
    elif kind == ".safetensors":
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(_other(json.loads(content[8 : 8 + length]), chance)).encode()
        path.write_bytes(struct.pack("<Q", chance.choice([len(header), 2**62])) + header + content[8 + length :])
    elif kind == ".png":
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", *(chance.choice([1, 64, 50_000, 2**31 - 1]) for _ in range(2)))
        path.write_bytes(content)
    elif kind == ".pth":
        torch.save(
            chance.choice([{}, {"teacher": 3}, [torch.ones(2)], torch.ones(2), {"teacher": {"a": torch.ones(1)}}]), path
        )
    elif kind == ".parquet":
        frame = pd.DataFrame({chance.choice(EVIL) or "A": [chance.choice(HUGE[3:])] * 2}, ["0x0", chance.choice(EVIL)])
        frame.to_parquet(path)
    elif kind in (".tsv", ".txt"):
        lines = [line.split("\t") for line in path.read_text().split("\n")]
        line = chance.choice(lines)
        line[chance.randrange(len(line))] = str(chance.choice([*HUGE, *EVIL]))
        path.write_text("\n".join("\t".join(line) for line in lines))
    else:
        flip(path, chance)


def _other(value: Any, chance: random.Random) -> Any:
    """JSON with one value replaced, added or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(sorted(value))
        rest = {key: one for key, one in value.items() if key != name}
        if chance.random() < 0.1:
            return rest
        if chance.random() < 0.1:
            return rest | {chance.choice(EVIL): value[name]}
        return rest | {name: _other(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _other(value[at], chance), *value[at + 1 :]]
    return chance.choice([*HUGE, *EVIL, None, True, [], {}, [[]], [1] * 1000, {"a": {}}, "x", 3, 0.5])


if __name__ == "__main__":
    typer.run(main)
